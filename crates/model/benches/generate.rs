//! Tokens per second of greedy generation at batch 1: with what the decoder keeps, and by
//! computing the whole prefix anew for each token. Fresh weights: the speed is the same.
//!
//!     cargo bench --workspace --bench generate [-- TOKENS [MODEL_FOLDER]]
//!
//! With a model folder that model is measured, with its caches alone.

use std::path::Path;
use std::time::Instant;

use model::{Kind, LanguageModel, ModelConfig, Pass, Sampling, generate, load_folder};
use tch::{Device, Tensor};

const PROMPT: [i64; 1] = [464];

/// Tokens per second of `make`, which generates `tokens`; the best of three, after one.
fn rate(tokens: usize, mut make: impl FnMut()) -> f64 {
    let mut seconds = || {
        let begun = Instant::now();
        make();
        begun.elapsed().as_secs_f64()
    };
    seconds();
    tokens as f64 / (0..3).map(|_| seconds()).fold(f64::INFINITY, f64::min)
}

fn cached(model: &LanguageModel, tokens: usize) -> f64 {
    rate(tokens, || drop(generate(model, &PROMPT, tokens, Sampling::Greedy).expect("a valid prompt")))
}

/// The plain way: the logits of the whole prefix for each token.
fn recomputed(model: &LanguageModel, tokens: usize) -> f64 {
    rate(tokens, || {
        let mut ids = PROMPT.to_vec();
        for _ in 0..tokens {
            let input = Tensor::from_slice(&ids).unsqueeze(0);
            let hidden = tch::no_grad(|| model.hidden(&input, Pass::evaluation()));
            let logits = model.head(&hidden.select(1, -1), Pass::evaluation());
            ids.push(logits.argmax(-1, false).int64_value(&[0]));
        }
    })
}

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    let tokens = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(256);
    torch_ext::keep_freed_memory();
    tch::set_num_threads(std::thread::available_parallelism().map_or(1, usize::from) as i32);
    if let Some(folder) = arguments.next() {
        let model = load_folder(Path::new(&folder), Device::Cpu).expect("a model folder");
        println!("{{\"tokens_per_s\": {:.1}}}", cached(&model, tokens));
        return;
    }
    println!("{tokens} tokens     with caches  recomputed   ratio  (tokens/s)");
    for (name, kind) in [("micro Backpack", Kind::Backpack), ("micro GPT-2", Kind::Gpt2)] {
        let shape = ModelConfig { n_embd: 384, n_head: 6, n_layer: 6, kind, ..ModelConfig::default() };
        let model = LanguageModel::initialise(shape, 1, Device::Cpu).expect("the shapes are the paper's");
        let (with, without) = (cached(&model, tokens), recomputed(&model, tokens));
        println!("{name:<16} {with:>9.0} {without:>11.1} {:>7.1}", with / without);
    }
}
