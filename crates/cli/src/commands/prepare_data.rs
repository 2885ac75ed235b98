use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use data_prep::{PrepareOptions, Prepared, Recipe};
use evals::Tokenizer;

use crate::output::progress::TerminalProgress;

/// What a kill costs at most.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// Tokenise text into shards
///
/// Reads .jsonl (plain, .gz, .zst), .parquet, .arrow, .txt, the original openwebtext.tar.xz,
/// and jsonl from standard input (-); documents number from 0 over the inputs in their
/// order. Killed and started again with the same arguments it goes on where it was (from
/// standard input it cannot). Example: backpack prepare-data --input data/demo.jsonl --output runs/quickstart-data --val-fraction 0.05
#[derive(Debug, Args)]
pub(crate) struct PrepareData {
    /// Files, folders, quoted globs, or - for jsonl from standard input; may be repeated
    #[arg(long, required = true, num_args = 1.., value_name = "FILE|GLOB|DIR|-")]
    input: Vec<String>,
    /// The folder to write; must not hold shards yet
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// backpack: empty documents give nothing, <|endoftext|> in a text is the special token;
    /// nanogpt: every document ends with it, one in a text is ordinary text
    #[arg(long, default_value_t = Recipe::Backpack)]
    recipe: Recipe,
    /// The tokenizer.json
    #[arg(long, value_name = "FILE", default_value = Tokenizer::DEFAULT)]
    tokenizer: PathBuf,
    /// The key or column that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Share of the documents that goes to validation
    #[arg(long, value_name = "X", default_value_t = 0.0005, allow_negative_numbers = true)]
    val_fraction: f64,
    /// Seeds the split and the order
    #[arg(long, value_name = "N", default_value_t = 2357)]
    split_seed: u64,
    /// Tokens of a shard
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    shard_tokens: u64,
    /// Leave out documents that cannot be used and the rest of files that cannot be read;
    /// they are counted, and listed in the output's skipped.jsonl
    #[arg(long)]
    skip_bad_documents: bool,
    /// Threads; 0 for all cores
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl PrepareData {
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
            commit_every: COMMIT_EVERY,
        };
        if options.inputs.iter().any(|input| input == "-") {
            eprintln!("reading standard input: if this is killed, it has to start over");
        }
        let bar = TerminalProgress::new();
        let prepared = data_prep::prepare(&options, &|event| bar.hear(event));
        bar.finish();
        let Prepared { manifest, already_complete } = prepared?;
        let mut out = io::stdout().lock();
        for (name, split) in [("train", &manifest.train), ("val", &manifest.val)] {
            let shards = split.shards.len();
            writeln!(out, "{name:<6} {} documents, {} tokens, {shards} shard(s)", split.documents, split.tokens)?;
        }
        if manifest.skipped_documents > 0 {
            let list = options.output.join("skipped.jsonl");
            writeln!(out, "left out {}, listed in {}", manifest.skipped_documents, list.display())?;
        }
        let what = if already_complete { "was there already, of the same inputs:" } else { "wrote " };
        writeln!(out, "{what} {}", options.output.display())?;
        Ok(())
    }
}
