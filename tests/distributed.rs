//! Runs with several ranks on the loopback interface: the same training at every world size, and an
//! error message on all ranks if one fails.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::signals::{signal, wait_for_checkpoint, wait_for_lines};
use crate::support::{Scratch, command, without_speeds};

/// 12 sequences per step, a multiple of 1, 2, 3 and 4 ranks.
const BATCH: [&str; 6] = [
    "--set",
    "batch.tokens_per_step=384",
    "--set",
    "batch.micro_batch_size=1",
    "--set",
    "distributed.init_timeout_seconds=60",
];
const LONG_RUN: [&str; 4] = ["--set", "schedule.max_steps=3000", "--set", "checkpoint.every_steps=20"];

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string()
}

/// The processes of one run. Those that still run are killed when the value is dropped.
struct Processes {
    children: Vec<Child>,
    errors: Vec<std::path::PathBuf>,
}

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Processes {
    /// Starts `size` ranks. Rank r gets `BATCH` and `more(r)`.
    fn start(scratch: &Scratch, run: &str, size: usize, more: impl Fn(usize) -> Vec<String>) -> Self {
        Self::start_ranks(scratch, run, size, 0..size, &free_port(), more)
    }

    fn start_ranks(
        scratch: &Scratch,
        run: &str,
        size: usize,
        ranks: std::ops::Range<usize>,
        port: &str,
        more: impl Fn(usize) -> Vec<String>,
    ) -> Self {
        let mut processes = Processes { children: Vec::new(), errors: Vec::new() };
        for rank in ranks {
            let mut arguments = scratch.train_arguments(run, &BATCH);
            let world = format!("--rank {rank} --world-size {size} --master-addr 127.0.0.1 --master-port {port}");
            arguments.extend(world.split(' ').map(str::to_owned));
            arguments.extend(more(rank));
            let errors = scratch.path(&format!("{run}-{rank}-{port}.stderr"));
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let child = command(&arguments).stdout(Stdio::null()).stderr(File::create(&errors).unwrap()).spawn();
            processes.children.push(child.unwrap());
            processes.errors.push(errors);
        }
        processes
    }

    /// The exit codes by rank; -1 for a signal.
    #[track_caller]
    fn codes(&mut self, within: Duration) -> Vec<i32> {
        let start = Instant::now();
        let mut codes = Vec::new();
        for (rank, child) in self.children.iter_mut().enumerate() {
            let status = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break status;
                }
                let printed = fs::read_to_string(&self.errors[rank]).unwrap();
                assert!(start.elapsed() < within, "rank {rank} still runs after {within:?}; its output:\n{printed}");
                sleep(Duration::from_millis(5));
            };
            codes.push(status.code().unwrap_or(-1));
        }
        codes
    }

    fn stderr(&self, rank: usize) -> String {
        fs::read_to_string(&self.errors[rank]).unwrap()
    }

    /// The error line of a rank.
    #[track_caller]
    fn error(&self, rank: usize) -> String {
        let printed = self.stderr(rank);
        let lines: Vec<&str> = printed.lines().filter(|line| line.starts_with("error: ")).collect();
        assert_eq!(lines.len(), 1, "{printed}");
        assert!(lines[0].starts_with(&format!("error: rank {rank}: ")), "{printed}");
        lines[0].to_owned()
    }
}

const MINUTE: Duration = Duration::from_secs(60);

fn owned(arguments: &[&str]) -> Vec<String> {
    arguments.iter().map(|argument| (*argument).to_owned()).collect()
}

/// Trains with `size` ranks, which must all exit with `code`.
#[track_caller]
fn train(scratch: &Scratch, run: &str, size: usize, more: &[&str], code: i32) -> Vec<Value> {
    if size == 1 {
        scratch.train(run, &[&BATCH[..], more].concat()).expect(code);
    } else {
        let mut processes = Processes::start(scratch, run, size, |_| owned(more));
        let codes = processes.codes(MINUTE);
        assert_eq!(codes, vec![code; size], "{}", processes.stderr(0) + &processes.stderr(1));
        // Without an error only rank 0 prints.
        assert!(!processes.stderr(0).is_empty());
        assert!((1..size).all(|rank| processes.stderr(rank).is_empty()), "{}", processes.stderr(1));
    }
    scratch.metrics(run)
}

#[track_caller]
fn assert_close(a: &[Value], b: &[Value], keys: &[&str], within: f64) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert_eq!((&a["step"], &a["tokens"]), (&b["step"], &b["tokens"]));
        for key in keys {
            match (a[key].as_f64(), b[key].as_f64()) {
                (Some(x), Some(y)) => assert!((x - y).abs() < within, "{key}: {a} {b}"),
                (x, y) => assert_eq!(x, y, "{key}: {a} {b}"),
            }
        }
    }
}

