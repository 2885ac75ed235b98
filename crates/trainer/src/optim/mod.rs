//! Optimization: AdamW, the learning-rate schedule, fp16 loss scaling, and the guard that skips unusable steps.

pub(crate) mod adamw;
pub(crate) mod loss_scaler;
pub(crate) mod lr_schedule;
pub(crate) mod step_guard;
