//! Options of a preparation, and their validation.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::tokenizer::recipe::Recipe;

/// Largest accepted number of CPU threads: more than any machine has cores.
pub const MAX_THREADS: usize = 4_096;

/// Inputs, output and settings of [`prepare()`](crate::prepare()).
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Files, directories and globs, in the order of their documents. `-` is standard input.
    pub inputs: Vec<String>,
    /// Output directory.
    pub output: PathBuf,
    /// Placement of the end-of-text id.
    pub recipe: Recipe,
    /// Path of the `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Key or column that contains the text.
    pub text_column: String,
    /// Fraction of the documents in the validation split, above 0 and below 1.
    pub val_fraction: f64,
    /// Seed of the split and of the order of documents.
    pub split_seed: u64,
    /// Tokens per full shard.
    pub shard_tokens: u64,
    /// Whether to skip unusable documents, and the rest of files that cannot be read.
    pub skip_bad_documents: bool,
    /// Number of threads; 0 for all cores.
    pub threads: usize,
    /// Time between two commits. A killed preparation resumes from the last commit.
    pub commit_every: Duration,
}

impl PrepareOptions {
    /// Checks the ranges of the numeric options.
    ///
    /// # Errors
    /// An option is out of range; the error names its flag.
    pub(crate) fn validate(&self) -> Result<()> {
        let PrepareOptions { val_fraction, shard_tokens, threads, .. } = *self;
        ensure!(
            val_fraction > 0.0 && val_fraction < 1.0,
            "--val-fraction is {val_fraction}: it must be above 0 and below 1"
        );
        ensure!(shard_tokens > 0, "--shard-tokens is 0: it must be at least 1");
        ensure!(threads <= MAX_THREADS, "--threads is {threads}: the maximum is {MAX_THREADS}; 0 uses all cores");
        Ok(())
    }
}
