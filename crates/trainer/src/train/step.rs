//! One optimiser step.

use anyhow::Result;
use model::{ForwardOptions, LanguageModel};
use tch::{Kind, Tensor};
use torch_ext::profiler::lap;

use crate::distributed::grad_reducer::GradReducer;
use crate::optim::adamw::Optimizer;
use crate::optim::step_guard::StepGuard;

/// What a step leaves on its device; reading it waits for the step.
#[derive(Debug)]
pub struct StepResult {
    /// Mean loss of the whole batch before the update, a scalar.
    pub loss: Tensor,
    /// Global norm of the whole batch's gradient before clipping, a scalar.
    pub grad_norm: Tensor,
    /// How far the loss is above those before it, in standard deviations, a scalar.
    pub z_score: Tensor,
}

/// What a step trains, and how.
#[derive(Debug)]
pub struct StepContext<'a> {
    /// The network.
    pub model: &'a LanguageModel,
    /// Over its parameters.
    pub optimizer: &'a mut Optimizer,
    /// How the ranks' gradients become one.
    pub reduction: &'a GradReducer<'a>,
    /// What is done about a step that is out of the ordinary.
    pub stability: &'a mut StepGuard,
    /// How a pass is done.
    pub pass: ForwardOptions,
}

/// Forward and backward over `accumulation` micro-batches, the last of which makes every
/// gradient the mean over all ranks, then one clipped AdamW update, or none where loss or gradient
/// are not fit for one.
///
/// `micro_batch(i)` gives inputs and targets `[M, T]` of the i-th pass; `seed(i)` seeds its
/// dropout; `mean` makes this rank's loss that of all. All micro-batches are of one size, so that the mean of their means is the
/// batch's mean. The parts of it that [`torch_ext::profiler`] tells apart end at the laps here
/// and at the marks in the model.
///
/// # Errors
/// When a batch cannot be read, another rank is gone, or libtorch refuses.
pub fn training_step(
    trained: StepContext<'_>,
    learning_rate: f64,
    accumulation: u64,
    mut micro_batch: impl FnMut(u64) -> Result<(Tensor, Tensor)>,
    seed: impl Fn(u64) -> u64,
    mean: impl FnOnce(&Tensor) -> Result<()>,
) -> Result<StepResult> {
    let StepContext { model, optimizer, reduction, stability, pass } = trained;
    let mut total = Tensor::zeros([], (Kind::Float, model.device()));
    optimizer.zero_grad()?;
    lap("clip and optimiser");
    for i in 0..accumulation {
        let (ids, targets) = micro_batch(i)?;
        lap("data");
        if pass.dropout > 0.0 {
            tch::manual_seed(seed(i) as i64);
        }
        let last = i + 1 == accumulation;
        reduction.before_forward(last)?;
        let loss = model.loss(&ids, &targets, pass)? / accumulation as f64;
        lap("head and loss");
        reduction.before_backward(last)?;
        let scaled = stability.loss_scale().map(|scale| loss.f_mul(scale)).transpose()?;
        // Where a rank that is gone is noticed, in words of ours.
        scaled.as_ref().unwrap_or(&loss).f_backward().map_err(torch_ext::Error::from)?;
        reduction.after_backward(last, optimizer)?;
        lap("embedding backward");
        total += loss.detach();
    }
    // The ranks have the same gradients by now; with one loss they decide alike.
    mean(&total)?;
    let decision = stability.decide(&total)?;
    let update = optimizer.update(learning_rate, stability.update_guard(&decision))?;
    stability.record(&decision, &update)?;
    lap("clip and optimiser");
    Ok(StepResult { loss: total, grad_norm: update.grad_norm, z_score: decision.z_score })
}
