//! The log, metrics, TensorBoard events and session records of a run, and its run directory.

pub(crate) mod console;
pub(crate) mod metrics;
pub(crate) mod run_dir;
pub(crate) mod run_logger;
pub(crate) mod sessions;
pub(crate) mod tensorboard;
