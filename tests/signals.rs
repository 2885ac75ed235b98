//! Signals, killed processes and the lock of the run directory.

use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Scratch, command, without_speeds};

pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Waits until metrics.jsonl of the run has `lines` lines.
pub(crate) fn wait_for_lines(scratch: &Scratch, run: &str, lines: usize) {
    let (path, start) = (scratch.path(run).join("metrics.jsonl"), Instant::now());
    while std::fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < lines {
        assert!(start.elapsed() < Duration::from_secs(60), "no {lines} lines in {}", path.display());
        sleep(Duration::from_millis(5));
    }
}

/// Waits until the run has a checkpoint.
pub(crate) fn wait_for_checkpoint(scratch: &Scratch, run: &str) {
    let start = Instant::now();
    while !scratch.path(run).join("checkpoints").is_dir() || scratch.checkpoints(run).is_empty() {
        assert!(start.elapsed() < Duration::from_secs(60), "no checkpoint of {run}");
        sleep(Duration::from_millis(5));
    }
}

/// Settings of a run that is too long to finish before a signal arrives.
pub(crate) const LONG_RUN: [&str; 4] = ["--set", "schedule.max_steps=3000", "--set", "checkpoint.every_steps=0"];

#[test]
fn a_signal_saves_a_checkpoint_and_exits_with_85() {
    for name in ["USR1", "TERM", "INT"] {
        let scratch = Scratch::new();
        let mut child = scratch.spawn_training("run", &LONG_RUN);
        wait_for_lines(&scratch, "run", 3);
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(85), "SIG{name}");
        let steps = scratch.checkpoints("run");
        let done = scratch.metrics("run").last().unwrap()["step"].as_u64().unwrap();
        assert_eq!(steps, [done]);
    }
}

#[test]
fn a_second_sigterm_exits_at_once() {
    let scratch = Scratch::new();
    // One step takes several seconds.
    let slow = ["--set", "batch.tokens_per_step=960000", "--set", "batch.micro_batch_size=100"];
    let mut child = scratch.spawn_training("run", &slow);
    let log = scratch.path("run").join("log.txt");
    let start = Instant::now();
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("machine") {
        assert!(start.elapsed() < Duration::from_secs(60));
        sleep(Duration::from_millis(5));
    }
    sleep(Duration::from_millis(200));
    signal(&child, "USR1"); // does not count as the first SIGTERM
    signal(&child, "TERM");
    sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "the first SIGTERM waits for the end of the step");
    let sent = Instant::now();
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    assert!(sent.elapsed() < Duration::from_secs(1));
}

/// Slurm sends SIGTERM twice in short succession to a task that it ends.
#[test]
fn two_sigterms_in_a_slurm_step_count_as_one() {
    let scratch = Scratch::new();
    let arguments = scratch.train_arguments("run", &LONG_RUN);
    let mut step = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    step.envs([("SLURM_STEP_ID", "0"), ("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1")]);
    let mut child = step.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_lines(&scratch, "run", 3);
    signal(&child, "TERM");
    signal(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(85));
}

#[test]
fn a_killed_run_resumes_to_the_same_weights() {
    let scratch = Scratch::new();
    let steps = ["--set", "schedule.max_steps=60", "--set", "checkpoint.every_steps=10"];
    scratch.train("whole", &steps).expect(0);
    let resume = [&steps[..], &["--resume", "auto"]].concat();
    for lines in [5, 25, 40] {
        let mut child = scratch.spawn_training("run", &resume);
        wait_for_lines(&scratch, "run", lines);
        signal(&child, "KILL");
        child.wait().unwrap();
    }
    scratch.train("run", &resume).expect(0);
    let weights = |run: &str| std::fs::read(scratch.checkpoint(run, 60).join("model.safetensors")).unwrap();
    assert_eq!(weights("whole"), weights("run"));
    assert_eq!(without_speeds(&scratch.metrics("whole")), without_speeds(&scratch.metrics("run")));
}

#[test]
fn a_run_directory_in_use_is_rejected() {
    let scratch = Scratch::new();
    let mut child = scratch.spawn_training("run", &LONG_RUN);
    wait_for_lines(&scratch, "run", 1);
    let error = scratch.train("run", &["--resume", "auto"]).error();
    assert!(error.contains("is in use by another process"), "{error}");
    signal(&child, "KILL");
    child.wait().unwrap();
    scratch.train("run", &["--resume", "auto", "--stop-after", "2"]).expect(85);
}
