//! The CPUs that this process may use, grouped by physical core.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The CPUs available to this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CpuTopology {
    /// CPUs (hyper-threads) of each physical core on which this process may run, ordered by
    /// package.
    pub(crate) cores: Vec<Vec<usize>>,
    /// Whether the launcher gave this process fewer CPUs than its host or container has.
    pub(crate) bound: bool,
    /// Number of CPUs that can be used at the same time. A cgroup quota can make it smaller than
    /// the number of CPUs.
    pub(crate) granted: usize,
}

impl CpuTopology {
    /// Detects the CPUs that the calling thread may use. `bound` is only determined if the host is
    /// `shared` with other ranks, because it has no effect otherwise.
    pub(crate) fn detect(shared: bool) -> Self {
        let granted = std::thread::available_parallelism().map_or(1, usize::from);
        // The kernel returns an error if the machine has more CPUs than a CpuSet can represent.
        let allowed = allowed().unwrap_or_else(|_| (0..granted.min(CpuSet::MAX_CPU)).collect());
        let bound = shared && is_bound().unwrap_or(false);
        CpuTopology { cores: physical_cores(&allowed, core_of), bound, granted }
    }
}

/// Returns the CPUs on which the calling thread may run, in ascending order.
fn allowed() -> rustix::io::Result<Vec<usize>> {
    let set = sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).collect())
}

/// Returns whether the calling thread may run on fewer CPUs than its cgroup allows.
///
/// It requests all CPUs for a moment. The kernel reduces the request to the CPUs of the cgroup.
fn is_bound() -> rustix::io::Result<bool> {
    let own = sched_getaffinity(None)?;
    let mut all = CpuSet::new();
    (0..CpuSet::MAX_CPU).for_each(|cpu| all.set(cpu));
    sched_setaffinity(None, &all)?;
    let cgroup = sched_getaffinity(None);
    sched_setaffinity(None, &own)?;
    Ok(own != cgroup?)
}

/// Pins the calling thread, and all threads that it starts later, to these CPUs.
///
/// # Errors
/// Returns an error if the operating system rejects the CPUs.
pub(crate) fn pin(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().for_each(|&cpu| set.set(cpu));
    sched_setaffinity(None, &set)
        .with_context(|| format!("cannot pin this process to CPUs {}; set run.pin_threads = false", format_cpus(cpus)))
}

/// Returns the package of a CPU and the lowest CPU of its physical core.
///
/// The package is included so that the cores of a package are neighbors for every numbering of the
/// CPUs.
fn core_of(cpu: usize) -> Option<(usize, usize)> {
    let read = |name: &str| fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/{name}")).ok();
    let package = read("physical_package_id").and_then(|id| id.trim().parse().ok()).unwrap_or(0);
    Some((package, first_of_list(&read("thread_siblings_list")?)?))
}

/// Returns the first CPU of a list in the format of the kernel, such as `0,64` or `0-1`.
fn first_of_list(list: &str) -> Option<usize> {
    list.trim().split([',', '-']).next()?.parse().ok()
}

/// Groups CPUs by physical core. A CPU whose core is unknown counts as a separate core.
fn physical_cores(allowed: &[usize], core_of: impl Fn(usize) -> Option<(usize, usize)>) -> Vec<Vec<usize>> {
    let mut cores = BTreeMap::<_, Vec<usize>>::new();
    for &cpu in allowed {
        cores.entry(core_of(cpu).unwrap_or((0, cpu))).or_default().push(cpu);
    }
    cores.into_values().collect()
}

/// Formats CPUs as the kernel does, such as `0-3,8`.
pub(crate) fn format_cpus(cpus: &[usize]) -> String {
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
    fn hyper_threads_share_one_core() {
        // Four cores with two hyper-threads each, in the usual numbering: 0-3, then 4-7.
        let usual = |cpu: usize| Some((0, cpu % 4));
        assert_eq!(physical_cores(&[0, 1, 2, 3, 4, 5, 6, 7], usual), [[0, 4], [1, 5], [2, 6], [3, 7]]);
        assert_eq!(physical_cores(&[1, 2, 5], usual), [vec![1, 5], vec![2]]);
        // Hyper-threads of a core with consecutive numbers.
        assert_eq!(physical_cores(&[0, 1, 2, 3], |cpu| Some((0, cpu / 2 * 2))), [[0, 1], [2, 3]]);
        // Two packages with alternating CPU numbers.
        assert_eq!(physical_cores(&[0, 1, 2, 3], |cpu| Some((cpu % 2, cpu))), [[0], [2], [1], [3]]);
        assert_eq!(physical_cores(&[3, 9], |_| None), [[3], [9]]);
        for (list, first) in [("0,64\n", Some(0)), ("2-3\n", Some(2)), ("7\n", Some(7)), ("\n", None)] {
            assert_eq!(first_of_list(list), first);
        }
    }

    #[test]
    fn lists_are_formatted_as_by_the_kernel() {
        for (cpus, text) in [(&[0][..], "0"), (&[0, 1], "0-1"), (&[0, 1, 2, 8, 10, 11], "0-2,8,10-11"), (&[], "")] {
            assert_eq!(format_cpus(cpus), text);
        }
    }

    /// Runs in a separate thread, because pinning affects the calling thread.
    #[test]
    fn pinned_thread_stays_bound() {
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
            assert_eq!(CpuTopology::detect(true), CpuTopology { cores: vec![vec![one]], bound, granted: 1 });
        });
        pinned.join().unwrap();
    }
}
