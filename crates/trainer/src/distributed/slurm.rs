//! What Slurm's srun tells each task of a step.

use anyhow::{Context, Result, ensure};

use crate::distributed::env::Environment;
use crate::distributed::slurm_hostlist;

/// From here on Slurm's step numbers are no steps of srun's own: the batch script, the shell
/// of salloc, the container of foreign processes.
const FIRST_SPECIAL_STEP: u64 = 0xffff_fff0;

/// Ports from 20,000 are below those that the kernel gives out by itself (from 32,768).
const FIRST_PORT: u64 = 20_000;

/// A task among those of its step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlurmStep {
    pub(crate) rank: usize,
    pub(crate) size: usize,
    /// Tasks of the step on this host, and which of them this is; none where Slurm does not say.
    pub(crate) local: Option<(usize, Option<usize>)>,
    /// Equal for all tasks of a step, and for no later attempt.
    pub(crate) launch_id: String,
}

impl SlurmStep {
    /// The step that started this process; none for a batch script, an interactive shell
    /// (`on_terminal`: srun --pty) or what has nothing to do with Slurm.
    ///
    /// # Errors
    /// When a variable makes no sense.
    pub(crate) fn read(environment: &Environment<'_>, on_terminal: bool) -> Result<Option<Self>> {
        let Some(step) = environment.number::<u64>("SLURM_STEP_ID")?.filter(|&step| step < FIRST_SPECIAL_STEP) else {
            return Ok(None);
        };
        // Steps that such a shell starts inherit the variable, but not the terminal.
        if on_terminal && environment.text("SLURM_PTY_PORT").is_some() {
            return Ok(None);
        }
        // SLURM_NTASKS is the job's where srun was told another number.
        let (tasks, size) = match environment.number("SLURM_STEP_NUM_TASKS")? {
            Some(size) => ("SLURM_STEP_NUM_TASKS", Some(size)),
            None => ("SLURM_NTASKS", environment.number("SLURM_NTASKS")?),
        };
        let (Some(rank), Some(size)) = (environment.number("SLURM_PROCID")?, size) else {
            return Ok(None);
        };
        ensure!(
            rank < size,
            "the environment's SLURM_PROCID is {rank}, but {tasks} says that there are {size} tasks: start this program with srun"
        );
        let text = |name: &str| environment.text(name).unwrap_or_default();
        let (job, attempt) = (text("SLURM_JOB_ID"), text("SLURM_RESTART_COUNT"));
        let launch_id = format!("slurm.{job}.{step}.{}", if attempt.is_empty() { "0" } else { &attempt });
        Ok(Some(SlurmStep { rank, size, local: local(environment)?, launch_id }))
    }
}

/// Tasks on this host and which of them this is.
fn local(environment: &Environment<'_>) -> Result<Option<(usize, Option<usize>)>> {
    // The step's variable: a batch script has SLURM_NTASKS_PER_NODE too, and what it starts
    // without srun is one process.
    let name = "SLURM_STEP_TASKS_PER_NODE";
    let Some(counts) = environment.text(name) else {
        return Ok(None);
    };
    let node = environment.number("SLURM_NODEID")?.unwrap_or(0);
    let count = tasks_of_node(&counts, node).filter(|&count| count > 0);
    let count = count
        .with_context(|| format!("the environment's {name} is \"{counts}\", which says nothing of node {node}"))?;
    Ok(Some((count, environment.number("SLURM_LOCALID")?)))
}

/// The first host of the step: rank 0's.
///
/// # Errors
/// When no list of hosts is there, or it cannot be read.
pub(crate) fn first_host(environment: &Environment<'_>) -> Result<String> {
    let list = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]
        .into_iter()
        .find_map(|name| environment.text(name).map(|list| (name, list)));
    let (name, list) = list.context(
        "neither MASTER_ADDR nor SLURM_STEP_NODELIST is in the environment: set MASTER_ADDR to rank 0's host",
    )?;
    let hosts = slurm_hostlist::hosts(&list);
    let hosts = hosts.with_context(|| format!("the environment's {name} cannot be read: set MASTER_ADDR"))?;
    hosts.into_iter().next().with_context(|| format!("the environment's {name} names no host: set MASTER_ADDR"))
}

