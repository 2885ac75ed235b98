use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::output::atomic_dir::{AtomicDir, copy};

/// Make a model folder from a Hugging Face folder or the authors' .ckpt
///
/// Reads model.safetensors or pytorch_model.bin, in shards or not, of a Backpack or a GPT-2,
/// and Lightning checkpoints of the Backpack authors' code. Pickles are read as data:
/// nothing in them is run.
/// Example: backpack import --input backpack-gpt2 --output runs/backpack-gpt2
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// A Hugging Face folder, or a .ckpt file
    #[arg(long, value_name = "DIR|FILE")]
    input: PathBuf,
    /// The folder to write; must not hold anything yet
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Attention heads of a .ckpt [default: its hyper_parameters', then the published size's]
    #[arg(long, value_name = "N")]
    n_head: Option<i64>,
}

/// What is no weight and belongs to a model: its tokenizer, and how to generate with it.
const COMPANIONS: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

impl Import {
    pub(crate) fn run(self) -> Result<()> {
        let output = AtomicDir::at(&self.output)?;
        let imported = model::import(&self.input, self.n_head)?;
        let mut copied = Vec::new();
        output.fill(|folder| {
            model::save_model(&imported.model, folder)?;
            for name in COMPANIONS {
                let from = self.input.join(name);
                if from.is_file() {
                    copy(&from, &folder.join(name))?;
                    copied.push(name);
                }
            }
            Ok(())
        })?;
        let mut out = io::stdout().lock();
        for note in imported.notes {
            writeln!(out, "{note}")?;
        }
        if !copied.is_empty() {
            writeln!(out, "copied {}", copied.join(", "))?;
        }
        let config = imported.model.config();
        writeln!(
            out,
            "imported {} to {}: {} parameters, n_embd {}, n_head {}, n_layer {}",
            self.input.display(),
            self.output.display(),
            config.num_parameters(),
            config.n_embd,
            config.n_head,
            config.n_layer
        )?;
        Ok(())
    }
}
