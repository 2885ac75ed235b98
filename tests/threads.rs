//! The number of threads of a run, alone and with other ranks on the same host.

use crate::support::{CommandOutput, Scratch};

/// Runs `train --dry-run` as local rank `rank` of `ranks`.
fn dry_run(scratch: &Scratch, rank: &str, ranks: &str, more: &[&str]) -> CommandOutput {
    let environment = [("LOCAL_WORLD_SIZE", ranks), ("LOCAL_RANK", rank)];
    scratch.train_in(&environment, "run", &[&["--dry-run"], more].concat())
}

/// The threads in the summary of a run, as in `2 threads on CPUs 0-1`.
fn threads(finished: CommandOutput) -> String {
    let printed = finished.expect(0).stderr;
    let line = printed.lines().find_map(|line| line.strip_prefix("machine     cpu, "));
    line.unwrap_or_else(|| panic!("{printed}")).to_owned()
}

#[test]
fn local_ranks_share_the_cores() {
    let scratch = Scratch::new();
    let threads_of = |rank, ranks| threads(dry_run(&scratch, rank, ranks, &["--threads", "0"]));
    let count = |line: &str| line.split(' ').next().unwrap().parse::<usize>().unwrap();
    let (alone, first, second) = (threads_of("0", "1"), threads_of("0", "2"), threads_of("1", "2"));
    assert!(alone.contains(" on CPU"), "{alone}");
    if first.contains(" pinned to CPU") {
        let each = (count(&alone) / 2).max(1);
        assert_eq!((count(&first), count(&second)), (each, each), "{alone}; {first}; {second}");
        assert!(second.contains(" pinned to CPU") && second.ends_with(" (local rank 1 of 2)"), "{second}");
        assert_ne!(first.replace("rank 0", "rank 1"), second);
        let unpinned = dry_run(&scratch, "1", "2", &["--threads", "0", "--set", "run.pin_threads=false"]);
        assert!(threads(unpinned).contains(" on CPU"));
    } else {
        // The machine has one core, or this test was started with a CPU affinity.
        assert_eq!((first, second), (format!("{alone} (local rank 0 of 2)"), format!("{alone} (local rank 1 of 2)")));
    }
}

#[test]
fn threads_flag_overrides_file_and_set() {
    let scratch = Scratch::new();
    let with = |more: &[&str]| threads(dry_run(&scratch, "0", "1", more));
    assert!(with(&[]).starts_with("1 thread on CPU"));
    assert!(with(&["--set", "run.threads=2"]).starts_with("2 threads on CPU"));
    assert!(with(&["--threads", "3", "--set", "run.threads=2"]).starts_with("3 threads on CPU"));
    let error = dry_run(&scratch, "2", "2", &[]).error();
    assert!(error.contains("the local rank is 2 (LOCAL_RANK or SLURM_LOCALID), but LOCAL_WORLD_SIZE is"), "{error}");
}