fn weights(scratch: &Scratch, run: &str) -> Vec<u8> {
    fs::read(scratch.checkpoint(run, 12).join("model.safetensors")).unwrap()
}

#[test]
fn training_is_the_same_at_every_world_size() {
    let scratch = Scratch::new();
    let plain = ["--set", "model.dropout=0"];
    let one = train(&scratch, "one", 1, &plain, 0);
    for (run, size) in [("two", 2), ("three", 3), ("four", 4)] {
        let several = train(&scratch, run, size, &plain, 0);
        assert_close(&one, &several, &["loss", "val_loss"], 1e-5);
        assert_close(&one, &several, &["lr"], 1e-12);
        assert_close(&one, &several, &["grad_norm"], 1e-4);
    }
    // Reducing after the backward pass gives the same gradients.
    let after = train(&scratch, "after", 2, &[&plain[..], &["--set", "distributed.overlap=false"]].concat(), 0);
    assert_close(&scratch.metrics("two"), &after, &["loss", "grad_norm", "val_loss"], 1e-6);
    // Another order of the data gives other losses, so the equality above is not accidental.
    let other = train(&scratch, "other", 2, &[&plain[..], &["--set", "run.seed=5"]].concat(), 0);
    let differs = one.iter().zip(&other).any(|(a, b)| match (a["loss"].as_f64(), b["loss"].as_f64()) {
        (Some(a), Some(b)) => (a - b).abs() > 1e-4,
        _ => false,
    });
    assert!(differs);
}

#[test]
fn a_run_resumes_at_another_world_size() {
    let scratch = Scratch::new();
    let plain = ["--set", "model.dropout=0"];
    let whole = train(&scratch, "whole", 1, &plain, 0);
    train(&scratch, "parts", 2, &[&plain[..], &["--stop-after", "3"]].concat(), 85);
    let resume = |stop: &str| owned(&[&plain[..], &["--resume", "auto", "--stop-after", stop]].concat());
    let mut three = Processes::start(&scratch, "parts", 3, |_| resume("7"));
    assert_eq!(three.codes(MINUTE), [85; 3]);
    assert!(three.stderr(0).contains("at step 3"), "{}", three.stderr(0));
    scratch.train("parts", &[&BATCH[..], &plain, &["--resume", "auto"]].concat()).expect(0);
    assert_close(&whole, &scratch.metrics("parts"), &["loss", "val_loss"], 1e-5);
}

#[test]
fn resuming_two_ranks_is_bit_identical() {
    let scratch = Scratch::new();
    // With bf16, each rank also keeps copies of the weights that rank 0 sends.
    for precision in ["run.precision=fp32", "run.precision=bf16"] {
        fs::remove_dir_all(scratch.path("whole")).ok();
        fs::remove_dir_all(scratch.path("parts")).ok();
        let options = ["--set", "model.dropout=0.1", "--set", precision];
        let whole = train(&scratch, "whole", 2, &options, 0);
        train(&scratch, "parts", 2, &[&options[..], &["--stop-after", "5"]].concat(), 85);
        let parts = train(&scratch, "parts", 2, &[&options[..], &["--resume", "auto"]].concat(), 0);
        assert_eq!(weights(&scratch, "whole"), weights(&scratch, "parts"), "{precision}");
        assert_eq!(without_speeds(&whole), without_speeds(&parts), "{precision}");
    }
    // All ranks report that a run is finished.
    let mut again = Processes::start(&scratch, "whole", 2, |_| owned(&["--resume", "auto"]));
    assert_eq!(again.codes(MINUTE), [0, 0]);
    assert!(again.stderr(0).contains("this run is finished"), "{}", again.stderr(0));
}

#[test]
fn a_signal_to_one_rank_stops_all_after_the_same_step() {
    for name in ["USR1", "TERM"] {
        let scratch = Scratch::new();
        let mut processes = Processes::start(&scratch, "run", 3, |_| owned(&LONG_RUN));
        wait_for_lines(&scratch, "run", 4);
        signal(&processes.children[2], name);
        assert_eq!(processes.codes(MINUTE), [85; 3], "{}", processes.stderr(0));
        let done = scratch.metrics("run").last().unwrap()["step"].as_u64().unwrap();
        assert_eq!(scratch.checkpoints("run").last(), Some(&done));
    }
}

