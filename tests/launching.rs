//! `backpack launch`: output, exits and signals of the ranks.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::signals::{LONG_RUN, signal, wait_for_lines};
use crate::support::{CommandOutput, Scratch, backpack, command};

/// The arguments after `launch --nproc N --`.
fn launch_arguments(nproc: usize, arguments: &[String]) -> Vec<String> {
    let launch = ["launch", "--nproc", &nproc.to_string(), "--"].map(str::to_owned);
    [&launch[..], arguments].concat()
}

fn as_strs(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Starts a launcher with captured output.
fn start_launcher(nproc: usize, arguments: &[String]) -> Child {
    let arguments = launch_arguments(nproc, arguments);
    command(&as_strs(&arguments)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Arguments of a `train` that blocks forever: its configuration is a FIFO without a writer.
fn train_that_hangs(scratch: &Scratch) -> Vec<String> {
    let config = scratch.path_str("fifo.toml");
    assert!(Command::new("mkfifo").arg(&config).status().unwrap().success());
    ["train", "--config", &config].map(str::to_owned).to_vec()
}

/// A field of /proc/PID/stat, counted from the state; none if the process does not exist.
fn stat(pid: u32, field: usize) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name of the program, before the state, may contain any character.
    let (_, fields) = text.rsplit_once(") ")?;
    fields.split(' ').nth(field).map(str::to_owned)
}

fn is_running(pid: u32) -> bool {
    stat(pid, 0).is_some_and(|state| state != "Z")
}

/// The child processes of `parent`, sorted by process id.
fn children(parent: u32) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let mut children: Vec<u32> = entries.filter(|&pid| stat(pid, 1) == Some(parent.to_string())).collect();
    children.sort_unstable();
    children
}

#[track_caller]
fn wait_until(what: &str, mut reached: impl FnMut() -> bool) {
    let start = Instant::now();
    while !reached() {
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// Waits until the launcher has `nproc` children that run this program, and returns them.
#[track_caller]
fn wait_for_ranks(launcher: &Child, nproc: usize) -> Vec<u32> {
    let mut found = Vec::new();
    wait_until("no ranks", || {
        found = children(launcher.id());
        // Between fork and exec a child is in the launcher's process group.
        found.len() == nproc && found.iter().all(|pid| stat(*pid, 2) == Some(pid.to_string()))
    });
    found
}

#[test]
fn launched_training_equals_direct_training() {
    let scratch = Scratch::new();
    scratch.train("alone", &[]).expect(0);
    let finished = backpack(&as_strs(&launch_arguments(1, &scratch.train_arguments("run", &[])))).expect(0);
    assert!(finished.stderr.contains("\n[0] finished    12 steps"), "{}", finished.stderr);
    assert!(finished.stderr.lines().all(|line| line.starts_with("[0] ")), "{}", finished.stderr);
    let weights = |run: &str| fs::read(scratch.checkpoint(run, 12).join("model.safetensors")).unwrap();
    assert_eq!(weights("alone"), weights("run"));

    let stopped = launch_arguments(1, &scratch.train_arguments("short", &["--stop-after", "3"]));
    let finished = backpack(&as_strs(&stopped)).expect(85);
    assert!(!finished.stderr.contains("error"), "{}", finished.stderr);
}

/// With run.device = "auto" the ranks set the environment variables of NCCL's flight recorder, also
/// on a machine without a GPU. A rank with more than one thread would print a warning instead.
#[test]
fn ranks_prepare_the_flight_recorder_before_they_start_threads() {
    let scratch = Scratch::new();
    let arguments = scratch.train_arguments("run", &["--set", "run.device=auto", "--stop-after", "1"]);
    let mut launch = command(&as_strs(&launch_arguments(2, &arguments)));
    let output = launch.env("CUDA_VISIBLE_DEVICES", "").output().unwrap();
    let finished = CommandOutput::from_output(output).expect(85);
    assert!(!finished.stderr.contains("flight recorder"), "{}", finished.stderr);
    // Only ranks with GPUs create the directory for the dumps.
    assert!(!scratch.path("run/nccl").exists());
}

#[test]
fn stdout_and_stderr_of_ranks_stay_separate() {
    let scratch = Scratch::new();
    let bench = ["bench", "--config", &scratch.path_str("small.toml"), "--steps", "1", "--json"].map(str::to_owned);
    let finished = backpack(&as_strs(&launch_arguments(1, &bench))).expect(0);
    assert!(finished.stdout.starts_with("[0] {") && finished.stdout.lines().count() == 1, "{}", finished.stdout);
    assert!(finished.stderr.lines().all(|line| line.starts_with("[0] ")), "{}", finished.stderr);
}

#[test]
fn wrong_usage_is_reported_once() {
    for (arguments, message) in [
        (&["--nproc", "0", "--", "train", "--config", "x"][..], "invalid value '0' for '--nproc <N>'"),
        (&["--nproc", "2"], "required arguments were not provided"),
        (&["--", "train", "--config", "x"], "required arguments were not provided"),
        (&["--nproc", "2", "train", "--config", "x"], "unexpected argument 'train'"),
        (&["--nproc", "2", "--", "doctor"], "only train and bench can be launched"),
        (&["--nproc", "2", "--", "launch", "--nproc", "2", "--", "train", "--config", "x"], "only train and bench"),
        (&["--nproc", "2", "--", "train", "--bogus"], "unexpected argument '--bogus'"),
        (&["--nproc", "2", "--", "train", "--config", "x", "--rank", "1"], "launch sets the rank, the world size"),
    ] {
        let finished = backpack(&[&["launch"], arguments].concat()).expect(2);
        assert_eq!(finished.stderr.matches(message).count(), 1, "{arguments:?}: {}", finished.stderr);
    }
    assert!(backpack(&["launch", "--nproc", "2", "--", "train", "--help"]).expect(0).stdout.contains("--stop-after"));
    let help = backpack(&["launch", "--nproc", "2", "--", "--help"]).expect(0).stdout;
    assert!(help.starts_with("Commands that can be launched\n"), "{help}");
}

#[test]
fn a_used_port_is_an_error() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let error = backpack(&["launch", "--nproc", "1", "--port", &port, "--", "train", "--config", "x"]).error();
    assert!(
        error.contains(&format!("cannot listen on port {port} of the loopback interface: choose another --port")),
        "{error}"
    );
}

#[test]
fn an_error_of_all_ranks_is_reported_by_each() {
    let finished = backpack(&["launch", "--nproc", "2", "--", "train", "--config", "missing.toml"]);
    let (stderr, error) = (finished.stderr.clone(), finished.error());
    for rank in [0, 1] {
        assert!(
            stderr.contains(&format!("[{rank}] error: rank {rank}: cannot read the configuration file missing.toml")),
            "{stderr}"
        );
    }
    let message = |rank| format!("error: rank {rank} of 2 exited with code 1");
    assert!(error == message(0) || error == message(1), "{error}");
}

#[test]
fn signals_are_forwarded_to_the_ranks() {
    for name in ["USR1", "TERM", "INT"] {
        let scratch = Scratch::new();
        let launcher = start_launcher(1, &scratch.train_arguments("run", &LONG_RUN));
        wait_for_lines(&scratch, "run", 3);
        let ranks = wait_for_ranks(&launcher, 1);
        signal(&launcher, name);
        let finished = CommandOutput::from_output(launcher.wait_with_output().unwrap()).expect(85);
        assert!(finished.stderr.contains("[0] stopped     after step"), "SIG{name}: {}", finished.stderr);
        assert!(!is_running(ranks[0]));
    }
}

#[test]
fn a_signal_is_forwarded_once_the_rank_has_a_handler() {
    let scratch = Scratch::new();
    let launcher = start_launcher(1, &scratch.train_arguments("run", &LONG_RUN));
    // The rank has not installed its handlers yet.
    wait_for_ranks(&launcher, 1);
    signal(&launcher, "USR1");
    CommandOutput::from_output(launcher.wait_with_output().unwrap()).expect(85);
}

#[test]
fn a_second_sigterm_ends_the_ranks_at_once() {
    let scratch = Scratch::new();
    let launcher = start_launcher(2, &train_that_hangs(&scratch));
    let ranks = wait_for_ranks(&launcher, 2);
    signal(&launcher, "TERM");
    sleep(Duration::from_secs(1));
    assert!(ranks.iter().all(|&rank| is_running(rank)), "the first SIGTERM waits for the end of the step");
    signal(&launcher, "TERM");
    let finished = CommandOutput::from_output(launcher.wait_with_output().unwrap()).expect(128 + 15);
    assert!(finished.stderr.contains(" of 2 exited with code 143"), "{}", finished.stderr);
    assert!(!ranks.iter().any(|&rank| is_running(rank)));
}

#[test]
fn a_killed_rank_ends_the_others() {
    let scratch = Scratch::new();
    let launcher = start_launcher(3, &train_that_hangs(&scratch));
    let ranks = wait_for_ranks(&launcher, 3);
    let killed = Instant::now();
    let sent = Command::new("kill").args(["-KILL", &ranks[1].to_string()]).status().unwrap();
    assert!(sent.success());
    let finished = CommandOutput::from_output(launcher.wait_with_output().unwrap()).expect(128 + 9);
    assert!(finished.stderr.contains("error: rank 1 of 3 was killed by SIGKILL"), "{}", finished.stderr);
    assert!(finished.stderr.contains("ranks 0, 2 still ran 5 s later and were killed"), "{}", finished.stderr);
    let elapsed = killed.elapsed().as_secs_f64();
    assert!((5.0..15.0).contains(&elapsed), "{elapsed}");
    assert!(!ranks.iter().any(|&rank| stat(rank, 0).is_some()), "a zombie remains");
}

#[test]
fn ranks_end_with_their_launcher() {
    // Ranks that have just been started, then ranks that hang.
    for hang in [false, true] {
        let scratch = Scratch::new();
        let mut launcher = start_launcher(2, &train_that_hangs(&scratch));
        let ranks = wait_for_ranks(&launcher, 2);
        if hang {
            sleep(Duration::from_secs(2));
        }
        assert!(ranks.iter().all(|&rank| is_running(rank)));
        signal(&launcher, "KILL");
        launcher.wait().unwrap();
        wait_until("a rank still runs", || !ranks.iter().any(|&rank| is_running(rank)));
    }
    let orphan = command(&["train", "--config", "x"]).env("BACKPACK_LAUNCHER", "1").output().unwrap();
    let error = CommandOutput::from_output(orphan).error();
    assert!(error.contains("BACKPACK_LAUNCHER is 1, but the parent process is "), "{error}");
}
