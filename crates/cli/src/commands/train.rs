use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use trainer::{Resume, Stop, TrainOptions, TrainOutcome};

use crate::args::config::ConfigArgs;
use crate::args::distributed::DistributedArgs;

/// Train a model as a TOML file says, or go on with a run
///
/// Exits with 85 when it was stopped early (--stop-after, --time-limit, SIGINT, SIGTERM,
/// SIGUSR1) with a checkpoint saved. One of several processes where a launcher says so:
/// backpack launch, torchrun's variables, Slurm's srun. Example: backpack train --config configs/quickstart.toml --resume auto
#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    config: ConfigArgs,
    /// Where checkpoints, metrics and logs go [default: runs/<run.name>]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// never: refuse a run folder that holds checkpoints; auto: from the newest that
    /// verifies, else afresh; or a checkpoint folder
    #[arg(long, value_name = "never|auto|CHECKPOINT", default_value = "never")]
    resume: String,
    /// Save a checkpoint after this step and exit with 85
    #[arg(long, value_name = "STEP")]
    stop_after: Option<u64>,
    /// Save a checkpoint and exit with 85 before this time is over: 3h50m, 90m, 2d or seconds;
    /// the end of a Slurm job is known without it
    #[arg(long, value_name = "DURATION", value_parser = trainer::parse_duration)]
    time_limit: Option<Duration>,
    /// Write where the time of N steps goes, after the first three: by part in the log, and as
    /// profile.json in the run folder, which chrome://tracing and ui.perfetto.dev open
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    profile: u64,
    /// Check the configuration and the data, say what would run, and run nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    pub(crate) world: DistributedArgs,
}

impl Train {
    pub(crate) fn run(self, stop: &Stop) -> Result<ExitCode> {
        let world = self.world.detect()?;
        let config = self.config.load()?;
        let request = TrainOptions {
            world,
            run_dir: self.run_dir.unwrap_or_else(|| PathBuf::from("runs").join(&config.run.name)),
            resume: match self.resume.as_str() {
                "never" => Resume::Never,
                "auto" => Resume::Auto,
                folder => Resume::From(PathBuf::from(folder)),
            },
            stop_after: self.stop_after,
            time_limit: self.time_limit,
            profile: self.profile,
            dry_run: self.dry_run,
        };
        Ok(match trainer::train(&config, &request, stop)? {
            TrainOutcome::Finished | TrainOutcome::DryRun => ExitCode::SUCCESS,
            TrainOutcome::Stopped => ExitCode::from(crate::STOPPED),
        })
    }
}
