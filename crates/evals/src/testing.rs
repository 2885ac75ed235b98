//! Models, tokenizers and files that the tests of several modules use.
#![allow(clippy::unwrap_used)] // test helpers; clippy exempts only test functions

use std::fs;
use std::path::{Path, PathBuf};

use model::{Architecture, GPT2_END_OF_TEXT, LanguageModel, ModelConfig};
use tch::{Device, Kind, Tensor};

use crate::senses::inspect::sense_vectors;
use crate::{Scorer, Tokenizer};

/// Returns a path relative to the root of the repository.
fn in_repository(path: impl AsRef<Path>) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// Returns the path of GPT-2's `tokenizer.json`.
pub(crate) fn tokenizer_path() -> PathBuf {
    in_repository(Tokenizer::DEFAULT)
}

pub(crate) fn tokenizer() -> Tokenizer {
    Tokenizer::open(&tokenizer_path()).unwrap()
}

/// Returns the shape of a model with GPT-2's vocabulary and a context of 8 tokens.
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

/// Returns a model of this [`config`] with random weights.
pub(crate) fn model(architecture: Architecture) -> LanguageModel {
    let model = LanguageModel::initialize(config(architecture), 3, Device::Cpu).unwrap();
    for (_, parameter) in model.parameters().iter() {
        // Large enough for the words to differ.
        let mut parameter = parameter.shallow_clone();
        tch::no_grad(|| parameter *= 10.0);
    }
    model
}

/// Loads a Backpack of `tests/fixtures/backpack`: 311 token ids, a context of 32 tokens.
pub(crate) fn fixture(name: &str) -> LanguageModel {
    model::load_model(&in_repository("tests/fixtures/backpack").join(name), Device::Cpu).unwrap()
}

/// Returns the senses of words as `[word][sense][D]` and the embeddings as `[id][D]`, for tests
/// that compute with explicit loops.
#[allow(clippy::type_complexity)] // the type shows the shape
pub(crate) fn senses_and_embeddings(model: &LanguageModel, words: &[i64]) -> (Vec<Vec<Vec<f64>>>, Vec<Vec<f64>>) {
    let rows = |matrix: &Tensor| -> Vec<Vec<f64>> {
        (0..matrix.size()[0]).map(|row| Vec::try_from(matrix.get(row).to_kind(Kind::Double)).unwrap()).collect()
    };
    let senses = |word: &i64| rows(&sense_vectors(model, &[*word]).unwrap().squeeze_dim(0));
    (words.iter().map(senses).collect(), rows(model.backpack().unwrap().body().wte()))
}

/// Calls `measure` with a scorer of this model.
pub(crate) fn with_scorer<T>(model: &LanguageModel, measure: impl FnOnce(&mut Scorer) -> T) -> T {
    measure(&mut Scorer { model, batch_tokens: 20, progress: &mut |_, _| {} })
}

/// Writes a file into a directory and returns its path.
pub(crate) fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    path
}
