//! prepare-data as a process: killed, limited, twice at once, from a pipe.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::signals::signal;
use crate::support::{Scratch, backpack, root, start};

/// Bytes of every file of a folder, by name.
fn contents(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.file_name().unwrap().to_string_lossy().into_owned(), fs::read(&p).unwrap()))
        .collect();
    files.sort();
    files
}

/// The demo corpus many times over, so that there is time to be killed in.
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
fn killed_at_any_moment_it_ends_with_the_same_bytes() {
    let scratch = Scratch::new();
    let (input, whole, killed) = (corpus(&scratch), scratch.text("whole"), scratch.text("killed"));
    backpack(&arguments(&input, &whole)).expect(0);
    for milliseconds in [50, 150, 300, 450, 600, 800, 1000] {
        let mut child = start(&arguments(&input, &killed));
        sleep(Duration::from_millis(milliseconds));
        let _ = child.kill();
        child.wait().unwrap();
    }
    backpack(&arguments(&input, &killed)).expect(0);
    assert_eq!(contents(killed.as_ref()), contents(whole.as_ref()));
    let again = backpack(&arguments(&input, &killed)).expect(0);
    assert!(again.stdout.contains("was there already, of the same inputs"), "{}", again.stdout);
}

#[test]
fn a_second_process_and_a_file_size_limit_are_errors_of_one_line() {
    let scratch = Scratch::new();
    let (input, output) = (corpus(&scratch), scratch.text("out"));
    let mut first = start(&arguments(&input, &output));
    while !scratch.path(".out.partial/plan.json").exists() {
        sleep(Duration::from_millis(2));
    }
    // It must not be done before the second one looks, however busy the machine is.
    signal(&first, "STOP");
    assert!(backpack(&arguments(&input, &output)).error().contains("another process is preparing"));
    signal(&first, "CONT");
    assert!(first.wait().unwrap().success());

    let limited = scratch.text("limited");
    let command = "ulimit -f 4000; exec \"$@\"";
    let finished = Command::new("bash")
        .args(["-c", command, "bash", env!("CARGO_BIN_EXE_backpack")])
        .args(arguments(&input, &limited))
        .current_dir(root())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&finished.stderr).into_owned();
    assert_eq!(finished.status.code(), Some(1), "{error}");
    assert!(error.lines().last().unwrap().contains(": File too large"), "{error}");
    assert!(!scratch.path("limited").exists());
    backpack(&arguments(&input, &limited)).expect(0);
    assert_eq!(contents(limited.as_ref()), contents(output.as_ref()));
}

#[test]
fn standard_input_gives_what_the_file_gives_and_says_that_it_cannot_go_on() {
    let scratch = Scratch::new();
    let demo = fs::read(root().join("data/demo.jsonl")).unwrap();
    let (piped, file) = (scratch.text("piped"), scratch.text("file"));
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
