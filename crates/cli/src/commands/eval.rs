use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use data_prep::{Split, TokenSplit};
use evals::{Sequences, Share};
use model::Pass;
use serde_json::json;

use crate::compute::Compute;
use crate::progress::Plain;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Task {
    /// Perplexity over the validation split of prepared shards.
    Val,
}

/// Measure a model
///
/// Example: backpack eval --model runs/quickstart/checkpoints/step-00000800 --task val --data runs/quickstart-data
#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    compute: Compute,
    /// What to measure
    #[arg(long, value_enum)]
    task: Task,
    /// What to measure it on: for val, a folder that prepare-data wrote
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Tokens of a sequence [default: the model's context]
    #[arg(long, value_name = "N")]
    sequence_length: Option<usize>,
    /// Sequences computed at once
    #[arg(long, value_name = "N", default_value_t = 8)]
    batch: u64,
    /// Only the first so many sequences; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0)]
    max_sequences: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        let Task::Val = self.task;
        ensure!(self.batch > 0, "--batch is 0: it must be at least 1");
        let model = self.compute.load()?;
        let context = model.config().n_positions as usize;
        let length = self.sequence_length.unwrap_or(context);
        ensure!(
            (1..=context).contains(&length),
            "--sequence-length {length} must be between 1 and the model's context of {context}"
        );
        let split = TokenSplit::open(&self.data, Split::Val, model.config().vocab_size as usize)?;
        if !split.is_checked() {
            eprintln!("warning: {} has no manifest.json: nothing about the data could be checked", self.data.display());
        }
        let mut progress = Plain::new();
        let sequences = Sequences { length, most: self.max_sequences, batch: self.batch, share: Share::WHOLE };
        let validated = evals::validate(&model, &split, sequences, Pass::evaluation(), &mut |done, all| {
            progress.say(|| format!("{done} of {all} sequences"));
            Ok(true)
        })?;
        let Some(validated) = validated else { return Ok(()) };
        let (loss, perplexity) = (validated.loss(), validated.loss().exp());
        let mut out = io::stdout().lock();
        if self.json {
            let object = json!({ "task": "val", "loss": loss, "perplexity": perplexity, "tokens": validated.tokens });
            writeln!(out, "{object}")?;
        } else {
            writeln!(out, "loss {loss:.4}, perplexity {perplexity:.3} over {} tokens", validated.tokens)?;
        }
        Ok(())
    }
}
