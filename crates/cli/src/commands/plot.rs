//! The command `plot`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::ReferenceLine;

/// Plot loss, validation loss, learning rate, gradient norm and throughput of runs
///
/// Several runs are drawn into the same panels, to compare them.
///
/// Example: backpack plot runs/quickstart --output runs/loss.svg --reference "GPT-2 small=3.12"
#[derive(Debug, Args)]
pub(crate) struct Plot {
    /// Run directories
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// Draw a horizontal line at loss X (in nats), labeled NAME; may be repeated
    #[arg(long = "reference", value_name = "NAME=X")]
    references: Vec<ReferenceLine>,
    /// File to write; .svg or .png
    #[arg(long, value_name = "F.svg|F.png")]
    output: PathBuf,
}

impl Plot {
    /// Writes the plot.
    pub(crate) fn run(self) -> Result<()> {
        trainer::plot(&self.runs, &self.references, &self.output)
    }
}
