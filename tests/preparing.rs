//! `prepare-data` killed, with a limited file size, started twice, and reading a pipe.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::signals::signal;
use crate::support::{Scratch, backpack, root, spawn};

/// The bytes of every file of a directory, sorted by name.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}

/// Writes 60 copies of the demo corpus, so that the preparation takes long enough to be killed.
fn corpus(scratch: &Scratch) -> String {
    let demo = fs::read(root().join("data/demo.jsonl")).unwrap();
    let path = scratch.path("corpus.jsonl");
    fs::write(&path, demo.repeat(60)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn arguments<'a>(input: &'a str, output: &'a str) -> Vec<&'a str> {
    vec!["prepare-data", "--input", input, "--output", output, "--val-fraction", "0.01", "--shard-tokens", "2000000"]
}

#[test]
fn a_killed_preparation_resumes_to_the_same_bytes() {
    let scratch = Scratch::new();
    let (input, whole, killed) = (corpus(&scratch), scratch.path_str("whole"), scratch.path_str("killed"));
    backpack(&arguments(&input, &whole)).expect(0);
    for milliseconds in [50, 150, 300, 450, 600, 800, 1000] {
        let mut child = spawn(&arguments(&input, &killed));
        sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
    }
    backpack(&arguments(&input, &killed)).expect(0);
    assert_eq!(contents(killed.as_ref()), contents(whole.as_ref()));
    let again = backpack(&arguments(&input, &killed)).expect(0);
    assert!(again.stdout.contains("already complete"), "{}", again.stdout);
}

#[test]
fn a_second_process_and_a_file_size_limit_are_errors() {
    let scratch = Scratch::new();
    let (input, output) = (corpus(&scratch), scratch.path_str("out"));
    let mut first = spawn(&arguments(&input, &output));
    while !scratch.path(".out.partial/plan.json").exists() {
        sleep(Duration::from_millis(2));
    }
    // The first process must not finish before the second one starts.
    signal(&first, "STOP");
    assert!(backpack(&arguments(&input, &output)).error().contains("another process is preparing"));
    signal(&first, "CONT");
    assert!(first.wait().unwrap().success());

    let limited = scratch.path_str("limited");
    let command = "ulimit -f 4000; exec \"$@\"";
    let finished = Command::new("bash")
        .args(["-c", command, "bash", env!("CARGO_BIN_EXE_backpack")])
        .args(arguments(&input, &limited))
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert_eq!(finished.status.code(), Some(1), "{error}");
    let last = error.lines().last().unwrap();
    assert!(last.contains("cannot write ") && last.contains(": File too large"), "{error}");
    assert!(!scratch.path("limited").exists());
    backpack(&arguments(&input, &limited)).expect(0);
    assert_eq!(contents(limited.as_ref()), contents(output.as_ref()));
}

#[test]
fn standard_input_gives_the_same_shards_as_a_file() {
    let scratch = Scratch::new();
    let demo = fs::read(root().join("data/demo.jsonl")).unwrap();
    let (piped, file) = (scratch.path_str("piped"), scratch.path_str("file"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_backpack"))
        .args(arguments("-", &piped))
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&demo).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("it has to start over"));
    backpack(&arguments("data/demo.jsonl", &file)).expect(0);
    let shards = |folder: &str| {
        let mut files = contents(folder.as_ref());
        files.retain(|(name, _)| name.ends_with(".bin"));
        files
    };
    assert_eq!(shards(&piped), shards(&file));
}
