//! The number of CPU threads, and the CPUs on which they run.

use std::fmt;

use anyhow::{Result, ensure};
use data_prep::MAX_THREADS;

use crate::distributed::local_ranks::LocalRanks;
use crate::runtime::cpu_topology::{self, CpuTopology};

/// The CPU threads of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Threads {
    /// Number of libtorch's threads.
    pub count: usize,
    /// CPUs on which the threads may run.
    cpus: Vec<usize>,
    /// Whether the CPUs belong only to this local rank.
    pinned: bool,
    local_ranks: LocalRanks,
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n| if n == 1 { "" } else { "s" };
        let (count, num_cpus, on) = (self.count, self.cpus.len(), if self.pinned { "pinned to" } else { "on" });
        write!(
            f,
            "{count} thread{} {on} CPU{} {}",
            plural(count),
            plural(num_cpus),
            cpu_topology::format_cpus(&self.cpus)
        )?;
        match self.local_ranks {
            LocalRanks { count: 1, .. } => Ok(()),
            LocalRanks { count, rank: Some(rank) } => write!(f, " (local rank {rank} of {count})"),
            LocalRanks { count, rank: None } => write!(f, " (one of {count} local ranks)"),
        }
    }
}

/// Sets the number of libtorch's CPU threads.
///
/// If `threads` is 0, it is the number of physical cores of this process, divided by the number of
/// local ranks that share them. With `pin`, each of several local ranks is pinned to different
/// cores. The function must run before any other work in libtorch, because threads inherit the CPUs
/// of the thread that starts them.
///
/// # Errors
/// Returns an error if `threads` is above [`MAX_THREADS`] (libtorch crashes at some tens of
/// thousands), or if the process cannot be pinned.
pub fn set_threads(threads: usize, pin: bool, local_ranks: LocalRanks) -> Result<Threads> {
    ensure!(
        threads <= MAX_THREADS,
        "cannot use {threads} threads: at most {MAX_THREADS} are possible; 0 uses all physical cores, shared among the local ranks"
    );
    let threads = choose_threads(threads, pin, &CpuTopology::detect(local_ranks.count > 1), local_ranks);
    if threads.pinned {
        cpu_topology::pin(&threads.cpus)?;
    }
    tch::set_num_threads(threads.count as i32);
    Ok(threads)
}

