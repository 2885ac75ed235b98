//! The command `import`.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::output::atomic_dir::AtomicDir;
use crate::output::files::copy;

/// Convert a Hugging Face model or a checkpoint of the Backpack authors into a model directory
///
/// Reads a Backpack or a GPT-2 from model.safetensors or pytorch_model.bin (also split into
/// several files), and Lightning checkpoints (.ckpt) of the Backpack authors' code. Pickle files
/// are parsed as data; no code in them is executed.
///
/// Example: backpack import --input backpack-gpt2 --output runs/backpack-gpt2
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// Hugging Face model directory, or .ckpt file
    #[arg(long, value_name = "DIR|FILE")]
    input: PathBuf,
    /// Model directory to write; must be new or empty
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Number of attention heads of a .ckpt [default: of the config.json next to it, of its
    /// hyper_parameters, or of the published model of this width]
    #[arg(long, value_name = "N")]
    n_head: Option<i64>,
}

/// Files that are copied with the weights: the tokenizer and the generation settings.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
];

impl Import {
    /// Writes the model directory and prints what was imported.
    pub(crate) fn run(self) -> Result<()> {
        let output = AtomicDir::new(&self.output)?;
        let imported = model::import(&self.input, self.n_head)?;
        let mut copied = Vec::new();
        output.fill(|directory| {
            model::save_model(&imported.model, directory)?;
            for name in TOKENIZER_FILES {
                let from = self.input.join(name);
                if from.is_file() {
                    copy(&from, &directory.join(name))?;
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
