//! The command `export`: writes a model in the format of Hugging Face transformers.

mod hugging_face;
mod model_card;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use evals::Tokenizer;
use model::{Architecture, CONFIG_FILE, LanguageModel, ModelConfig, SENSE_TABLE_FILE, WEIGHTS_FILE, write_tensors};
use serde_json::json;

use crate::args::model::{DeviceArgs, TextArgs};
use crate::commands::export::hugging_face::DType;
use crate::output::atomic_dir::AtomicDir;
use crate::output::files::{copy, write_json};
use crate::output::progress::LogProgress;

/// Export a checkpoint as a Hugging Face model directory
///
/// Writes the weights, config.json, the tokenizer files, the PyTorch code of a Backpack and a model
/// card. The tokenizer files are skipped if the model's vocabulary is smaller than the tokenizer's.
///
/// Example: backpack export --checkpoint runs/quickstart/checkpoints/step-00000800 --output runs/quickstart-model
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// Training checkpoint or model directory
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// Model directory to write; must be new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Data type of the tensors
    #[arg(long, value_enum, default_value = "fp32")]
    dtype: DType,
    /// Also write the senses of all words (senses.safetensors), so that generate, senses and serve
    /// need not run the sense network
    #[arg(long)]
    senses: bool,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Export {
    /// Writes the model directory.
    pub(crate) fn run(self) -> Result<()> {
        if self.checkpoint.join("checkpoints").is_dir() {
            bail!(
                "{0} is a run directory: choose one of the checkpoints in {0}/checkpoints",
                self.checkpoint.display()
            );
        }
        let output = AtomicDir::new(&self.output)?;
        let mut model = self.device.load(&self.checkpoint)?;
        self.text.apply_edits(&mut model, &self.checkpoint)?;

        let mut notes = Vec::new();
        output
            .fill(|directory| {
                notes = self.write_tokenizer(model.config(), directory)?;
                self.write_model(&model, directory, notes.is_empty())
            })
            .with_context(|| format!("cannot export {}", self.checkpoint.display()))?;
        let mut out = io::stdout().lock();
        for note in notes {
            writeln!(out, "{note}")?;
        }
        writeln!(out, "exported {} to {}", self.checkpoint.display(), self.output.display())?;
        Ok(())
    }

    /// Writes the weights, the configuration, the modeling files and the model card.
    fn write_model(&self, model: &LanguageModel, directory: &Path, has_tokenizer: bool) -> Result<()> {
        let (config, tensors) = model::export_tensors(model, self.dtype.kind())?;
        write_tensors(&directory.join(WEIGHTS_FILE), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
        let edited = model.edited_tokens().len();
        write_json(directory, CONFIG_FILE, &hugging_face::config_json(&config, self.dtype, has_tokenizer, edited))?;
        write_json(directory, "generation_config.json", &hugging_face::generation_config_json(&config))?;
        if config.architecture == Architecture::Backpack {
            for (name, text) in hugging_face::MODELING_FILES {
                fs::write(directory.join(name), text)?;
            }
        }
        if self.senses {
            let mut progress = LogProgress::new();
            let vocab_size = config.vocab_size;
            // The senses of the written weights, which may be rounded.
            let written = model::load_model(directory, model.device())?;
            written.write_sense_table(&directory.join(SENSE_TABLE_FILE), self.dtype.kind(), &mut |done| {
                progress.log(|| format!("senses of {done} of {vocab_size} words"));
            })?;
        }
        let state = trainer::read_state(&self.checkpoint)?;
        // A checkpoint is in RUN/checkpoints; the model card gets a plot of the run's losses.
        let checkpoint = self.checkpoint.canonicalize()?;
        let run_dir = checkpoint.parent().and_then(Path::parent).filter(|dir| dir.join("metrics.jsonl").is_file());
        let has_plot = match (run_dir, &state) {
            (Some(run_dir), Some(_)) => trainer::plot(&[run_dir.to_owned()], &[], &directory.join("loss.svg")).is_ok(),
            _ => false,
        };
        fs::write(directory.join("README.md"), model_card::model_card(&config, state.as_ref(), has_plot))?;
        Ok(())
    }

    /// Writes the tokenizer files if the model's vocabulary is large enough. Returns a message if
    /// they are skipped.
    fn write_tokenizer(&self, config: &ModelConfig, directory: &Path) -> Result<Vec<String>> {
        let Some(path) = Tokenizer::find_path(self.text.tokenizer.as_deref(), &self.checkpoint) else {
            return Ok(vec![format!(
                "skipped the tokenizer files: no tokenizer.json in {} or at {} (choose one with --tokenizer)",
                self.checkpoint.display(),
                Tokenizer::DEFAULT
            )]);
        };
        let size = Tokenizer::open(&path)?.vocab_size() as i64;
        if config.vocab_size < size {
            return Ok(vec![format!(
                "skipped the tokenizer files: the model's vocabulary of {} is smaller than the tokenizer's {size}",
                config.vocab_size
            )]);
        }
        copy(&path, &directory.join("tokenizer.json"))?;
        // The files of the slow tokenizer, if they are in the same directory.
        for name in ["vocab.json", "merges.txt"] {
            let file = path.with_file_name(name);
            if file.is_file() {
                copy(&file, &directory.join(name))?;
            }
        }
        let end = "<|endoftext|>";
        let special = json!({ "bos_token": end, "eos_token": end, "unk_token": end });
        write_json(directory, "special_tokens_map.json", &special)?;
        let tokenizer_config = json!({
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": config.n_positions,
            "add_prefix_space": false,
            "bos_token": end,
            "eos_token": end,
            "unk_token": end,
        });
        write_json(directory, "tokenizer_config.json", &tokenizer_config)?;
        Ok(Vec::new())
    }
}