#[test]
fn all_ranks_fail_if_rank_0_cannot_write_the_last_checkpoint() {
    let scratch = Scratch::new();
    let no_periodic_saves = ["--set", "schedule.max_steps=3000", "--set", "checkpoint.every_steps=0"];
    let mut processes = Processes::start(&scratch, "run", 2, |_| owned(&no_periodic_saves));
    wait_for_lines(&scratch, "run", 4);
    // Only rank 0 writes to the directory of the checkpoints.
    fs::write(scratch.path("run/checkpoints"), "a file").unwrap();
    signal(&processes.children[1], "TERM");
    assert_eq!(processes.codes(MINUTE), [1, 1], "{}", processes.stderr(0));
    assert!(processes.error(0).contains("cannot be written"), "{}", processes.error(0));
    let other = processes.error(1);
    assert!(other.contains("rank 0 failed: the checkpoint") && other.contains("cannot be written"), "{other}");
}

#[test]
fn a_time_limit_stops_all_ranks_with_a_checkpoint() {
    let scratch = Scratch::new();
    // The time limit of one rank applies to all.
    let limit = |rank| owned(&[&LONG_RUN[..], if rank == 1 { &["--time-limit", "6"] } else { &[] }].concat());
    let mut processes = Processes::start(&scratch, "run", 2, limit);
    assert_eq!(processes.codes(MINUTE), [85, 85], "{}", processes.stderr(0));
    assert!(!scratch.checkpoints("run").is_empty());
}

#[test]
fn the_other_ranks_fail_when_one_is_killed() {
    for killed in [0, 1, 2] {
        let scratch = Scratch::new();
        let mut processes = Processes::start(&scratch, "run", 3, |_| owned(&LONG_RUN));
        wait_for_lines(&scratch, "run", 25);
        // Checkpoints are written in the background.
        wait_for_checkpoint(&scratch, "run");
        let last = scratch.checkpoints("run").last().copied().unwrap();
        signal(&processes.children[killed], "KILL");
        let at = Instant::now();
        let codes = processes.codes(Duration::from_secs(20));
        assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
        for rank in (0..3).filter(|rank| *rank != killed) {
            assert_eq!(codes[rank], 1, "{}", processes.stderr(rank));
            let error = processes.error(rank);
            assert!(error.contains("the connection to another rank broke"), "{error}");
        }
        // The last checkpoint is intact: the run resumes from it or a later one.
        let more = ["--resume", "auto", "--set", "schedule.max_steps=3000", "--stop-after", "45"];
        let resumed = scratch.train("run", &[&BATCH[..], &more].concat()).expect(85);
        assert!(resumed.stderr.contains("resuming"), "{}", resumed.stderr);
        assert!(scratch.checkpoints("run").contains(&45) && last <= 45);
    }
}

#[test]
fn a_hanging_rank_is_a_timeout_for_the_others() {
    let scratch = Scratch::new();
    let more = owned(&[&LONG_RUN[..], &["--set", "distributed.timeout_seconds=2"]].concat());
    let mut processes = Processes::start(&scratch, "run", 2, |_| more.clone());
    wait_for_lines(&scratch, "run", 3);
    signal(&processes.children[1], "STOP");
    let at = Instant::now();
    let mut hung = processes.children.pop().unwrap();
    let codes = processes.codes(Duration::from_secs(20));
    hung.kill().unwrap();
    hung.wait().unwrap();
    assert_eq!(codes, [1], "{}", processes.stderr(0));
    assert!(at.elapsed() > Duration::from_secs(1) && at.elapsed() < Duration::from_secs(8), "{:?}", at.elapsed());
    assert!(processes.error(0).contains("another rank did not respond"), "{}", processes.error(0));
}

#[test]
fn the_watchdog_ends_a_stalled_process() {
    let scratch = Scratch::new();
    let more = owned(&[&LONG_RUN[..], &["--set", "run.watchdog_seconds=3"]].concat());
    let mut processes = Processes::start(&scratch, "run", 2, |_| more.clone());
    wait_for_lines(&scratch, "run", 3);
    signal(&processes.children[1], "STOP");
    let mut hung = processes.children.pop().unwrap();
    let codes = processes.codes(Duration::from_secs(30));
    hung.kill().unwrap();
    hung.wait().unwrap();
    assert_eq!(codes, [124], "{}", processes.stderr(0));
    assert!(processes.error(0).contains("no progress for 3s"), "{}", processes.error(0));
}

#[test]
fn all_ranks_skip_the_same_steps_and_fail_together() {
    let scratch = Scratch::new();
    let spikes = ["--set", "step_guard.spike_window=3", "--set", "step_guard.spike_z_score=0.5"];
    let steps = ["--set", "schedule.max_steps=40", "--set", "model.dropout=0"];
    let skip = [&spikes[..], &steps, &["--set", "step_guard.skip_spikes=true"]].concat();
    let (one, two) = (train(&scratch, "one", 1, &skip, 0), train(&scratch, "two", 2, &skip, 0));
    assert_close(&one, &two, &["loss", "skipped"], 1e-4);
    let last = two.iter().rfind(|line| line.get("loss").is_some()).unwrap();
    assert!(last["skipped"].as_u64().unwrap() > 0, "{last}");
    let hot = ["--set", "optimizer.learning_rate=1e30", "--set", "step_guard.max_consecutive_bad_steps=3"];
    let mut processes = Processes::start(&scratch, "hot", 2, |_| owned(&hot));
    assert_eq!(processes.codes(MINUTE), [1, 1]);
    for rank in 0..2 {
        let error = processes.error(rank);
        assert!(error.contains("step_guard.max_consecutive_bad_steps is 3"), "{error}");
    }
}

