//! One training step: gradient accumulation, reduction, clipping and the optimizer's update.

use anyhow::Result;
use model::{ForwardOptions, LanguageModel, TokenBatch};
use tch::{Kind, Tensor};
use torch_ext::profiler::{Section, end_section};

use crate::distributed::collectives::Collectives;
use crate::distributed::grad_reducer::GradReducer;
use crate::optim::adamw::Optimizer;
use crate::optim::step_guard::StepGuard;

/// A part of a step's batch that is computed at once.
#[derive(Debug)]
pub struct MicroBatch {
    /// Token ids, `[M, T]` int64.
    pub inputs: TokenBatch,
    /// The next token of each input, `[M, T]` int64.
    pub targets: Tensor,
    /// Seeds the dropout masks.
    pub dropout_seed: u64,
}

/// The objects that a training step reads and changes.
#[derive(Debug)]
pub struct StepContext<'a> {
    /// The trained model.
    pub model: LanguageModel,
    /// The optimizer of the model's parameters.
    pub optimizer: Optimizer,
    /// Skips steps that cannot be used.
    pub step_guard: StepGuard,
    /// Averages the gradients over the ranks.
    pub grad_reducer: GradReducer<'a>,
    /// Averages the loss over the ranks.
    pub collectives: &'a Collectives,
    /// Precision, dropout and kernels of the forward pass.
    pub forward_options: ForwardOptions,
}

/// The figures of a step, on its device. Reading them waits for the step.
#[derive(Debug)]
pub struct StepResult {
    /// Mean loss of the whole batch before the update, a scalar.
    pub loss: Tensor,
    /// Global norm of the whole batch's gradient before clipping, a scalar.
    pub grad_norm: Tensor,
    /// Deviation of the loss from the mean of the previous ones, in standard deviations, a scalar.
    pub z_score: Tensor,
}

/// Runs one step: forward and backward passes over the micro-batches, of which the last one
/// averages the gradients over the ranks, and then one clipped AdamW update, which the step guard
/// may skip.
///
/// All micro-batches have the same size, so that the mean of their losses is the mean of the batch.
/// Each part of the step ends with a call of [`end_section`] here or in the model.
///
/// # Errors
/// A micro-batch cannot be read, or another rank has disconnected.
pub fn training_step(
    context: &mut StepContext<'_>,
    learning_rate: f64,
    micro_batches: impl ExactSizeIterator<Item = Result<MicroBatch>>,
) -> Result<StepResult> {
    let StepContext { model, optimizer, step_guard, grad_reducer, collectives, forward_options } = context;
    let accumulation = micro_batches.len();
    let mut loss = Tensor::zeros([], (Kind::Float, model.device()));
    optimizer.zero_grad()?;
    end_section(Section::ClipAndOptimizer);
    for (i, micro_batch) in micro_batches.enumerate() {
        let MicroBatch { inputs, targets, dropout_seed } = micro_batch?;
        end_section(Section::Data);
        if forward_options.dropout > 0.0 {
            tch::manual_seed(dropout_seed as i64);
        }
        let last = i + 1 == accumulation;
        grad_reducer.before_forward(last)?;
        let part = model.loss(inputs, &targets, *forward_options)? / accumulation as f64;
        end_section(Section::HeadAndLoss);
        grad_reducer.before_backward(last)?;
        let scaled = step_guard.loss_scale().map(|scale| part.f_mul(scale)).transpose()?;
        // A disconnected rank is detected here; this error type has the message for it.
        scaled.as_ref().unwrap_or(&part).f_backward().map_err(torch_ext::Error::from)?;
        grad_reducer.after_backward(last, optimizer)?;
        end_section(Section::EmbeddingBackward);
        loss += part.detach();
    }
    // All ranks now have the same gradients and loss, so they make the same decision.
    collectives.average(&loss)?;
    let decision = step_guard.decide(&loss)?;
    let update = optimizer.update(learning_rate, step_guard.update_guard(&decision))?;
    step_guard.record(&decision, &update)?;
    end_section(Section::ClipAndOptimizer);
    Ok(StepResult { loss, grad_norm: update.grad_norm, z_score: decision.z_score })
}
