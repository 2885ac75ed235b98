//! What a run writes besides checkpoints: the run directory, log, metrics, TensorBoard events, sessions.

pub(crate) mod console;
pub(crate) mod metrics;
pub(crate) mod run_dir;
pub(crate) mod run_logger;
pub(crate) mod sessions;
pub(crate) mod tensorboard;
