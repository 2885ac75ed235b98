//! A tiny model and its state, for the tests of checkpoints.

use model::{LanguageModel, ModelConfig};
use serde_json::Value;
use tch::Device;

use crate::checkpoint::state::TrainState;
use crate::optim::adamw::{Optimizer, OptimizerConfig};

/// Returns a tiny Backpack with new weights, and its optimizer.
pub(crate) fn tiny_model() -> (LanguageModel, Optimizer) {
    let config = ModelConfig {
        n_embd: 8,
        n_head: 2,
        n_layer: 1,
        num_senses: 2,
        vocab_size: 11,
        n_positions: 4,
        ..ModelConfig::default()
    };
    let model = LanguageModel::initialize(config, 1, Device::Cpu).unwrap();
    let optimizer = Optimizer::new(OptimizerConfig::default(), &model);
    (model, optimizer)
}

/// Returns the state of a run after `step` steps.
pub(crate) fn state(step: u64, val_loss: Option<f64>) -> TrainState {
    TrainState { step, val_loss, ..TrainState::new("", Value::Null, None, 10).unwrap() }
}
