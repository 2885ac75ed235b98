use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::ReferenceLine;

/// Draw one or more runs: loss, validation, learning rate, gradient norm, throughput
///
/// Example: backpack plot runs/quickstart --output runs/loss.svg --reference "GPT-2 small=3.12"
#[derive(Debug, Args)]
pub(crate) struct Plot {
    /// Run folders
    #[arg(required = true, value_name = "RUN_DIR")]
    runs: Vec<PathBuf>,
    /// A line across the losses, in nats; may be repeated
    #[arg(long = "reference", value_name = "NAME=X")]
    references: Vec<ReferenceLine>,
    /// The file to write, SVG or PNG by its ending
    #[arg(long, value_name = "F.svg|F.png")]
    output: PathBuf,
}

impl Plot {
    pub(crate) fn run(self) -> Result<()> {
        trainer::plot(&self.runs, &self.references, &self.output)
    }
}
