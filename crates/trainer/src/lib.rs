//! Training of language models: configuration, training loop, checkpoints, logs, and the commands
//! that plan, monitor and benchmark a run.
//!
//! [`train()`] is the entry point. `train/mod.rs` shows the training loop and `train/step.rs` one
//! step, in the order of execution. The other folders, from the bottom of the import graph to the
//! top (a folder imports only from those above it in this list):
//!
//! | folder or file | content |
//! |---|---|
//! | `stats`, `time` | statistics of a few numbers; dates and durations as text |
//! | `perf` | FLOPs per token, peak throughput, the step profiler, energy and price |
//! | `data` | the batches of a run and their prefetching |
//! | `optim` | AdamW, the learning-rate schedule, loss scaling, the step guard |
//! | `logging` | run directory, console, `metrics.jsonl`, TensorBoard, sessions |
//! | `distributed` | rank and world size, collectives, gradient averaging |
//! | `runtime` | device, CPU threads, host memory, signals, time limit, watchdog |
//! | `checkpoint` | writing, reading, verification and retention of checkpoints |
//! | `config` | the whole [`Config`] and the reader of configuration files |
//! | `train`, `plan`, `status` | the commands `train`, `plan`, `status` and `plot` |
//! | `bench` | the command `bench` |
//!
//! The struct of a configuration section is defined next to the code that it configures. Only the
//! folders from `config` on use the whole [`Config`].
//!
//! A function that calls libtorch returns an error if the call fails. `# Errors` sections list only
//! the other causes.

mod bench;
mod checkpoint;
mod config;
mod data;
mod distributed;
mod logging;
mod optim;
mod perf;
mod plan;
mod runtime;
mod stats;
mod status;
mod time;
mod train;

pub use bench::{BenchOptions, BenchReport, bench};
pub use checkpoint::state::TrainState;
pub use checkpoint::{read_state, verify_model};
pub use config::{Config, Precision};
pub use distributed::collectives::Collectives;
pub use distributed::flight_recorder::enable_flight_recorder;
pub use distributed::grad_reducer::GradReducer;
pub use distributed::local_ranks::LocalRanks;
pub use distributed::world::{World, WorldFlags};
pub use optim::adamw::{Optimizer, OptimizerConfig};
pub use optim::lr_schedule::{Decay, ScheduleConfig};
pub use optim::step_guard::{StepGuard, StepGuardConfig, StepStats};
pub use perf::cost::CostRates;
pub use perf::matmul_peak::matmul_peak;
pub use plan::memory::gigabytes;
pub use plan::{PlanOptions, RunPlan, measured_throughput};
pub use runtime::device::{DeviceKind, device_type, select_device};
pub use runtime::gpu_count::visible_gpus;
pub use runtime::signals::Stop;
pub use runtime::threads::set_threads;
pub use status::Status;
pub use status::plot::{ReferenceLine, plot};
pub use time::parse_duration;
pub use train::options::{Resume, TrainOptions, TrainOutcome};
pub use train::step::{MicroBatch, StepContext, training_step};
pub use train::train;
