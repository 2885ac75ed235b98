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
pub use checkpoint::config::CheckpointConfig;
pub use checkpoint::state::TrainState;
pub use checkpoint::{read_state, verify_model};
pub use config::{Config, DeviceKind, Precision, RunConfig, ValidationConfig};
pub use data::batch::{BatchConfig, MicroBatchSize};
pub use distributed::collectives::{Collectives, DistributedConfig};
pub use distributed::grad_reducer::GradReducer;
pub use distributed::local_ranks::LocalRanks;
pub use distributed::world::{World, WorldFlags, WorldSource};
pub use logging::metrics::LoggingConfig;
pub use logging::sessions::{Session, SessionOutcome};
pub use optim::adamw::{Optimizer, OptimizerConfig};
pub use optim::loss_scaler::LossScale;
pub use optim::lr_schedule::{Decay, ScheduleConfig};
pub use optim::step_guard::{StepDecision, StepGuard, StepGuardConfig, StepGuardState, StepStats};
pub use perf::cost::{CostRates, RunCost};
pub use perf::matmul_peak::matmul_peak;
pub use plan::{DiskEstimate, MemoryEstimate, ModelPart, PlanOptions, RunPlan, rate_of_bench};
pub use runtime::device::select_device;
pub use runtime::signals::Stop;
pub use runtime::threads::{Threads, set_threads};
pub use runtime::time_limit::{TimeLimit, parse_duration, slurm_time_left};
pub use runtime::watchdog::Watchdog;
pub use status::health::{Health, Trend};
pub use status::plot::{ReferenceLine, plot};
pub use status::{Activity, CheckpointStatus, Status};
pub use train::options::{Resume, TrainOptions, TrainOutcome};
pub use train::step::{MicroBatch, StepContext, StepResult, training_step};
pub use train::train;
