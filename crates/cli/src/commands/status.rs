use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::Status;

use crate::args::cost::CostArgs;

/// Say where a run is, when it is done, what it cost and whether it is healthy
///
/// Reads the run folder alone, while the run goes on or after it; changes nothing. Five lines:
/// running, stopped, finished, failed or stale, with the time it still needs; its figures; its
/// newest checkpoint, every file of it checked; its cost; its health.
/// Example: backpack status runs/quickstart --watts 65
#[derive(Debug, Args)]
pub(crate) struct StatusCommand {
    /// The run folder
    #[arg(value_name = "RUN_DIR")]
    run: PathBuf,
    #[command(flatten)]
    rates: CostArgs,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl StatusCommand {
    pub(crate) fn run(self) -> Result<()> {
        let status = Status::read(&self.run, &self.rates.into())?;
        let text = if self.json { serde_json::to_string(&status)? } else { status.to_string() };
        Ok(writeln!(io::stdout().lock(), "{text}")?)
    }
}
