//! The optimizer: AdamW, the learning-rate schedule, loss scaling for fp16, and the step guard.

pub(crate) mod adamw;
pub(crate) mod loss_scaler;
pub(crate) mod lr_schedule;
pub(crate) mod step_guard;
