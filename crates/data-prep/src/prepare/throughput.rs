//! How fast each stage is by itself, for `benches/stages.rs` and scripts/bench-data.sh.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use rayon::prelude::*;
use tokenizers::Tokenizer;

use crate::sources::{self, Item};
use crate::tokenizer::Encoder;
use crate::tokenizer::recipe::Recipe;

/// MB of UTF-8 text a second (1 MB = 10^6 bytes).
#[derive(Debug, Clone, Copy)]
pub struct Throughput {
    /// Text in the source, in MB.
    pub text: f64,
    /// Reading alone, on one thread.
    pub reading: f64,
    /// Making ids of text in memory, on all threads: the best of three.
    pub tokenising: f64,
    /// The same by the `tokenizers` crate, on the first 10 MB.
    pub definition: f64,
}

/// Measures with a source and a `tokenizer.json` on `threads` threads.
///
/// # Errors
/// When a file cannot be read.
pub fn rates(input: &str, tokenizer: &Path, threads: usize) -> Result<Throughput> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let files = sources::expand(&[input.to_owned()], false)?;
    let start = Instant::now();
    let mut texts = Vec::new();
    for file in &files {
        file.read("text", 0, &mut |item, _| {
            if let Item::Text(text) = item {
                texts.push(text);
            }
            ControlFlow::Continue(())
        })?;
    }
    let text = texts.iter().map(|t| t.len() as f64).sum::<f64>() / 1e6;
    let reading = text / start.elapsed().as_secs_f64();

    let encoder = Encoder::load(tokenizer, Recipe::Backpack, threads)?;
    let mut tokenising = 0f64;
    for _ in 0..3 {
        let start = Instant::now();
        pool.install(|| encoder.encode_all(&texts))?;
        tokenising = tokenising.max(text / start.elapsed().as_secs_f64());
    }

    let definition = Tokenizer::from_file(tokenizer).map_err(anyhow::Error::msg)?;
    let mut some = 0;
    let first: Vec<&String> = texts
        .iter()
        .take_while(|t| {
            some += t.len();
            some < 10_000_000
        })
        .collect();
    let start = Instant::now();
    pool.install(|| first.par_iter().try_for_each(|t| definition.encode_fast(t.as_str(), false).map(|_| ())))
        .map_err(anyhow::Error::msg)
        .context("the definition refuses a text")?;
    let bytes = first.iter().map(|t| t.len() as f64).sum::<f64>();
    Ok(Throughput { text, reading, tokenising, definition: bytes / 1e6 / start.elapsed().as_secs_f64() })
}
