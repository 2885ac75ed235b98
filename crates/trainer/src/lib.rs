//! Training: config, schedule, optimiser, the loop, checkpoints, metrics.
//!
//! `run.rs` is the place to start reading: a training step in the order it happens.

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
pub use config::Config;
pub use distributed::grad_reducer::GradReducer;
pub use distributed::local_ranks::LocalRanks;
pub use distributed::world::{World, WorldFlags};
pub use optim::adamw::{Optimizer, OptimizerConfig};
pub use optim::lr_schedule::{Decay, ScheduleConfig};
pub use optim::step_guard::{StepGuard, StepGuardConfig, StepStats};
pub use perf::cost::CostRates;
pub use perf::matmul_peak::matmul_peak;
pub use plan::{PlanOptions, RunPlan, measured_throughput};
pub use runtime::device::{DeviceKind, select_device};
pub use runtime::signals::Stop;
pub use runtime::threads::set_threads;
pub use runtime::time_limit::parse_duration;
pub use status::Status;
pub use status::plot::{ReferenceLine, plot};
pub use train::step::{StepContext, training_step};
pub use train::{Resume, TrainOptions, TrainOutcome, train};
