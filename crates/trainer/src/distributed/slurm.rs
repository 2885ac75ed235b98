//! The variables that Slurm's srun sets for each task of a step.

use anyhow::{Context, Result, ensure};

use crate::distributed::env::Environment;
use crate::distributed::slurm_hostlist;

/// Step numbers from this one on do not belong to srun. They are the batch script, the shell of
/// salloc, and the container for processes that Slurm did not start.
const FIRST_SPECIAL_STEP: u64 = 0xffff_fff0;

/// Lowest port for rank 0. Ports from 20,000 are below the kernel's ephemeral ports (from 32,768).
const FIRST_PORT: u64 = 20_000;

/// The position of a task in its Slurm step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SlurmStep {
    /// Number of this task in the step, from 0.
    pub(crate) rank: usize,
    /// Number of tasks in the step.
    pub(crate) size: usize,
    /// Number of tasks of the step on this host, and the number of this task among them. `None` if
    /// Slurm does not provide them.
    pub(crate) local: Option<(usize, Option<usize>)>,
    /// Text that is equal for all tasks of a step and differs between attempts of a job.
    pub(crate) launch_id: String,
}

impl SlurmStep {
    /// Reads the step that started this process. Returns `None` for a batch script, for an
    /// interactive shell (`on_terminal`: srun --pty) and outside of Slurm.
    ///
    /// # Errors
    /// Names the variable that is not a number or contradicts another one.
    pub(crate) fn read(environment: &Environment<'_>, on_terminal: bool) -> Result<Option<Self>> {
        let Some(step) = environment.number::<u64>("SLURM_STEP_ID")?.filter(|&step| step < FIRST_SPECIAL_STEP) else {
            return Ok(None);
        };
        // Steps that an interactive shell starts inherit SLURM_PTY_PORT, but not the terminal.
        if on_terminal && environment.text("SLURM_PTY_PORT").is_some() {
            return Ok(None);
        }
        // SLURM_NTASKS is the number of the job's tasks. The step can have a different number.
        let (size_variable, size) = match environment.number("SLURM_STEP_NUM_TASKS")? {
            Some(size) => ("SLURM_STEP_NUM_TASKS", Some(size)),
            None => ("SLURM_NTASKS", environment.number("SLURM_NTASKS")?),
        };
        let (Some(rank), Some(size)) = (environment.number("SLURM_PROCID")?, size) else {
            return Ok(None);
        };
        ensure!(
            rank < size,
            "the environment variable SLURM_PROCID is {rank}, but {size_variable} is {size}: start this program with srun"
        );
        let text = |name: &str| environment.text(name).unwrap_or_default();
        let (job, attempt) = (text("SLURM_JOB_ID"), text("SLURM_RESTART_COUNT"));
        let launch_id = format!("slurm.{job}.{step}.{}", if attempt.is_empty() { "0" } else { &attempt });
        Ok(Some(SlurmStep { rank, size, local: local_tasks(environment)?, launch_id }))
    }
}

/// Returns the number of tasks on this host, and the number of this task among them.
fn local_tasks(environment: &Environment<'_>) -> Result<Option<(usize, Option<usize>)>> {
    // SLURM_NTASKS_PER_NODE is not used, because a batch script has it too. A program that a batch
    // script starts without srun is a single process.
    let name = "SLURM_STEP_TASKS_PER_NODE";
    let Some(counts) = environment.text(name) else {
        return Ok(None);
    };
    let node = environment.number("SLURM_NODEID")?.unwrap_or(0);
    let count = tasks_of_node(&counts, node).filter(|&count| count > 0);
    let count = count.with_context(|| {
        format!("the environment variable {name} is \"{counts}\", which has no entry for node {node}")
    })?;
    Ok(Some((count, environment.number("SLURM_LOCALID")?)))
}

/// Returns the first host of the step, which is the host of rank 0.
///
/// # Errors
/// Returns an error if there is no list of hosts, or if it cannot be parsed.
pub(crate) fn first_host(environment: &Environment<'_>) -> Result<String> {
    let list = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST"]
        .into_iter()
        .find_map(|name| environment.text(name).map(|list| (name, list)));
    let (name, list) = list.context(
        "the host of rank 0 is unknown: neither MASTER_ADDR nor SLURM_STEP_NODELIST is set; set MASTER_ADDR",
    )?;
    let hosts = slurm_hostlist::hosts(&list);
    let hosts = hosts.with_context(|| format!("cannot parse the environment variable {name}; set MASTER_ADDR"))?;
    hosts
        .into_iter()
        .next()
        .with_context(|| format!("the environment variable {name} contains no host: set MASTER_ADDR"))
}

/// Returns a port for rank 0 that is derived from the job number, so that two jobs on one host
/// rarely share it.
///
/// # Errors
/// Returns an error if `SLURM_JOB_ID` is not set.
pub(crate) fn rank_0_port(environment: &Environment<'_>) -> Result<u16> {
    let job: u64 = environment.number("SLURM_JOB_ID")?.context(
        "the port of rank 0 is unknown: neither MASTER_PORT nor SLURM_JOB_ID is set; set MASTER_PORT to a free port",
    )?;
    Ok((FIRST_PORT + job % 10_000) as u16)
}