/// A port that two jobs on one host hardly share.
///
/// # Errors
/// When the job's number is not there.
pub(crate) fn port(environment: &Environment<'_>) -> Result<u16> {
    let job: u64 = environment
        .number("SLURM_JOB_ID")?
        .context("neither MASTER_PORT nor SLURM_JOB_ID is in the environment: set MASTER_PORT to a free port")?;
    Ok((FIRST_PORT + job % 10_000) as u16)
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
    use crate::distributed::env::given;

    fn step(pairs: &str, on_terminal: bool) -> Result<Option<SlurmStep>, String> {
        SlurmStep::read(&Environment::new(&given(pairs)), on_terminal).map_err(|error| error.to_string())
    }

    const TASK: &str =
        "SLURM_JOB_ID=4711 SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=8 SLURM_NODEID=1";

    #[test]
    fn a_task_of_srun_is_one_of_its_step() {
        let found = step(&format!("{TASK} SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_LOCALID=1"), false).unwrap().unwrap();
        assert_eq!(
            found,
            SlurmStep { rank: 3, size: 4, local: Some((2, Some(1))), launch_id: "slurm.4711.0.0".to_owned() }
        );
        let again = step(&format!("{TASK} SLURM_RESTART_COUNT=2"), false).unwrap().unwrap();
        assert_eq!((again.launch_id.as_str(), again.local), ("slurm.4711.0.2", None));
        let old = step("SLURM_STEP_ID=2 SLURM_PROCID=7 SLURM_NTASKS=8", false).unwrap().unwrap();
        assert_eq!((old.rank, old.size), (7, 8));
    }

    #[test]
    fn a_shell_and_a_batch_script_are_no_tasks() {
        for (pairs, on_terminal, is_task) in [
            ("", false, false),
            // A batch script, then the shell of salloc.
            ("SLURM_JOB_ID=1 SLURM_PROCID=0 SLURM_NTASKS=4", false, false),
            ("SLURM_STEP_ID=4294967291 SLURM_PROCID=0 SLURM_NTASKS=4", false, false),
            ("SLURM_STEP_ID=4294967290 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PTY_PORT=9", true, false),
            // srun -n4 --pty bash, and srun -n4 out of it.
            ("SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PTY_PORT=9", true, false),
            ("SLURM_STEP_ID=1 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PTY_PORT=9", false, true),
            ("SLURM_STEP_ID=1 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4", true, true),
        ] {
            assert_eq!(step(pairs, on_terminal).unwrap().is_some(), is_task, "{pairs}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (more, says) in [
            ("SLURM_STEP_TASKS_PER_NODE=4(x1)", "is \"4(x1)\", which says nothing of node 1"),
            ("SLURM_STEP_TASKS_PER_NODE=4(y2)", "is \"4(y2)\", which says nothing of node 1"),
            ("SLURM_STEP_TASKS_PER_NODE=2,0", "is \"2,0\", which says nothing of node 1"),
        ] {
            let error = step(&format!("{TASK} {more}"), false).unwrap_err();
            assert!(error.contains(says), "{more}: {error}");
        }
        let error = step("SLURM_STEP_ID=0 SLURM_PROCID=4 SLURM_STEP_NUM_TASKS=4", false).unwrap_err();
        assert!(error.contains("SLURM_PROCID is 4, but SLURM_STEP_NUM_TASKS says that there are 4"), "{error}");
    }

    #[test]
    fn rank_0_is_on_the_first_host_of_the_step() {
        let host = |pairs: &str| first_host(&Environment::new(&given(pairs))).map_err(|error| format!("{error:#}"));
        assert_eq!(host("SLURM_JOB_NODELIST=n[1-4] SLURM_STEP_NODELIST=n[03-4]"), Ok("n03".to_owned()));
        assert_eq!(host("SLURM_JOB_NODELIST=gpu-[001-004],n1"), Ok("gpu-001".to_owned()));
        assert!(host("").unwrap_err().contains("set MASTER_ADDR"));
        assert!(host("SLURM_JOB_NODELIST=n[1").unwrap_err().starts_with("the environment's SLURM_JOB_NODELIST cannot"));
        let port = |pairs: &str| port(&Environment::new(&given(pairs))).map_err(|error| error.to_string());
        assert_eq!(port("SLURM_JOB_ID=1234567"), Ok(24_567));
        assert!(port("").unwrap_err().contains("set MASTER_PORT"));
    }
}
