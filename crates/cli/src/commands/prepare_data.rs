use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use data_prep::{PrepareOptions, Recipe};

use crate::progress::Bar;
use crate::tokenizer;

/// Tokenise text into shards
///
/// Reads .jsonl (plain, .gz, .zst), .parquet and .txt files; documents number from 0 over
/// the inputs in their order. Example: backpack prepare-data --input data/demo.jsonl --output runs/quickstart-data --val-fraction 0.05
#[derive(Debug, Args)]
pub(crate) struct PrepareData {
    /// Files, folders or quoted globs; may be repeated
    #[arg(long, required = true, num_args = 1.., value_name = "FILE|GLOB|DIR")]
    input: Vec<String>,
    /// The folder to write; must not hold shards yet
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// backpack: empty documents give nothing, <|endoftext|> in a text is the special token;
    /// nanogpt: every document ends with it, one in a text is ordinary text
    #[arg(long, default_value_t = Recipe::Backpack)]
    recipe: Recipe,
    /// The tokenizer.json
    #[arg(long, value_name = "FILE", default_value = tokenizer::DEFAULT)]
    tokenizer: PathBuf,
    /// The key or column that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Share of the documents that goes to validation
    #[arg(long, value_name = "X", default_value_t = 0.0005)]
    val_fraction: f64,
    /// Seeds the split and the order
    #[arg(long, value_name = "N", default_value_t = 2357)]
    split_seed: u64,
    /// Tokens of a shard
    #[arg(long, value_name = "N", default_value_t = 100_000_000)]
    shard_tokens: u64,
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
            threads: self.threads,
        };
        let bar = Bar::new();
        let manifest = data_prep::prepare(&options, &|snapshot| bar.update(snapshot));
        bar.finish();
        let manifest = manifest?;
        let mut out = io::stdout().lock();
        for (name, split) in [("train", &manifest.train), ("val", &manifest.val)] {
            let shards = split.shards.len();
            writeln!(out, "{name:<6} {} documents, {} tokens, {shards} shard(s)", split.documents, split.tokens)?;
        }
        writeln!(out, "wrote  {}", options.output.display())?;
        Ok(())
    }
}
