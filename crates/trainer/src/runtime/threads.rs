//! How many CPU threads this process computes with, and on which CPUs.

use std::fmt;

use anyhow::{Result, ensure};
use data_prep::MAX_THREADS;

use crate::distributed::local_ranks::LocalRanks;
use crate::runtime::cpu_topology::{self, CpuTopology};

/// The CPU threads of this process, as they were set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Threads {
    /// Threads of libtorch.
    pub count: usize,
    /// The CPUs that they may run on.
    cpus: Vec<usize>,
    /// Whether no other local rank has these CPUs.
    pinned: bool,
    local: LocalRanks,
}

impl fmt::Display for Threads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = |n| if n == 1 { "" } else { "s" };
        let (count, num_cpus, on) = (self.count, self.cpus.len(), if self.pinned { "pinned to" } else { "on" });
        write!(f, "{count} thread{} {on} CPU{} {}", plural(count), plural(num_cpus), cpu_topology::list(&self.cpus))?;
        match self.local {
            LocalRanks { count: 1, .. } => Ok(()),
            LocalRanks { count, rank: Some(rank) } => write!(f, " (local rank {rank} of {count})"),
            LocalRanks { count, rank: None } => write!(f, " (one of {count} local ranks)"),
        }
    }
}

/// Sets libtorch's CPU threads: `threads`, or for 0 the physical cores of this process by
/// the `local` ranks that share them. With `pin`, each of several local ranks gets cores of
/// its own. Before any other work in libtorch: its threads run where the one that starts
/// them may.
///
/// # Errors
/// When there are too many, or the system refuses.
pub fn set_threads(threads: usize, pin: bool, local: LocalRanks) -> Result<Threads> {
    ensure!(
        threads <= MAX_THREADS,
        "{threads} threads are asked for: at most {MAX_THREADS} are possible, and 0 means the physical cores by the local ranks"
    );
    let threads = decide(threads, pin, &CpuTopology::here(local.count > 1), local);
    if threads.pinned {
        cpu_topology::pin(&threads.cpus)?;
    }
    tch::set_num_threads(threads.count as i32);
    Ok(threads)
}

/// What [`set_threads`] sets.
fn decide(threads: usize, pin: bool, machine: &CpuTopology, local: LocalRanks) -> Threads {
    // A launcher that bound this process has divided the host already.
    let sharing = if machine.bound { 1 } else { local.count };
    // 0 where there are more ranks than cores.
    let share = machine.cores.len() / sharing;
    let count = match threads {
        0 => share.min(machine.granted / sharing).max(1),
        given => given,
    };
    // The r-th block of cores is the r-th rank's.
    let own = local.rank.filter(|_| pin && sharing > 1 && count <= share);
    let cores = own.map_or(&machine.cores[..], |rank| &machine.cores[rank * share..(rank + 1) * share]);
    let mut cpus = cores.concat();
    cpus.sort_unstable();
    Threads { count, cpus, pinned: own.is_some(), local }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALONE: LocalRanks = LocalRanks::ALONE;

    fn rank(rank: usize, count: usize) -> LocalRanks {
        LocalRanks { count, rank: Some(rank) }
    }

    /// Cores of one CPU, numbered from 0.
    fn plain(cores: usize) -> CpuTopology {
        CpuTopology { cores: (0..cores).map(|cpu| vec![cpu]).collect(), bound: false, granted: cores }
    }

    /// Cores of two hyper-threads: core i has the CPUs i and cores + i.
    fn hyper(cores: usize) -> CpuTopology {
        CpuTopology { cores: (0..cores).map(|i| vec![i, cores + i]).collect(), bound: false, granted: 2 * cores }
    }

    fn decided(threads: usize, pin: bool, machine: &CpuTopology, local: LocalRanks) -> String {
        decide(threads, pin, machine, local).to_string()
    }

    #[test]
    fn the_default_is_the_physical_cores_by_the_local_ranks() {
        for (machine, local, says) in [
            (plain(1), ALONE, "1 thread on CPU 0"),
            (plain(2), ALONE, "2 threads on CPUs 0-1"),
            (hyper(8), ALONE, "8 threads on CPUs 0-15"),
            (plain(2), rank(1, 2), "1 thread pinned to CPU 1 (local rank 1 of 2)"),
            (hyper(8), rank(0, 2), "4 threads pinned to CPUs 0-3,8-11 (local rank 0 of 2)"),
            (hyper(8), rank(1, 2), "4 threads pinned to CPUs 4-7,12-15 (local rank 1 of 2)"),
            // What is left over stays free: the slowest rank would decide anyway.
            (plain(7), rank(1, 2), "3 threads pinned to CPUs 3-5 (local rank 1 of 2)"),
            // More ranks than cores.
            (plain(2), rank(2, 3), "1 thread on CPUs 0-1 (local rank 2 of 3)"),
            // Nothing says which one this is.
            (plain(4), LocalRanks { count: 2, rank: None }, "2 threads on CPUs 0-3 (one of 2 local ranks)"),
        ] {
            assert_eq!(decided(0, true, &machine, local), says);
        }
    }

    #[test]
    fn a_launcher_that_bound_the_process_is_respected() {
        let bound = |cores: &[&[usize]]| CpuTopology {
            cores: cores.iter().map(|core| core.to_vec()).collect(),
            bound: true,
            granted: cores.concat().len(),
        };
        let (two, hyper) = (bound(&[&[6], &[7]]), bound(&[&[2, 10], &[3, 11]]));
        assert_eq!(decided(0, true, &two, rank(3, 4)), "2 threads on CPUs 6-7 (local rank 3 of 4)");
        assert_eq!(decided(0, true, &hyper, rank(1, 4)), "2 threads on CPUs 2-3,10-11 (local rank 1 of 4)");
        // taskset without a launcher: half a core is a core.
        assert_eq!(decided(0, true, &bound(&[&[0], &[4]]), ALONE), "2 threads on CPUs 0,4");
    }

    #[test]
    fn a_container_without_all_time_or_all_cpus_is_shared() {
        let quota = CpuTopology { granted: 4, ..plain(16) };
        assert_eq!(decided(0, true, &quota, ALONE), "4 threads on CPUs 0-15");
        assert_eq!(decided(0, true, &quota, rank(1, 2)), "2 threads pinned to CPUs 8-15 (local rank 1 of 2)");
        assert_eq!(
            decided(0, true, &CpuTopology { granted: 1, ..plain(4) }, rank(0, 2)),
            "1 thread pinned to CPUs 0-1 (local rank 0 of 2)"
        );
        let cpuset = CpuTopology { cores: vec![vec![4], vec![5], vec![6], vec![7]], bound: false, granted: 4 };
        assert_eq!(decided(0, true, &cpuset, rank(1, 2)), "2 threads pinned to CPUs 6-7 (local rank 1 of 2)");
    }

    #[test]
    fn what_is_asked_for_is_given_and_pinned_where_it_fits() {
        for (threads, pin, says) in [
            (2, true, "2 threads pinned to CPUs 4-7 (local rank 1 of 2)"),
            (4, true, "4 threads pinned to CPUs 4-7 (local rank 1 of 2)"),
            (5, true, "5 threads on CPUs 0-7 (local rank 1 of 2)"),
            (0, false, "4 threads on CPUs 0-7 (local rank 1 of 2)"),
        ] {
            assert_eq!(decided(threads, pin, &plain(8), rank(1, 2)), says);
        }
        assert_eq!(decided(3, true, &plain(2), ALONE), "3 threads on CPUs 0-1");
    }
}