/// Chooses the number of threads and their CPUs for [`set_threads`].
fn choose_threads(threads: usize, pin: bool, topology: &CpuTopology, local_ranks: LocalRanks) -> Threads {
    // A launcher that bound this process has already divided the CPUs of the host.
    let sharing = if topology.bound { 1 } else { local_ranks.count };
    // The share is 0 if there are more ranks than cores.
    let share = topology.cores.len() / sharing;
    let count = match threads {
        0 => share.min(topology.granted / sharing).max(1),
        count => count,
    };
    // Local rank r gets the r-th block of cores.
    let pinned_rank = local_ranks.rank.filter(|_| pin && sharing > 1 && count <= share);
    let cores = pinned_rank.map_or(&topology.cores[..], |rank| &topology.cores[rank * share..(rank + 1) * share]);
    let mut cpus = cores.concat();
    cpus.sort_unstable();
    Threads { count, cpus, pinned: pinned_rank.is_some(), local_ranks }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: LocalRanks = LocalRanks::ALONE;

    fn rank(rank: usize, count: usize) -> LocalRanks {
        LocalRanks { count, rank: Some(rank) }
    }

    /// Cores with one CPU each, numbered from 0.
    fn single(cores: usize) -> CpuTopology {
        CpuTopology { cores: (0..cores).map(|cpu| vec![cpu]).collect(), bound: false, granted: cores }
    }

    /// Cores with two hyper-threads each. Core i has the CPUs i and cores + i.
    fn hyper(cores: usize) -> CpuTopology {
        CpuTopology { cores: (0..cores).map(|i| vec![i, cores + i]).collect(), bound: false, granted: 2 * cores }
    }

    fn chosen(threads: usize, pin: bool, topology: &CpuTopology, local_ranks: LocalRanks) -> String {
        choose_threads(threads, pin, topology, local_ranks).to_string()
    }

    #[test]
    fn default_divides_physical_cores_among_local_ranks() {
        for (topology, local_ranks, expected) in [
            (single(1), ALONE, "1 thread on CPU 0"),
            (single(2), ALONE, "2 threads on CPUs 0-1"),
            (hyper(8), ALONE, "8 threads on CPUs 0-15"),
            (single(2), rank(1, 2), "1 thread pinned to CPU 1 (local rank 1 of 2)"),
            (hyper(8), rank(0, 2), "4 threads pinned to CPUs 0-3,8-11 (local rank 0 of 2)"),
            (hyper(8), rank(1, 2), "4 threads pinned to CPUs 4-7,12-15 (local rank 1 of 2)"),
            // The remaining core stays unused, because the slowest rank determines the speed.
            (single(7), rank(1, 2), "3 threads pinned to CPUs 3-5 (local rank 1 of 2)"),
            // More ranks than cores.
            (single(2), rank(2, 3), "1 thread on CPUs 0-1 (local rank 2 of 3)"),
            // The local rank is unknown.
            (single(4), LocalRanks { count: 2, rank: None }, "2 threads on CPUs 0-3 (one of 2 local ranks)"),
        ] {
            assert_eq!(chosen(0, true, &topology, local_ranks), expected);
        }
    }

    #[test]
    fn binding_by_the_launcher_is_kept() {
        let bound = |cores: &[&[usize]]| CpuTopology {
            cores: cores.iter().map(|core| core.to_vec()).collect(),
            bound: true,
            granted: cores.concat().len(),
        };
        let (two, hyper) = (bound(&[&[6], &[7]]), bound(&[&[2, 10], &[3, 11]]));
        assert_eq!(chosen(0, true, &two, rank(3, 4)), "2 threads on CPUs 6-7 (local rank 3 of 4)");
        assert_eq!(chosen(0, true, &hyper, rank(1, 4)), "2 threads on CPUs 2-3,10-11 (local rank 1 of 4)");
        // taskset without a launcher: one hyper-thread counts as a core.
        assert_eq!(chosen(0, true, &bound(&[&[0], &[4]]), ALONE), "2 threads on CPUs 0,4");
    }

    #[test]
    fn limits_of_a_container_are_shared() {
        let quota = CpuTopology { granted: 4, ..single(16) };
        assert_eq!(chosen(0, true, &quota, ALONE), "4 threads on CPUs 0-15");
        assert_eq!(chosen(0, true, &quota, rank(1, 2)), "2 threads pinned to CPUs 8-15 (local rank 1 of 2)");
        assert_eq!(
            chosen(0, true, &CpuTopology { granted: 1, ..single(4) }, rank(0, 2)),
            "1 thread pinned to CPUs 0-1 (local rank 0 of 2)"
        );
        let cpuset = CpuTopology { cores: vec![vec![4], vec![5], vec![6], vec![7]], bound: false, granted: 4 };
        assert_eq!(chosen(0, true, &cpuset, rank(1, 2)), "2 threads pinned to CPUs 6-7 (local rank 1 of 2)");
    }

    #[test]
    fn explicit_number_is_used_and_pinned_if_it_fits() {
        for (threads, pin, expected) in [
            (2, true, "2 threads pinned to CPUs 4-7 (local rank 1 of 2)"),
            (4, true, "4 threads pinned to CPUs 4-7 (local rank 1 of 2)"),
            (5, true, "5 threads on CPUs 0-7 (local rank 1 of 2)"),
            (0, false, "4 threads on CPUs 0-7 (local rank 1 of 2)"),
        ] {
            assert_eq!(chosen(threads, pin, &single(8), rank(1, 2)), expected);
        }
        assert_eq!(chosen(3, true, &single(2), ALONE), "3 threads on CPUs 0-1");
    }
}
