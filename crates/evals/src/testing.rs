//! What the tests of several tasks need.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::fs;
use std::path::{Path, PathBuf};

use model::{Architecture, GPT2_END_OF_TEXT, LanguageModel, ModelConfig};
use tch::Device;

use crate::{Scorer, Tokenizer};

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(Tokenizer::DEFAULT)).unwrap()
}

/// The shape of a model with GPT-2's vocabulary and a context of 8 tokens.
pub(crate) fn config(architecture: Architecture) -> ModelConfig {
    ModelConfig {
        architecture,
        n_embd: 16,
        n_head: 2,
        n_layer: 1,
        n_positions: 8,
        num_senses: 4,
        end_of_text: Some(GPT2_END_OF_TEXT),
        ..ModelConfig::default()
    }
}

/// One of random weights.
pub(crate) fn model(architecture: Architecture) -> LanguageModel {
    let model = LanguageModel::initialize(config(architecture), 3, Device::Cpu).unwrap();
    for (_, parameter) in model.parameters().iter() {
        // Large enough for words to differ.
        let mut parameter = parameter.shallow_clone();
        tch::no_grad(|| parameter *= 10.0);
    }
    model
}

/// Calls `measure` with a scorer of this model.
pub(crate) fn scored<T>(model: &LanguageModel, measure: impl FnOnce(&mut Scorer) -> T) -> T {
    measure(&mut Scorer { model, batch_tokens: 20, progress: &mut |_, _| {} })
}

/// Writes a file into a folder and names it.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}
