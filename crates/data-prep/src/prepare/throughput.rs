//! Throughput of single stages, for `benches/stages.rs` and `scripts/bench-data.sh`.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::sources::{self, SourceItem};
use crate::tokenizer::Encoder;
use crate::tokenizer::recipe::Recipe;

/// Bytes of text for the measurement of the `tokenizers` crate.
const TOKENIZERS_TEXT_BYTES: usize = 10_000_000;

/// Throughput of each stage in MB of UTF-8 text per second (1 MB = 10^6 bytes).
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// Text in the source, in MB.
    pub text_mb: f64,
    /// Reading on one thread.
    pub reading_mb_s: f64,
    /// Tokenizing text in memory on all threads: the best of three measurements.
    pub tokenizing_mb_s: f64,
    /// Tokenizing the first 10 MB with the `tokenizers` crate on all threads.
    pub tokenizers_mb_s: f64,
}

/// Measures each stage with the text of `input` and a `tokenizer.json`, on `threads` threads.
///
/// # Errors
/// The input or the tokenizer cannot be read.
pub fn measure_throughput(input: &str, tokenizer: &Path, threads: usize) -> Result<Throughput> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let files = sources::expand(&[input.to_owned()], false)?;
    let start = Instant::now();
    let mut texts = Vec::new();
    for file in &files {
        file.read("text", 0, &mut |item, _| {
            if let SourceItem::Text(text) = item {
                texts.push(text);
            }
            ControlFlow::Continue(())
        })?;
    }
    let text_mb = texts.iter().map(|t| t.len() as f64).sum::<f64>() / 1e6;
    let reading_mb_s = text_mb / start.elapsed().as_secs_f64();

    let encoder = Encoder::load(tokenizer, Recipe::Backpack, threads)?;
    let mut tokenizing_mb_s = 0f64;
    for _ in 0..3 {
        let start = Instant::now();
        pool.install(|| encoder.encode_all(&texts))?;
        tokenizing_mb_s = tokenizing_mb_s.max(text_mb / start.elapsed().as_secs_f64());
    }

    let reference = Tokenizer::from_file(tokenizer).map_err(anyhow::Error::msg)?;
    let mut total = 0;
    let first: Vec<&String> = texts
        .iter()
        .take_while(|t| {
            total += t.len();
            total < TOKENIZERS_TEXT_BYTES
        })
        .collect();
    let start = Instant::now();
    pool.install(|| first.par_iter().try_for_each(|t| reference.encode_fast(t.as_str(), false).map(|_| ())))
        .map_err(anyhow::Error::msg)
        .context("the tokenizers crate cannot tokenize a text")?;
    let bytes = first.iter().map(|t| t.len() as f64).sum::<f64>();
    Ok(Throughput {
        text_mb,
        reading_mb_s,
        tokenizing_mb_s,
        tokenizers_mb_s: bytes / 1e6 / start.elapsed().as_secs_f64(),
    })
}
