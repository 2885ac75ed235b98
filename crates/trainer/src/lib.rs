//! Training: config, schedule, optimiser, the loop, checkpoints, metrics.
//!
//! `run.rs` is the place to start reading: a training step in the order it happens.

mod batches;
mod bench;
mod bench_rows;
mod checkpoint;
mod config;
mod config_file;
mod console;
mod cpus;
mod deadline;
mod environment;
mod local_ranks;
mod matmul_peak;
mod metrics;
mod nodelist;
mod optimizer;
mod plan;
mod plot;
mod prefetch;
mod retention;
mod run;
mod run_folder;
mod schedule;
mod setup;
mod slurm;
mod state;
mod step;
mod stop;
mod tensorboard;
mod threads;
mod watchdog;
mod world;

pub use batches::{BatchConfig, Batches, MicroBatch};
pub use bench::{BenchReport, BenchRequest, bench};
pub use checkpoint::{CheckpointConfig, read_state, verify_model};
pub use config::{Config, Device, Precision, RunConfig, ValidationConfig};
pub use deadline::{Deadline, parse_duration, slurm_time_left};
pub use local_ranks::LocalRanks;
pub use matmul_peak::matmul_peak;
pub use metrics::LoggingConfig;
pub use optimizer::{Optimizer, OptimizerConfig};
pub use plan::Plan;
pub use plot::plot;
pub use run::{Outcome, Request, Resume, train};
pub use schedule::{Decay, ScheduleConfig};
pub use setup::select_device;
pub use state::State;
pub use step::{StepResult, training_step};
pub use stop::Stop;
pub use threads::{Threads, set_threads};
pub use watchdog::Watchdog;
pub use world::{World, WorldFlags, WorldSource};
