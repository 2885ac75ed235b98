//! The processes of a run that share this host.

use anyhow::{Result, ensure};

use crate::distributed::env::{self, Environment, on_terminal};
use crate::distributed::slurm::SlurmStep;

/// The position of this process among the processes of its run on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalRanks {
    /// Number of processes of the run on this host.
    pub count: usize,
    /// Rank of this process among the run's processes on this host, from 0. `None` if the launcher
    /// does not provide it.
    pub rank: Option<usize>,
}

impl LocalRanks {
    /// A process that is the only one of its run on this host.
    pub const ALONE: LocalRanks = LocalRanks { count: 1, rank: Some(0) };

    /// Reads the variables of the launcher: `LOCAL_WORLD_SIZE` and `LOCAL_RANK` (torchrun,
    /// `backpack launch`), or else those of Slurm's srun. Without either the process is alone.
    ///
    /// # Errors
    /// A variable is not a number or contradicts another one. The message names it.
    pub fn from_environment() -> Result<Self> {
        let environment = Environment::new(&env::process_variable);
        Self::read(&environment, SlurmStep::read(&environment, on_terminal())?.as_ref())
    }

    /// Reads `environment`. `step` is the Slurm step of this process.
    ///
    /// # Errors
    /// A variable is not a number or contradicts another one. The message names it.
    pub(crate) fn read(environment: &Environment<'_>, step: Option<&SlurmStep>) -> Result<Self> {
        let slurm = step.and_then(|step| step.local);
        let (source, count) = match (environment.number("LOCAL_WORLD_SIZE")?, slurm) {
            (Some(count), _) => ("LOCAL_WORLD_SIZE", count),
            (None, Some((count, _))) => ("SLURM_STEP_TASKS_PER_NODE", count),
            (None, None) => return Ok(Self::ALONE),
        };
        ensure!(count > 0, "the environment variable {source} is 0: it must be at least 1");
        let rank = environment.number("LOCAL_RANK")?.or(slurm.and_then(|(_, rank)| rank));
        if let Some(rank) = rank {
            ensure!(
                rank < count,
                "the local rank is {rank} (LOCAL_RANK or SLURM_LOCALID), but {source} is {count}: set both variables or neither"
            );
        }
        Ok(LocalRanks { count, rank })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::env::test_variables;

    fn read(pairs: &str) -> Result<(usize, Option<usize>), String> {
        let variable = test_variables(pairs);
        let environment = Environment::new(&variable);
        let ranks = SlurmStep::read(&environment, false).and_then(|step| LocalRanks::read(&environment, step.as_ref()));
        ranks.map(|ranks| (ranks.count, ranks.rank)).map_err(|error| error.to_string())
    }

    /// Adds the other variables that srun sets.
    fn task(pairs: &str) -> String {
        format!("SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=10 {pairs}")
    }

    #[test]
    fn variables_of_launchers_are_read() {
        for (environment, count, rank) in [
            ("", 1, Some(0)),
            ("LOCAL_WORLD_SIZE=1 LOCAL_RANK=0", 1, Some(0)),
            ("LOCAL_WORLD_SIZE=4 LOCAL_RANK=3", 4, Some(3)),
            ("LOCAL_WORLD_SIZE=4", 4, None),
            (&task("SLURM_STEP_TASKS_PER_NODE=4 SLURM_LOCALID=2"), 4, Some(2)),
            (&task("SLURM_STEP_TASKS_PER_NODE=4(x2),2 SLURM_NODEID=1 SLURM_LOCALID=3"), 4, Some(3)),
            (&task("SLURM_STEP_TASKS_PER_NODE=4(x2),2 SLURM_NODEID=2 SLURM_LOCALID=1"), 2, Some(1)),
            // torchrun, started once per node by srun.
            (&task("LOCAL_WORLD_SIZE=8 LOCAL_RANK=7 SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_LOCALID=0"), 8, Some(7)),
            // A batch script without srun.
            ("SLURM_NTASKS_PER_NODE=4 SLURM_TASKS_PER_NODE=4(x2) SLURM_NODEID=0 SLURM_LOCALID=0", 1, Some(0)),
            ("LOCAL_WORLD_SIZE= LOCAL_RANK=1", 1, Some(0)),
        ] {
            assert_eq!(read(environment), Ok((count, rank)), "{environment}");
        }
    }

    #[test]
    fn contradicting_variables_are_refused() {
        for (environment, expected) in [
            ("LOCAL_WORLD_SIZE=two", "LOCAL_WORLD_SIZE is \"two\": it must be a whole number"),
            ("LOCAL_WORLD_SIZE=0", "LOCAL_WORLD_SIZE is 0"),
            (
                "LOCAL_WORLD_SIZE=2 LOCAL_RANK=2",
                "the local rank is 2 (LOCAL_RANK or SLURM_LOCALID), but LOCAL_WORLD_SIZE is 2",
            ),
            ("LOCAL_WORLD_SIZE=2 LOCAL_RANK=-1", "LOCAL_RANK is \"-1\""),
            (
                &task("SLURM_STEP_TASKS_PER_NODE=2 SLURM_LOCALID=2"),
                "the local rank is 2 (LOCAL_RANK or SLURM_LOCALID), but SLURM_STEP_TASKS_PER_NODE is 2",
            ),
        ] {
            let error = read(environment).unwrap_err();
            assert!(error.contains(expected), "{environment}: {error}");
        }
    }
}
