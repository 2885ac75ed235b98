//! The command `control`: the recipes of the paper (section 6), their arguments and reports.

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

/// Control a Backpack's topic, bias or facts through its senses, without training
///
/// Runs the recipes of the paper. Each reports its results as tables, JSON and a plot;
/// docs/control.md describes them.
///
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
    /// Runs the recipe.
    pub(crate) fn run(self) -> Result<()> {
        match self.recipe {
            ControlCommand::Topic(recipe) => recipe.run(),
            ControlCommand::Debias(recipe) => recipe.run(),
            ControlCommand::Edit(recipe) => recipe.run(),
        }
    }
}

/// Loads the model, which must be a Backpack.
fn load(arguments: &ModelArgs) -> Result<LanguageModel> {
    let model = arguments.load()?;
    ensure!(
        model.backpack().is_some(),
        "{} is a GPT-2, which has no senses: choose a Backpack",
        arguments.model.display()
    );
    Ok(model)
}

/// Writes edits in the format of `--edit`.
fn save_edits(edits: &[SenseEdit], path: &Path) -> Result<()> {
    let write = || -> Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(fs::write(path, format!("{}\n", evals::edits_json(edits)))?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