#[test]
fn different_settings_of_the_ranks_are_reported_by_all() {
    let scratch = Scratch::new();
    let seed = |rank| owned(if rank == 1 { &["--set", "run.seed=7"] } else { &[] });
    let mut processes = Processes::start(&scratch, "run", 2, seed);
    assert_eq!(processes.codes(MINUTE), [1, 1]);
    for rank in 0..2 {
        let error = processes.error(rank);
        assert!(error.contains("run.seed is 7 on rank 1 and 1111 on rank 0"), "{error}");
    }
    // Data that one rank does not have.
    let data = |rank| owned(if rank == 1 { &["--set", "data.path=nowhere"] } else { &[] });
    let mut processes = Processes::start(&scratch, "run", 2, data);
    assert_eq!(processes.codes(MINUTE), [1, 1]);
    assert!(processes.error(0).contains("rank 1 failed: ") && processes.error(0).contains("nowhere"));
    assert!(!scratch.path("run").exists(), "no run was started");
}

#[test]
fn an_error_of_rank_0_is_reported_by_all() {
    let scratch = Scratch::new();
    train(&scratch, "run", 2, &["--stop-after", "2"], 85);
    let mut processes = Processes::start(&scratch, "run", 2, |_| Vec::new());
    assert_eq!(processes.codes(MINUTE), [1, 1]);
    assert!(processes.error(0).contains("already holds checkpoints"), "{}", processes.error(0));
    assert!(processes.error(1).contains("rank 0 failed: the run directory already holds checkpoints"));
}

#[test]
fn missing_ranks_and_used_ports_are_reported() {
    let scratch = Scratch::new();
    let soon = |_| owned(&["--set", "distributed.init_timeout_seconds=3"]);
    let mut two_of_three = Processes::start_ranks(&scratch, "run", 3, 0..2, &free_port(), soon);
    assert_eq!(two_of_three.codes(MINUTE), [1, 1]);
    let error = two_of_three.error(0);
    assert!(error.contains("2 of 3 ranks joined") && error.contains("missing: 2"), "{error}");
    // Rank 0 does not run.
    let mut alone = Processes::start_ranks(&scratch, "run", 2, 1..2, &free_port(), soon);
    assert_eq!(alone.codes(MINUTE), [1]);
    assert!(alone.stderr(0).contains("could not reach rank 0 at 127.0.0.1:"), "{}", alone.stderr(0));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut first = Processes::start_ranks(&scratch, "run", 2, 0..1, &port, soon);
    assert_eq!(first.codes(MINUTE), [1]);
    assert!(first.error(0).contains(&format!("cannot listen at port {port}")), "{}", first.error(0));
}

/// Runs `launch` as a user does.
#[test]
fn launch_trains_with_several_processes() {
    let scratch = Scratch::new();
    let arguments = scratch.train_arguments("run", &[&BATCH[..], &["--stop-after", "4"]].concat());
    let mut launch = vec!["launch", "--nproc", "2", "--"];
    launch.extend(arguments.iter().map(String::as_str));
    let output = command(&launch).output().unwrap();
    let printed = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(85), "{printed}");
    assert!(printed.lines().any(|line| line.starts_with("[0] processes   2")), "{printed}");
    assert_eq!(scratch.checkpoints("run"), [4]);
    // If one rank is killed, the others and the launcher end at once.
    let long = scratch.train_arguments("long", &[&BATCH[..], &LONG_RUN].concat());
    let mut launch = vec!["launch", "--nproc", "2", "--"];
    launch.extend(long.iter().map(String::as_str));
    let mut launcher = command(&launch).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for_lines(&scratch, "long", 3);
    let children = Command::new("pgrep").args(["-P", &launcher.id().to_string()]).output().unwrap();
    let children: Vec<u32> = String::from_utf8(children.stdout).unwrap().lines().map(|p| p.parse().unwrap()).collect();
    assert_eq!(children.len(), 2);
    assert!(Command::new("kill").args(["-KILL", &children[1].to_string()]).status().unwrap().success());
    let at = Instant::now();
    let code = launcher.wait().unwrap().code();
    assert!(at.elapsed() < Duration::from_secs(4), "{:?}", at.elapsed());
    assert_eq!(code, Some(128 + 9));
    assert!(children.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()));
}
