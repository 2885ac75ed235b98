pub(crate) mod hugging_face;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use evals::Tokenizer;
use model::{Architecture, CONFIG_FILE, LanguageModel, ModelConfig, SENSE_TABLE_FILE, WEIGHTS_FILE, write_tensors};
use serde_json::json;

use crate::args::model::{DeviceArgs, TextArgs};
use crate::commands::export::hugging_face::{DType, write_json};
use crate::output::atomic_dir::{AtomicDir, copy};
use crate::output::progress::LogProgress;

/// Write a Hugging Face folder from a checkpoint
///
/// Example: backpack export --checkpoint runs/quickstart/checkpoints/step-00000800 --output runs/quickstart-model
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A training checkpoint (or another model folder)
    #[arg(long, value_name = "DIR")]
    checkpoint: PathBuf,
    /// The folder to write; must not hold anything yet
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Type of the tensors
    #[arg(long, value_enum, default_value = "fp32")]
    dtype: DType,
    /// Write the senses of all words too (senses.safetensors): generate, senses and serve then
    /// skip the sense network
    #[arg(long)]
    senses: bool,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    machine: DeviceArgs,
}

impl Export {
    pub(crate) fn run(self) -> Result<()> {
        if self.checkpoint.join("checkpoints").is_dir() {
            bail!("{0} is a run folder: name one of the checkpoints in {0}/checkpoints", self.checkpoint.display());
        }
        let output = AtomicDir::at(&self.output)?;
        let mut model = self.machine.load(&self.checkpoint)?;
        self.text.edit(&mut model, &self.checkpoint)?;

        let mut notes = Vec::new();
        output
            .fill(|folder| {
                notes = self.write_tokenizer(model.config(), folder)?;
                self.write_model(&model, folder, notes.is_empty())
            })
            .with_context(|| format!("{} cannot be exported", self.checkpoint.display()))?;
        let mut out = io::stdout().lock();
        for note in notes {
            writeln!(out, "{note}")?;
        }
        writeln!(out, "exported {} to {}", self.checkpoint.display(), self.output.display())?;
        Ok(())
    }

    /// Weights, configs, modelling files and card.
    fn write_model(&self, model: &LanguageModel, folder: &Path, has_tokenizer: bool) -> Result<()> {
        let (config, tensors) = model::export_tensors(model, self.dtype.kind())?;
        write_tensors(&folder.join(WEIGHTS_FILE), tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))?;
        let edited = model.edited_tokens().len();
        write_json(folder, CONFIG_FILE, &hugging_face::config_json(&config, self.dtype, has_tokenizer, edited))?;
        write_json(folder, "generation_config.json", &hugging_face::generation_config_json(&config))?;
        if config.architecture == Architecture::Backpack {
            for (name, text) in hugging_face::MODELLING_FILES {
                fs::write(folder.join(name), text)?;
            }
        }
        if self.senses {
            let mut progress = LogProgress::new();
            let all = config.vocab_size;
            // Of the weights as they were written, which may have been rounded.
            let written = model::load_model(folder, model.device())?;
            written.write_sense_table(&folder.join(SENSE_TABLE_FILE), self.dtype.kind(), &mut |done| {
                progress.say(|| format!("senses of {done} of {all} words"));
            })?;
        }
        let state = trainer::read_state(&self.checkpoint)?;
        // A checkpoint lies in RUN/checkpoints; the run's losses make the card's plot.
        let real = self.checkpoint.canonicalize()?;
        let run_dir = real.parent().and_then(Path::parent).filter(|dir| dir.join("metrics.jsonl").is_file());
        let has_plot = match (run_dir, &state) {
            (Some(run_dir), Some(_)) => trainer::plot(&[run_dir.to_owned()], &[], &folder.join("loss.svg")).is_ok(),
            _ => false,
        };
        fs::write(folder.join("README.md"), hugging_face::model_card(&config, state.as_ref(), has_plot))?;
        Ok(())
    }

    /// Tokenizer files, where the model's vocabulary has room for them. Gives what to say.
    fn write_tokenizer(&self, config: &ModelConfig, folder: &Path) -> Result<Vec<String>> {
        let Some(path) = Tokenizer::find_path(self.text.tokenizer.as_deref(), &self.checkpoint) else {
            return Ok(vec![format!(
                "left the tokenizer files out: no tokenizer.json in {} nor at {}; name one with --tokenizer",
                self.checkpoint.display(),
                Tokenizer::DEFAULT
            )]);
        };
        let size = Tokenizer::open(&path)?.vocab_size() as i64;
        if config.vocab_size < size {
            return Ok(vec![format!(
                "left the tokenizer files out: the model's vocabulary of {} is smaller than the tokenizer's {size}",
                config.vocab_size
            )]);
        }
        copy(&path, &folder.join("tokenizer.json"))?;
        // The files of the slow tokenizer, where they lie beside the fast one's.
        for name in ["vocab.json", "merges.txt"] {
            let beside = path.with_file_name(name);
            if beside.is_file() {
                copy(&beside, &folder.join(name))?;
            }
        }
        let end = "<|endoftext|>";
        let special = json!({ "bos_token": end, "eos_token": end, "unk_token": end });
        write_json(folder, "special_tokens_map.json", &special)?;
        let tokenizer_config = json!({
            "tokenizer_class": "GPT2Tokenizer",
            "model_max_length": config.n_positions,
            "add_prefix_space": false,
            "bos_token": end,
            "eos_token": end,
            "unk_token": end,
        });
        write_json(folder, "tokenizer_config.json", &tokenizer_config)?;
        Ok(Vec::new())
    }
}
