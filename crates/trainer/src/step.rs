//! One optimiser step.

use anyhow::Result;
use model::{LanguageModel, Pass};
use tch::{Kind, Tensor};
use torch_ext::parts::lap;

use crate::optimizer::Optimizer;

/// What a step leaves on its device; reading it waits for the step.
#[derive(Debug)]
pub struct StepResult {
    /// Mean loss of the batch before the update, a scalar.
    pub loss: Tensor,
    /// Global gradient norm before clipping, a scalar.
    pub grad_norm: Tensor,
}

/// Forward and backward over `accumulation` micro-batches, then one clipped AdamW update.
///
/// `micro_batch(i)` gives inputs and targets `[M, T]` of the i-th pass; `seed(i)` seeds its
/// dropout. All micro-batches are of one size, so that the mean of their means is the
/// batch's mean. The parts of it that [`torch_ext::parts`] tells apart end at the laps here
/// and at the marks in the model.
///
/// # Errors
/// When a batch cannot be read or libtorch refuses.
pub fn training_step(
    model: &LanguageModel,
    optimizer: &mut Optimizer,
    pass: Pass,
    learning_rate: f64,
    accumulation: u64,
    mut micro_batch: impl FnMut(u64) -> Result<(Tensor, Tensor)>,
    seed: impl Fn(u64) -> u64,
) -> Result<StepResult> {
    let mut total = Tensor::zeros([], (Kind::Float, model.device()));
    optimizer.zero_grad()?;
    lap("clip and optimiser");
    for i in 0..accumulation {
        let (ids, targets) = micro_batch(i)?;
        lap("data");
        if pass.dropout > 0.0 {
            tch::manual_seed(seed(i) as i64);
        }
        let loss = model.loss(&ids, &targets, pass)? / accumulation as f64;
        lap("head and loss");
        loss.f_backward()?;
        lap("embedding backward");
        total += loss.detach();
    }
    let grad_norm = optimizer.update(learning_rate)?;
    lap("clip and optimiser");
    Ok(StepResult { loss: total, grad_norm })
}
