//! How many threads a training takes, alone and beside others on its host.

use crate::support::{Finished, Scratch};

/// `train --dry-run` as local rank `rank` of `ranks`, whatever this test was started by.
fn dry_run(scratch: &Scratch, rank: &str, ranks: &str, more: &[&str]) -> Finished {
    let environment = [("LOCAL_WORLD_SIZE", ranks), ("LOCAL_RANK", rank)];
    scratch.train_in(&environment, "run", &[&["--dry-run"], more].concat())
}

/// `2 threads on CPUs 0-1` of the line that says what a run computes with.
fn threads(finished: Finished) -> String {
    let said = finished.expect(0).stderr;
    let line = said.lines().find_map(|line| line.strip_prefix("machine     cpu, "));
    line.unwrap_or_else(|| panic!("{said}")).to_owned()
}

#[test]
fn ranks_of_one_host_share_its_cores() {
    let scratch = Scratch::new();
    let of = |rank, ranks| threads(dry_run(&scratch, rank, ranks, &["--threads", "0"]));
    let count = |line: &str| line.split(' ').next().unwrap().parse::<usize>().unwrap();
    let (alone, first, second) = (of("0", "1"), of("0", "2"), of("1", "2"));
    assert!(alone.contains(" on CPU"), "{alone}");
    if first.contains(" pinned to CPU") {
        let each = (count(&alone) / 2).max(1);
        assert_eq!((count(&first), count(&second)), (each, each), "{alone}; {first}; {second}");
        assert!(second.contains(" pinned to CPU") && second.ends_with(" (local rank 1 of 2)"), "{second}");
        assert_ne!(first.replace("rank 0", "rank 1"), second);
        let unpinned = dry_run(&scratch, "1", "2", &["--threads", "0", "--set", "run.pin_threads=false"]);
        assert!(threads(unpinned).contains(" on CPU"));
    } else {
        // There is one core, or the one who started this test bound it to some.
        assert_eq!((first, second), (format!("{alone} (local rank 0 of 2)"), format!("{alone} (local rank 1 of 2)")));
    }
}

#[test]
fn the_flag_wins_over_the_file_and_set() {
    let scratch = Scratch::new();
    let with = |more: &[&str]| threads(dry_run(&scratch, "0", "1", more));
    assert!(with(&[]).starts_with("1 thread on CPU"));
    assert!(with(&["--set", "run.threads=2"]).starts_with("2 threads on CPU"));
    assert!(with(&["--threads", "3", "--set", "run.threads=2"]).starts_with("3 threads on CPU"));
    let error = dry_run(&scratch, "2", "2", &[]).error();
    assert!(error.contains("the local rank is 2 (LOCAL_RANK or SLURM_LOCALID), but LOCAL_WORLD_SIZE is"), "{error}");
}
