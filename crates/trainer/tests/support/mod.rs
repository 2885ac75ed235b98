//! Helpers that the tests of training steps share.

use serde_json::Value;
use trainer::{Decay, OptimizerConfig, ScheduleConfig};

/// Returns the hyperparameters of the twenty steps of a fixture, from its `train.json`.
pub(crate) fn hyperparameters(train: &Value) -> (OptimizerConfig, ScheduleConfig) {
    let number = |key: &str| train["hp"][key].as_f64().unwrap();
    let optimizer = OptimizerConfig {
        learning_rate: number("peak_lr"),
        betas: (0.9, 0.999),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        grad_clip: number("clip"),
    };
    let schedule = ScheduleConfig {
        warmup_steps: number("warmup_steps") as u64,
        max_steps: number("steps") as u64,
        decay: Decay::Linear,
        min_learning_rate: 0.0,
    };
    (optimizer, schedule)
}
