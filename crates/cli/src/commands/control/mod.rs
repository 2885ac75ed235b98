//! The command `control`: the methods of the paper (section 6), their arguments and reports.

mod debias;
mod edit;
mod report;
mod topic;
mod word_lists;

use anyhow::Result;
use clap::{Args, Subcommand};

/// Control a Backpack's topic, bias or facts through its senses, without training
///
/// Runs the methods of the paper. Each reports its results as tables, JSON and a plot;
/// docs/control.md describes them.
///
/// Example: backpack control topic --model runs/quickstart-model --topic war --texts 20 --output runs/war
#[derive(Debug, Args)]
pub(crate) struct Control {
    #[command(subcommand)]
    method: ControlCommand,
}

#[derive(Debug, Subcommand)]
enum ControlCommand {
    Topic(topic::Topic),
    Debias(debias::Debias),
    Edit(edit::Edit),
}

impl Control {
    /// Runs the method.
    pub(crate) fn run(self) -> Result<()> {
        match self.method {
            ControlCommand::Topic(method) => method.run(),
            ControlCommand::Debias(method) => method.run(),
            ControlCommand::Edit(method) => method.run(),
        }
    }
}
