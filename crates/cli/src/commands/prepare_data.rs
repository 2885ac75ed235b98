//! The command `prepare-data`.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use data_prep::{PrepareOptions, Prepared, Recipe};
use evals::Tokenizer;

use crate::output::progress::TerminalProgress;

/// Time between two commits, which is the work that a killed process loses at most.
const COMMIT_INTERVAL: Duration = Duration::from_secs(5);

/// Tokenize text files into token shards for training
///
/// Reads .jsonl (plain, .gz or .zst), .parquet, .arrow, .txt, the original openwebtext.tar.xz, and
/// JSONL from standard input (-). Documents are numbered from 0, over all inputs in the given
/// order. If the process is killed, the same command resumes the work, except from standard input.
///
/// Example: backpack prepare-data --input data/demo.jsonl --output runs/quickstart-data --val-fraction 0.05
#[derive(Debug, Args)]
pub(crate) struct PrepareData {
    /// Files, directories, quoted glob patterns, or - for JSONL from standard input; may be
    /// repeated
    #[arg(long, required = true, num_args = 1.., value_name = "FILE|GLOB|DIR|-")]
    input: Vec<String>,
    /// Directory to write; must be new or empty, unless it is the complete output of the same
    /// inputs and options
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// backpack: skip empty documents, and read <|endoftext|> in a text as the special token;
    /// nanogpt: end every document with the special token, and read <|endoftext|> in a text as
    /// ordinary text
    #[arg(long, default_value_t = Recipe::Backpack)]
    recipe: Recipe,
    /// Tokenizer file
    #[arg(long, value_name = "FILE", default_value = Tokenizer::DEFAULT)]
    tokenizer: PathBuf,
    /// Key or column that contains the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Fraction of the documents in the validation split
    #[arg(long, value_name = "X", default_value_t = 0.0005, allow_negative_numbers = true)]
    val_fraction: f64,
    /// Random seed of the validation split and of the document order
    #[arg(long, value_name = "N", default_value_t = 2357)]
    split_seed: u64,
    /// Tokens per shard
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    shard_tokens: u64,
    /// Skip malformed documents, and the rest of files that cannot be read, instead of failing.
    /// They are counted, and listed in skipped.jsonl of the output directory
    #[arg(long)]
    skip_bad_documents: bool,
    /// Threads; 0: all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl PrepareData {
    /// Writes the shards and prints their counts.
    pub(crate) fn run(self) -> Result<()> {
        let options = PrepareOptions {
            inputs: self.input,
            output: self.output,
            recipe: self.recipe,
            tokenizer: self.tokenizer,
            text_column: self.text_column,
            val_fraction: self.val_fraction,
            split_seed: self.split_seed,
            shard_tokens: self.shard_tokens,
            skip_bad_documents: self.skip_bad_documents,
            threads: self.threads,
            commit_every: COMMIT_INTERVAL,
        };
        if options.inputs.iter().any(|input| input == "-") {
            eprintln!("reading standard input: if this process is killed, it has to start over");
        }
        let progress = TerminalProgress::new();
        let prepared = data_prep::prepare(&options, &|event| progress.on_event(event));
        progress.finish();
        let Prepared { manifest, already_complete } = prepared?;
        let mut out = io::stdout().lock();
        for (name, split) in [("train", &manifest.train), ("val", &manifest.val)] {
            let shards = split.shards.len();
            writeln!(out, "{name:<6} {} documents, {} tokens, {shards} shard(s)", split.documents, split.tokens)?;
        }
        if manifest.skipped_documents > 0 {
            let list = options.output.join("skipped.jsonl");
            writeln!(out, "skipped {} documents, listed in {}", manifest.skipped_documents, list.display())?;
        }
        let action = if already_complete { "already complete:" } else { "wrote" };
        writeln!(out, "{action} {}", options.output.display())?;
        Ok(())
    }
}
