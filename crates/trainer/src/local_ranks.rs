//! How many processes of a run share this host, and which of them this one is.

use anyhow::{Context, Result, ensure};

/// This process among those of its run on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LocalRanks {
    /// Processes of the run on this host.
    pub(crate) count: usize,
    /// This one, from 0; none where nothing says.
    pub(crate) rank: Option<usize>,
}

impl LocalRanks {
    /// As the launcher says in the environment: torchrun and its like (`LOCAL_WORLD_SIZE`,
    /// `LOCAL_RANK`), else Slurm's srun; without either the process is alone.
    ///
    /// # Errors
    /// When a variable is no such number, or they contradict each other.
    pub(crate) fn from_environment() -> Result<Self> {
        Self::read(|name| std::env::var(name).ok())
    }

    fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let text = |name: &str| variable(name).filter(|text| !text.is_empty());
        let number = |name: &str| -> Result<Option<usize>> {
            let number = text(name).map(|text| {
                text.parse()
                    .ok()
                    .with_context(|| format!("the environment's {name} is \"{text}\": it must be a whole number"))
            });
            number.transpose()
        };
        // Of Slurm, the step's variable alone: a batch script has SLURM_NTASKS_PER_NODE too,
        // and what it starts without srun is one process.
        let step_tasks = "SLURM_STEP_TASKS_PER_NODE";
        let (says, count) = match (number("LOCAL_WORLD_SIZE")?, text(step_tasks)) {
            (Some(count), _) => ("LOCAL_WORLD_SIZE", count),
            (None, Some(counts)) => {
                let node = number("SLURM_NODEID")?.unwrap_or(0);
                let count = tasks_of_node(&counts, node).with_context(|| {
                    format!("the environment's {step_tasks} is \"{counts}\", which says nothing of node {node}")
                })?;
                (step_tasks, count)
            }
            (None, None) => return Ok(LocalRanks { count: 1, rank: Some(0) }),
        };
        ensure!(count > 0, "the environment's {says} is 0: it must count this process at least");
        let rank = match number("LOCAL_RANK")? {
            Some(rank) => Some(rank),
            None => number("SLURM_LOCALID")?,
        };
        if let Some(rank) = rank {
            ensure!(
                rank < count,
                "the environment says that this is local rank {rank} (LOCAL_RANK or SLURM_LOCALID), but {says} says that there are {count}: set both or neither"
            );
        }
        Ok(LocalRanks { count, rank })
    }
}

/// Tasks on one node of what Slurm writes as `2(x3),1`: two on each of three nodes, then
/// one on a fourth.
fn tasks_of_node(counts: &str, mut node: usize) -> Option<usize> {
    for part in counts.split(',') {
        let (count, nodes) = match part.split_once("(x") {
            Some((count, nodes)) => (count, nodes.strip_suffix(')')?.parse().ok()?),
            None => (part, 1),
        };
        if node < nodes {
            return count.parse().ok();
        }
        node -= nodes;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `environment` as `NAME=value` with blanks between.
    fn read(environment: &str) -> Result<(usize, Option<usize>), String> {
        let variable = |name: &str| {
            let pairs = environment.split(' ').filter_map(|pair| pair.split_once('='));
            pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next()
        };
        LocalRanks::read(variable).map(|ranks| (ranks.count, ranks.rank)).map_err(|error| error.to_string())
    }

    #[test]
    fn launchers_are_understood() {
        for (environment, count, rank) in [
            ("", 1, Some(0)),
            ("LOCAL_WORLD_SIZE=1 LOCAL_RANK=0", 1, Some(0)),
            ("LOCAL_WORLD_SIZE=4 LOCAL_RANK=3", 4, Some(3)),
            ("LOCAL_WORLD_SIZE=4", 4, None),
            ("SLURM_STEP_TASKS_PER_NODE=4 SLURM_LOCALID=2", 4, Some(2)),
            ("SLURM_STEP_TASKS_PER_NODE=4(x2),2 SLURM_NODEID=1 SLURM_LOCALID=3", 4, Some(3)),
            ("SLURM_STEP_TASKS_PER_NODE=4(x2),2 SLURM_NODEID=2 SLURM_LOCALID=1", 2, Some(1)),
            // torchrun, started once a node by srun.
            ("LOCAL_WORLD_SIZE=8 LOCAL_RANK=7 SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_LOCALID=0", 8, Some(7)),
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
            ("SLURM_STEP_TASKS_PER_NODE=4(x2) SLURM_NODEID=2", "is \"4(x2)\", which says nothing of node 2"),
            ("SLURM_STEP_TASKS_PER_NODE=4(y2)", "is \"4(y2)\", which says nothing of node 0"),
        ] {
            let error = read(environment).unwrap_err();
            assert!(error.contains(says), "{environment}: {error}");
        }
    }
}
