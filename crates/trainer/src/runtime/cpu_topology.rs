//! The CPUs of this machine: which this process may use, and which share a physical core.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// What decides how many threads run where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuTopology {
    /// The CPUs (hyper-threads) of each physical core that this process may run on, package
    /// by package.
    pub(crate) cores: Vec<Vec<usize>>,
    /// Whether its launcher gave this process fewer CPUs than its host, or its container, has.
    pub(crate) bound: bool,
    /// CPUs whose time may be used at once: fewer than there are under a cgroup's quota.
    pub(crate) granted: usize,
}

impl CpuTopology {
    /// This one, as the calling thread may use it. `bound` is found out only where the host
    /// is `shared` with other ranks and it matters.
    pub(crate) fn here(shared: bool) -> Self {
        let granted = std::thread::available_parallelism().map_or(1, usize::from);
        // The kernel refuses to tell where there are more CPUs than the set holds.
        let allowed = allowed().unwrap_or_else(|_| (0..granted.min(CpuSet::MAX_CPU)).collect());
        let bound = shared && is_bound().unwrap_or(false);
        CpuTopology { cores: physical_cores(&allowed, core_of), bound, granted }
    }
}

/// CPUs that the calling thread may run on, ascending.
fn allowed() -> rustix::io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Whether the calling thread may run on fewer CPUs than its cgroup. The kernel cuts a
/// wider request down to the cgroup's, which is all there are where nothing limits it.
fn is_bound() -> rustix::io::Result<bool> {
    let own = sched_getaffinity(None)?;
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    sched_setaffinity(None, &all)?;
    let widest = sched_getaffinity(None);
    sched_setaffinity(None, &own)?;
    Ok(own != widest?)
}

/// Lets the calling thread, and all that it starts from now on, run on these CPUs alone.
///
/// # Errors
/// When the system refuses.
pub(crate) fn pin(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set)
        .with_context(|| format!("this process cannot be pinned to CPUs {}: set run.pin_threads = false", list(cpus)))
}

/// The package and the lowest CPU of the physical core that a CPU belongs to: cores of one
/// package are to be neighbours however the system numbers its CPUs.
fn core_of(cpu: usize) -> Option<(usize, usize)> {
    let read = |name: &str| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}")).ok();
    let package = read("physical_package_id").and_then(|id| id.trim().parse().ok()).unwrap_or(0);
    Some((package, first_of_list(&read("thread_siblings_list")?)?))
}

/// The first CPU of a list as the kernel writes it: `0,64`, `0-1`.
fn first_of_list(list: &str) -> Option<usize> {
    list.trim().split([',', '-']).next()?.parse().ok()
}

/// Groups CPUs by their physical cores; one of which nothing is known is a core of its own.
fn physical_cores(allowed: &[usize], core_of: impl Fn(usize) -> Option<(usize, usize)>) -> Vec<Vec<usize>> {
    let mut cores = BTreeMap::<_, Vec<usize>>::new();
    for &cpu in allowed {
        cores.entry(core_of(cpu).unwrap_or((0, cpu))).or_default().push(cpu);
    }
    cores.into_values().collect()
}

/// CPUs as a person and the kernel write them: `0-3,8`.
pub(crate) fn list(cpus: &[usize]) -> String {
    let runs = cpus.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        one => one.iter().map(usize::to_string).collect(),
    });
    runs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hyper_threads_are_one_core() {
        // Four cores of two hyper-threads, numbered as most systems do: 0-3, then 4-7.
        let usual = |cpu: usize| Some((0, cpu % 4));
        assert_eq!(physical_cores(&[0, 1, 2, 3, 4, 5, 6, 7], usual), [[0, 4], [1, 5], [2, 6], [3, 7]]);
        assert_eq!(physical_cores(&[1, 2, 5], usual), [vec![1, 5], vec![2]]);
        // Side by side.
        assert_eq!(physical_cores(&[0, 1, 2, 3], |cpu| Some((0, cpu / 2 * 2))), [[0, 1], [2, 3]]);
        // Two packages with their CPUs in turn.
        assert_eq!(physical_cores(&[0, 1, 2, 3], |cpu| Some((cpu % 2, cpu))), [[0], [2], [1], [3]]);
        assert_eq!(physical_cores(&[3, 9], |_| None), [[3], [9]]);
        for (list, first) in [("0,64\n", Some(0)), ("2-3\n", Some(2)), ("7\n", Some(7)), ("\n", None)] {
            assert_eq!(first_of_list(list), first);
        }
    }

    #[test]
    fn lists_read_as_the_kernels() {
        for (cpus, text) in [(&[0][..], "0"), (&[0, 1], "0-1"), (&[0, 1, 2, 8, 10, 11], "0-2,8,10-11"), (&[], "")] {
            assert_eq!(list(cpus), text);
        }
    }

    /// In a thread of its own, since that is what is pinned.
    #[test]
    fn a_pinned_thread_is_bound_and_stays_so() {
        let pinned = std::thread::spawn(|| {
            let before = allowed().unwrap();
            let one = before[before.len() - 1];
            pin(&[one]).unwrap();
            assert_eq!(allowed().unwrap(), [one]);
            assert_eq!(is_bound().unwrap(), before.len() > 1);
            assert_eq!(allowed().unwrap(), [one]);
            let inherited = std::thread::spawn(|| allowed().unwrap()).join().unwrap();
            assert_eq!(inherited, [one]);
            let bound = before.len() > 1;
            assert_eq!(CpuTopology::here(true), CpuTopology { cores: vec![vec![one]], bound, granted: 1 });
        });
        pinned.join().unwrap();
    }
}
