//! The command `train`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use trainer::{DeviceKind, Resume, Stop, TrainOptions, TrainOutcome};

use crate::args::config::ConfigArgs;
use crate::args::distributed::DistributedArgs;
use crate::exit::EXIT_STOPPED;

/// Train a model, or resume a run
///
/// Exits with code 85 if the run is stopped early with a checkpoint saved: by --stop-after,
/// --time-limit, the end of a Slurm job, SIGINT, SIGTERM or SIGUSR1. To train with several
/// processes, start it with `backpack launch`, torchrun or srun.
///
/// Example: backpack train --config configs/quickstart.toml --resume auto
#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Run directory for checkpoints, metrics and logs [default: runs/<run.name>]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Checkpoint to resume from. never: none, and refuse a run directory with checkpoints; auto:
    /// the newest valid one, or a new run if there is none; or a checkpoint directory
    #[arg(long, value_name = "never|auto|CHECKPOINT", default_value = "never")]
    resume: String,
    /// Save a checkpoint after this step and exit with code 85
    #[arg(long, value_name = "STEP")]
    stop_after: Option<u64>,
    /// Save a checkpoint and exit with code 85 before this time is over: 3h50m, 90m, 2d or a
    /// number of seconds [default: the time limit of the Slurm job, if any]
    #[arg(long, value_name = "DURATION", value_parser = trainer::parse_duration)]
    time_limit: Option<Duration>,
    /// Profile N steps after the first three: times by part in the log, and a trace in
    /// profile.json of the run directory for chrome://tracing or ui.perfetto.dev [default: 0]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    profile: u64,
    /// Check the configuration and the data, print a summary of the run, and exit
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(crate) world: DistributedArgs,
}

impl Train {
    /// Trains until the last step or a stop.
    pub(crate) fn run(self, stop: &Stop) -> Result<ExitCode> {
        let world = self.world.detect()?;
        let config = self.config.load()?;
        let run_dir = self.run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&config.run.name));
        // Environment variables can be set only before the trainer starts threads.
        if world.size > 1
            && config.run.device != DeviceKind::Cpu
            && let Err(error) = trainer::enable_flight_recorder(&run_dir, world.size)
        {
            eprintln!("warning: the flight recorder of NCCL keeps its defaults: {error:#}");
        }
        let options = TrainOptions {
            world,
            run_dir,
            resume: match self.resume.as_str() {
                "never" => Resume::Never,
                "auto" => Resume::Auto,
                checkpoint => Resume::From(PathBuf::from(checkpoint)),
            },
            stop_after: self.stop_after,
            time_limit: self.time_limit,
            profile: self.profile,
            dry_run: self.dry_run,
        };
        Ok(match trainer::train(&config, &options, stop)? {
            TrainOutcome::Finished | TrainOutcome::DryRun => ExitCode::SUCCESS,
            TrainOutcome::Stopped => ExitCode::from(EXIT_STOPPED),
        })
    }
}
