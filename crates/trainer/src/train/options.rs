//! The options and the outcome of `backpack train`.

use std::path::PathBuf;
use std::time::Duration;

use crate::distributed::world::World;

/// The state that a run starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Step 0. An error if the run directory holds checkpoints.
    Never,
    /// The newest checkpoint that verifies, or step 0 if there is none.
    Auto,
    /// The checkpoint in this directory.
    From(PathBuf),
}

/// The options of a training run that are not part of the configuration.
#[derive(Debug, Clone)]
pub struct TrainOptions {
    /// The rank of this process and the world size.
    pub world: World,
    /// The run directory.
    pub run_dir: PathBuf,
    /// The state that the run starts from.
    pub resume: Resume,
    /// Save a checkpoint after this step and stop.
    pub stop_after: Option<u64>,
    /// Save a checkpoint and stop before this time has passed. The end of a Slurm job is a limit
    /// too.
    pub time_limit: Option<Duration>,
    /// Number of steps to profile, after the first few; 0 for none.
    pub profile: u64,
    /// Check the configuration and the data, print the summary, and do not train.
    pub dry_run: bool,
}

/// How a training run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainOutcome {
    /// All steps are done.
    Finished,
    /// Stopped early, with a checkpoint.
    Stopped,
    /// A dry run: nothing was trained.
    DryRun,
}