/// Returns the number of tasks on a node, from Slurm's list of counts. For example, `2(x3),1` means
/// two tasks on each of three nodes and one task on a fourth.
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
    use crate::distributed::env::test_variables;

    fn step(pairs: &str, on_terminal: bool) -> Result<Option<SlurmStep>, String> {
        SlurmStep::read(&Environment::new(&test_variables(pairs)), on_terminal).map_err(|error| error.to_string())
    }

    const TASK: &str =
        "SLURM_JOB_ID=4711 SLURM_STEP_ID=0 SLURM_PROCID=3 SLURM_STEP_NUM_TASKS=4 SLURM_NTASKS=8 SLURM_NODEID=1";

    #[test]
    fn position_of_a_task_is_read() {
        let found = step(&format!("{TASK} SLURM_STEP_TASKS_PER_NODE=2(x2) SLURM_LOCALID=1"), false).unwrap().unwrap();
        assert_eq!(
            found,
            SlurmStep { rank: 3, size: 4, local: Some((2, Some(1))), launch_id: "slurm.4711.0.0".to_owned() }
        );
        let again = step(&format!("{TASK} SLURM_RESTART_COUNT=2"), false).unwrap().unwrap();
        assert_eq!((again.launch_id.as_str(), again.local), ("slurm.4711.0.2", None));
        let without_step_size = step("SLURM_STEP_ID=2 SLURM_PROCID=7 SLURM_NTASKS=8", false).unwrap().unwrap();
        assert_eq!((without_step_size.rank, without_step_size.size), (7, 8));
    }

    #[test]
    fn shells_and_batch_scripts_are_not_tasks() {
        for (pairs, on_terminal, is_task) in [
            ("", false, false),
            // A batch script, then the shell of salloc.
            ("SLURM_JOB_ID=1 SLURM_PROCID=0 SLURM_NTASKS=4", false, false),
            ("SLURM_STEP_ID=4294967291 SLURM_PROCID=0 SLURM_NTASKS=4", false, false),
            ("SLURM_STEP_ID=4294967290 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=1 SLURM_PTY_PORT=9", true, false),
            // srun -n4 --pty bash, and srun -n4 in that shell.
            ("SLURM_STEP_ID=0 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PTY_PORT=9", true, false),
            ("SLURM_STEP_ID=1 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4 SLURM_PTY_PORT=9", false, true),
            ("SLURM_STEP_ID=1 SLURM_PROCID=0 SLURM_STEP_NUM_TASKS=4", true, true),
        ] {
            assert_eq!(step(pairs, on_terminal).unwrap().is_some(), is_task, "{pairs}");
        }
    }

    #[test]
    fn contradicting_variables_are_refused() {
        for (more, expected) in [
            ("SLURM_STEP_TASKS_PER_NODE=4(x1)", "is \"4(x1)\", which has no entry for node 1"),
            ("SLURM_STEP_TASKS_PER_NODE=4(y2)", "is \"4(y2)\", which has no entry for node 1"),
            ("SLURM_STEP_TASKS_PER_NODE=2,0", "is \"2,0\", which has no entry for node 1"),
        ] {
            let error = step(&format!("{TASK} {more}"), false).unwrap_err();
            assert!(error.contains(expected), "{more}: {error}");
        }
        let error = step("SLURM_STEP_ID=0 SLURM_PROCID=4 SLURM_STEP_NUM_TASKS=4", false).unwrap_err();
        assert!(error.contains("SLURM_PROCID is 4, but SLURM_STEP_NUM_TASKS is 4"), "{error}");
    }

    #[test]
    fn rank_0_is_on_the_first_host_of_the_step() {
        let host =
            |pairs: &str| first_host(&Environment::new(&test_variables(pairs))).map_err(|error| format!("{error:#}"));
        assert_eq!(host("SLURM_JOB_NODELIST=n[1-4] SLURM_STEP_NODELIST=n[03-4]"), Ok("n03".to_owned()));
        assert_eq!(host("SLURM_JOB_NODELIST=gpu-[001-004],n1"), Ok("gpu-001".to_owned()));
        assert!(host("").unwrap_err().contains("set MASTER_ADDR"));
        assert!(
            host("SLURM_JOB_NODELIST=n[1")
                .unwrap_err()
                .starts_with("cannot parse the environment variable SLURM_JOB_NODELIST")
        );
        let port =
            |pairs: &str| rank_0_port(&Environment::new(&test_variables(pairs))).map_err(|error| error.to_string());
        assert_eq!(port("SLURM_JOB_ID=1234567"), Ok(24_567));
        assert!(port("").unwrap_err().contains("set MASTER_PORT"));
    }
}
