//! How many processes of a run share this host, and which of them this one is.

use anyhow::{Result, ensure};

use crate::distributed::env::{self, Environment, on_terminal};
use crate::distributed::slurm::SlurmStep;

/// This process among those of its run on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRanks {
    /// Processes of the run on this host.
    pub count: usize,
    /// This one, from 0; none where nothing says.
    pub rank: Option<usize>,
}

impl LocalRanks {
    /// The only process.
    pub const ALONE: LocalRanks = LocalRanks { count: 1, rank: Some(0) };

    /// As the launcher says in the environment: torchrun and its like (`LOCAL_WORLD_SIZE`,
    /// `LOCAL_RANK`), else Slurm's srun; without either the process is alone.
    ///
    /// # Errors
    /// When a variable is no such number, or they contradict each other.
    pub fn from_environment() -> Result<Self> {
        let environment = Environment::new(&env::own);
        Self::read(&environment, SlurmStep::read(&environment, on_terminal())?.as_ref())
    }

    pub(crate) fn read(environment: &Environment<'_>, step: Option<&SlurmStep>) -> Result<Self> {
        let of_step = step.and_then(|step| step.local);
        let (says, count) = match (environment.number("LOCAL_WORLD_SIZE")?, of_step) {
            (Some(count), _) => ("LOCAL_WORLD_SIZE", count),
            (None, Some((count, _))) => ("SLURM_STEP_TASKS_PER_NODE", count),
            (None, None) => return Ok(Self::ALONE),
        };
        ensure!(count > 0, "the environment's {says} is 0: it must count this process at least");
        let rank = environment.number("LOCAL_RANK")?.or(of_step.and_then(|(_, rank)| rank));
        if let Some(rank) = rank {
            ensure!(
                rank < count,
                "the environment says that this is local rank {rank} (LOCAL_RANK or SLURM_LOCALID), but {says} says that there are {count}: set both or neither"
            );
        }
        Ok(LocalRanks { count, rank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::env::given;

    fn read(pairs: &str) -> Result<(usize, Option<usize>), String> {
        let variable = given(pairs);
        let environment = Environment::new(&variable);
        let ranks = SlurmStep::read(&environment, false).and_then(|step| LocalRanks::read(&environment, step.as_ref()));
        ranks.map(|ranks| (ranks.count, ranks.rank)).map_err(|error| error.to_string())
    }

    /// What srun sets beside.
    fn task(pairs: &str) -> String {
        format!("SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=10 {pairs}")
    }

    #[test]
    fn launchers_are_understood() {
        for (environment, count, rank) in [
            ("", 1, Some(0)),
            ("LOCAL_WORLD_SIZE=1 LOCAL_RANK=0", 1, Some(0)),
            ("LOCAL_WORLD_SIZE=4 LOCAL_RANK=3", 4, Some(3)),
            ("LOCAL_WORLD_SIZE=4", 4, None),
            (&task("SLURM_STEP_TASKS_PER_NODE=4 SLURM_LOCALID=2"), 4, Some(2)),
            (&task("SLURM_STEP_TASKS_PER_NODE=4(x2),2 SLURM_NODEID=1 SLURM_LOCALID=3"), 4, Some(3)),
            (&task("SLURM_STEP_TASKS_PER_NODE=4(x2),2 SLURM_NODEID=2 SLURM_LOCALID=1"), 2, Some(1)),
            // torchrun, started once a node by srun.
            (&task("LOCAL_WORLD_SIZE=8 LOCAL_RANK=7 SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_LOCALID=0"), 8, Some(7)),
            // A batch script without srun.
            ("SLURM_NTASKS_PER_NODE=4 SLURM_TASKS_PER_NODE=4(x2) SLURM_NODEID=0 SLURM_LOCALID=0", 1, Some(0)),
            ("LOCAL_WORLD_SIZE= LOCAL_RANK=1", 1, Some(0)),
        ] {
            assert_eq!(read(environment), Ok((count, rank)), "{environment}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (environment, says) in [
            ("LOCAL_WORLD_SIZE=two", "LOCAL_WORLD_SIZE is \"two\": it must be a whole number"),
            ("LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE is 0"),
            (
                "LOCAL_WORLD_SIZE=2 LOCAL_RANK=2",
                "local rank 2 (LOCAL_RANK or SLURM_LOCALID), but LOCAL_WORLD_SIZE says that there are 2",
            ),
            ("LOCAL_WORLD_SIZE=2 LOCAL_RANK=-1", "LOCAL_RANK is \"-1\""),
            (
                &task("SLURM_STEP_TASKS_PER_NODE=2 SLURM_LOCALID=2"),
                "local rank 2 (LOCAL_RANK or SLURM_LOCALID), but SLURM_STEP_TASKS_PER_NODE says that there are 2",
            ),
        ] {
            let error = read(environment).unwrap_err();
            assert!(error.contains(says), "{environment}: {error}");
        }
    }
}
