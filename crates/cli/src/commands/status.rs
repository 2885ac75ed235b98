//! The command `status`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::Status;

use crate::args::cost::CostArgs;

/// Show a run's progress, remaining time, cost and health
///
/// Reads the run directory and changes nothing, so it can be used during a run and after it.
/// Prints five lines: the activity (running, stopped, finished, failed or dead) with the remaining
/// time; the latest metrics; the newest checkpoint, whose files are verified; the cost; the health.
///
/// Example: backpack status runs/quickstart --watts 65
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    /// Run directory
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
    #[command(flatten)]
    rates: CostArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    /// Prints the status.
    pub(crate) fn run(self) -> Result<()> {
        let status = Status::read(&self.run, &self.rates.into())?;
        let text = if self.json { serde_json::to_string(&status)? } else { status.to_string() };
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }
}
