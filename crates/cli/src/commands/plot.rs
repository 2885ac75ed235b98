use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

/// Draw the loss and validation of one or more runs as an SVG
///
/// Example: backpack plot runs/quickstart --output runs/loss.svg
#[derive(Debug, Args)]
pub(crate) struct Plot {
    /// Run folders
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// The file to write
    #[arg(long, value_name = "F.svg")]
    output: PathBuf,
}

impl Plot {
    pub(crate) fn run(self) -> Result<()> {
        trainer::plot(&self.runs, &self.output)
    }
}
