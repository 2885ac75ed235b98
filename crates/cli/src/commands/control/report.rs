//! What a recipe leaves: figures on stdout, and all of it in a folder.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use charts::Chart;
use clap::Args;
use serde_json::Value;

use crate::commands::export::hugging_face::write_json;
use crate::output::atomic_dir::AtomicDir;

#[derive(Debug, Args)]
pub(super) struct ReportArgs {
    /// A new folder for table.md, report.json, plot.svg and plot.png, and texts.jsonl where texts are written
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// The figures of a recipe.
pub(super) struct ControlReport {
    pub(super) json: Value,
    /// Markdown.
    pub(super) tables: String,
    pub(super) chart: Chart,
    /// One object a line; none for recipes that write no texts.
    pub(super) texts: Vec<Value>,
}

impl ReportArgs {
    /// Refuses a folder that is taken before any work is done.
    ///
    /// # Errors
    /// When `--output` holds something.
    pub(super) fn folder(&self) -> Result<Option<AtomicDir>> {
        self.output.as_deref().map(AtomicDir::at).transpose()
    }

    pub(super) fn write(&self, folder: Option<AtomicDir>, report: &ControlReport) -> Result<()> {
        // Shown first: a disk that refuses the folder does not take the result with it.
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", report.json)?
        } else {
            write!(out, "{}", report.tables)?
        }
        if let Some(folder) = &folder {
            folder.fill(|folder| {
                fs::write(folder.join("table.md"), &report.tables)?;
                write_json(folder, "report.json", &report.json)?;
                if !report.texts.is_empty() {
                    let lines: Vec<String> = report.texts.iter().map(|text| format!("{text}\n")).collect();
                    fs::write(folder.join("texts.jsonl"), lines.concat())?;
                }
                report.chart.write(&folder.join("plot.svg"))?;
                report.chart.write(&folder.join("plot.png"))
            })?;
        }
        Ok(())
    }
}

/// A share in percent, as tables show it.
pub(super) fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// Characters of each of `count` names that stand side by side under a plot of its full width.
pub(super) fn room_for_each(count: usize) -> usize {
    // Some 8 pixels a character at the plot's size of letters.
    (charts::WIDTH as usize / 8 / count.max(1)).max(8)
}
