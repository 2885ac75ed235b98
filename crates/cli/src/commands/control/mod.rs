//! The paper's recipes of control, run end to end: what is asked for, what is said of it.

mod debias;
mod edit;
mod report;
mod topic;
pub(crate) mod word_lists;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use model::{LanguageModel, SenseEdit};

use crate::args::model::ModelArgs;

/// Control a Backpack through its senses, without training: a topic, a bias, a fact
///
/// The recipes of the paper (docs/control.md), each with its figures as a table, JSON and a plot.
/// Example: backpack control topic --model runs/quickstart-model --topic war --texts 20 --output runs/war
#[derive(Debug, Args)]
pub(crate) struct Control {
    #[command(subcommand)]
    recipe: ControlCommand,
}

#[derive(Debug, Subcommand)]
enum ControlCommand {
    Topic(topic::Topic),
    Debias(debias::Debias),
    Edit(edit::Edit),
}

impl Control {
    pub(crate) fn run(self) -> Result<()> {
        match self.recipe {
            ControlCommand::Topic(recipe) => recipe.run(),
            ControlCommand::Debias(recipe) => recipe.run(),
            ControlCommand::Edit(recipe) => recipe.run(),
        }
    }
}

/// The model, which must have senses.
fn load(compute: &ModelArgs) -> Result<LanguageModel> {
    let model = compute.load()?;
    ensure!(
        model.backpack().is_some(),
        "{} is a GPT-2, which has no senses to control: give a Backpack",
        compute.model.display()
    );
    Ok(model)
}

/// Writes edits as `--edit` reads them.
fn save_edits(edits: &[SenseEdit], path: &Path) -> Result<()> {
    let write = || -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(path, format!("{}\n", evals::edits_json(edits)))?)
    };
    write().with_context(|| format!("{} cannot be written", path.display()))
}
