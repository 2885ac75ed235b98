//! The report of a method, on stdout and in a directory.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use charts::Chart;
use clap::Args;
use model::SenseEdit;
use serde_json::Value;

use crate::output::atomic_dir::AtomicDir;
use crate::output::files::write_json;

/// Arguments for the output of the report.
#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// New directory for table.md, report.json, plot.svg and plot.png (topic: also texts.jsonl)
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// The results of a method.
pub(super) struct ControlReport {
    pub(super) json: Value,
    /// The tables in Markdown.
    pub(super) tables: String,
    pub(super) chart: Chart,
    /// The generated texts, one object per line; empty if the method generates none.
    pub(super) texts: Vec<Value>,
}

impl ReportArgs {
    /// Checks, before the work starts, that the directory of `--output` can be created.
    ///
    /// # Errors
    /// If the directory is not empty, is a file, or cannot be created.
    pub(super) fn output_dir(&self) -> Result<Option<AtomicDir>> {
        self.output.as_deref().map(AtomicDir::new).transpose()
    }

    /// Prints the report and writes it to `output_dir`.
    pub(super) fn write(&self, output_dir: Option<AtomicDir>, report: &ControlReport) -> Result<()> {
        // Printed first, so that the result is not lost if the directory cannot be written.
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", report.json)?
        } else {
            write!(out, "{}", report.tables)?
        }
        if let Some(output_dir) = &output_dir {
            output_dir.fill(|directory| {
                fs::write(directory.join("table.md"), &report.tables)?;
                write_json(directory, "report.json", &report.json)?;
                if !report.texts.is_empty() {
                    let lines: Vec<String> = report.texts.iter().map(|text| format!("{text}\n")).collect();
                    fs::write(directory.join("texts.jsonl"), lines.concat())?;
                }
                report.chart.write(&directory.join("plot.svg"))?;
                report.chart.write(&directory.join("plot.png"))
            })?;
        }
        Ok(())
    }
}

/// Maximum number of characters of each of `count` labels next to each other under a plot of full
/// width.
pub(super) fn max_label_characters(count: usize) -> usize {
    // A character is about 8 pixels wide at the plot's font size.
    (charts::WIDTH as usize / 8 / count.max(1)).max(8)
}

/// Writes edits in the format of `--edit`.
pub(super) fn save_edits(edits: &[SenseEdit], path: &Path) -> Result<()> {
    let write = || -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(path, format!("{}\n", evals::edits_json(edits)))?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
