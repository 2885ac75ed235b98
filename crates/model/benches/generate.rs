//! Measures greedy generation with batch size 1 in tokens per second: with the caches of the decoder,
//! by recomputing the whole prefix for each token, and with senses from a table. The models have
//! random weights, because the speed does not depend on the weights.
//!
//!     cargo bench --workspace --bench generate [-- TOKENS [MODEL_DIR]]
//!
//! With a model directory, only that model is measured, with the caches and with its table of senses
//! if it has one.

use std::path::Path;
use std::time::Instant;

use model::{
    Architecture, ForwardOptions, LanguageModel, ModelConfig, SENSE_TABLE_FILE, Sampling, generate, load_model,
};
use tch::{Device, Tensor};

const PROMPT: [i64; 1] = [464];

/// Returns the tokens per second of `generate_tokens`: the best of three calls, after a warm-up.
fn rate(tokens: usize, mut generate_tokens: impl FnMut()) -> f64 {
    let mut seconds = || {
        let start = Instant::now();
        generate_tokens();
        start.elapsed().as_secs_f64()
    };
    seconds();
    tokens as f64 / (0..3).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

fn cached(model: &LanguageModel, tokens: usize) -> f64 {
    rate(tokens, || drop(generate(model, &PROMPT, tokens, Sampling::Greedy).expect("a valid prompt")))
}

/// Uses a table of the senses of all words. It has 1.2 GB for the micro model.
fn with_table(model: &mut LanguageModel, tokens: usize) -> f64 {
    let dir = tempfile::tempdir().expect("a temporary directory for the table");
    let path = dir.path().join(SENSE_TABLE_FILE);
    model.write_sense_table(&path, tch::Kind::Float, &mut |_| ()).expect("enough disk space for the table");
    model.use_sense_table(&path).expect("the table that was written above");
    cached(model, tokens)
}

/// Recomputes the logits of the whole prefix for each token.
fn recomputed(model: &LanguageModel, tokens: usize) -> f64 {
    rate(tokens, || {
        let mut ids = PROMPT.to_vec();
        for _ in 0..tokens {
            let input = Tensor::from_slice(&ids).unsqueeze(0);
            let hidden = tch::no_grad(|| model.hidden(&input, ForwardOptions::evaluation()));
            let logits = model.head(&hidden.select(1, -1), ForwardOptions::evaluation());
            ids.push(logits.argmax(-1, false).int64_value(&[0]));
        }
    })
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let tokens = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(256);
    torch_ext::keep_freed_memory();
    tch::set_num_threads(std::thread::available_parallelism().map_or(1, usize::from) as i32);
    if let Some(dir) = arguments.next() {
        let dir = Path::new(&dir);
        let mut model = load_model(dir, Device::Cpu).expect("a model directory");
        let table = dir.join(SENSE_TABLE_FILE);
        if table.is_file() {
            model.use_sense_table(&table).expect("a table of this model");
        }
        println!("{{\"tokens_per_s\": {:.1}}}", cached(&model, tokens));
        return;
    }
    println!("{tokens} tokens     with caches  recomputed   ratio  senses from a table  (tokens/s)");
    for (name, architecture) in [("micro Backpack", Architecture::Backpack), ("micro GPT-2", Architecture::Gpt2)] {
        let shape = ModelConfig { n_embd: 384, n_head: 6, n_layer: 6, architecture, ..ModelConfig::default() };
        let mut model = LanguageModel::initialize(shape, 1, Device::Cpu).expect("the shapes are the paper's");
        let (with, without) = (cached(&model, tokens), recomputed(&model, tokens));
        let table = (architecture == Architecture::Backpack).then(|| with_table(&mut model, tokens));
        let table = table.map_or_else(String::new, |rate| format!("{rate:.0}"));
        println!("{name:<16} {with:>9.0} {without:>11.1} {:>7.1} {table:>20}", with / without);
    }
}
