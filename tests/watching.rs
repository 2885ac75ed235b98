//! The commands plan, status and plot, profiling, and the program's version, completions and manual
//! pages.

use std::fs;

use serde_json::Value;

use crate::signals::{LONG_RUN, signal, wait_for_lines};
use crate::support::{Scratch, backpack, without_speeds};

#[test]
fn plan_needs_no_data() {
    let plan = ["plan", "--config", "configs/owt/small.toml", "--set", "data.path=nowhere", "--set", "run.device=cpu"];
    let finished = backpack(&plan).expect(0);
    assert!(finished.stdout.starts_with("model       170083584 parameters\n"), "{}", finished.stdout);
    assert!(finished.stdout.contains("the data does not exist") && !finished.stdout.contains("warning"));
    let rates =
        ["--processes", "4", "--tokens-per-second", "168000", "--watts", "400", "--price-per-hour", "2", "--json"];
    let json = backpack(&[&plan[..], &rates[..], &["--train-tokens", "9035582198"]].concat()).expect(0).json();
    assert_eq!((json["tokens"].as_u64(), json["accumulation"].as_u64()), (Some(52_428_800_000), Some(16)));
    assert!((json["epochs"].as_f64().unwrap() - 5.80).abs() < 0.005);
    let kilowatt_hours = json["cost"]["kilowatt_hours"].as_f64().unwrap();
    assert!((kilowatt_hours / 138.7 - 1.0).abs() < 0.01, "{kilowatt_hours}");
    let error = backpack(&["plan", "--config", "configs/owt/small.toml", "--processes", "3"]).error();
    assert!(error.contains("do not divide among 3 ranks"), "{error}");
}

#[test]
fn included_configurations_cause_no_warnings() {
    for name in [
        "quickstart",
        "half-hour",
        "owt/micro",
        "owt/mini",
        "owt/small",
        "owt/gpt2-small",
        "owt/ablations/mini-16-senses",
    ] {
        let config = format!("configs/{name}.toml");
        let printed = backpack(&["plan", "--config", &config, "--set", "run.device=cuda"]).expect(0).stdout;
        assert!(!printed.contains("warning"), "{name}: {printed}");
    }
}

#[test]
fn status_reports_stopped_running_killed_and_finished_runs() {
    let scratch = Scratch::new();
    let run = scratch.path_str("run");
    let status = || backpack(&["status", &run, "--watts", "100", "--json"]).expect(0).json();
    scratch.train("run", &["--stop-after", "6"]).expect(85);
    let stopped = status();
    assert_eq!((stopped["activity"].as_str(), stopped["step"].as_u64()), (Some("stopped"), Some(6)));
    assert_eq!(stopped["checkpoint"]["verified"], Value::Bool(true));
    assert!(stopped["cost"]["kilowatt_hours"].as_f64().unwrap() > 0.0);

    let mut child = scratch.spawn_training("run", &[&LONG_RUN[..], &["--resume", "auto"]].concat());
    wait_for_lines(&scratch, "run", 12);
    let running = status();
    assert_eq!((running["activity"].as_str(), running["stalled"].as_bool()), (Some("running"), Some(false)));
    assert!(running["done_at"].as_f64().unwrap() > 0.0);
    // `status` does not keep the lock of the run directory: the run continues, and another `train`
    // fails.
    assert!(scratch.train("run", &["--resume", "auto"]).error().contains("is in use by another process"));
    signal(&child, "KILL");
    child.wait().unwrap();
    let killed = status();
    assert_eq!((killed["activity"].as_str(), killed["sessions"].as_u64()), (Some("dead"), Some(2)));
    assert!(killed["problems"][0].as_str().unwrap().contains("--resume auto"));

    scratch.train("run", &["--resume", "auto"]).expect(0);
    let text = backpack(&["status", &run]).expect(0).stdout;
    assert_eq!(text.lines().count(), 5, "{text}");
    assert!(text.contains("finished, step 12 of 12 (100%)") && text.contains("health      good"), "{text}");
    let error = backpack(&["status", &scratch.path_str("data")]).error();
    assert!(error.contains("is not a run directory"), "{error}");
}

#[test]
fn a_failed_run_records_its_error() {
    let scratch = Scratch::new();
    let error = scratch.train("run", &["--set", "optimizer.learning_rate=1e30", "--set", "optimizer.grad_clip=0"]);
    assert_ne!(error.code, 0);
    let printed = backpack(&["status", &scratch.path_str("run")]).expect(0).stdout;
    assert!(printed.contains("WARNING: the run ended with an error"), "{printed}");
    assert!(fs::read_to_string(scratch.path("run/log.txt")).unwrap().contains("\nerror       "));
}

#[test]
fn profiling_does_not_change_the_run() {
    let scratch = Scratch::new();
    scratch.train("plain", &[]).expect(0);
    let printed = scratch.train("profiled", &["--profile", "4"]).expect(0).stderr;
    assert!(printed.contains("profile     4 steps of ") && printed.contains("head and loss"), "{printed}");
    assert_eq!(without_speeds(&scratch.metrics("plain")), without_speeds(&scratch.metrics("profiled")));
    let weights = |run| fs::read(scratch.checkpoint(run, 12).join("model.safetensors")).unwrap();
    assert_eq!(weights("plain"), weights("profiled"));
    let trace = fs::read_to_string(scratch.path("profiled/profile.json")).unwrap();
    let trace: Value = serde_json::from_str(&trace).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let named = |name: &str| events.iter().filter(|event| event["name"] == name).count();
    // The first three steps are skipped. A step with two micro-batches has two events per part.
    assert_eq!((named("step 3"), named("step 4"), named("step 7"), named("step 8")), (0, 1, 1, 0));
    assert_eq!(named("body"), 8);
    assert!(fs::read_to_string(scratch.path("profiled/log.txt")).unwrap().contains("body backward"));
}

#[test]
fn the_plot_format_follows_the_extension() {
    let scratch = Scratch::new();
    scratch.train("run", &[]).expect(0);
    let (run, svg, png) = (scratch.path_str("run"), scratch.path_str("plots/a.svg"), scratch.path_str("plots/a.png"));
    backpack(&["plot", &run, &run, "--reference", "GPT-2=3.12", "--output", &svg]).expect(0);
    assert!(fs::read_to_string(&svg).unwrap().contains("GPT-2: 3.12"));
    backpack(&["plot", &run, "--output", &png]).expect(0);
    assert!(fs::read(&png).unwrap().starts_with(b"\x89PNG"));
    assert!(backpack(&["plot", &run, "--output", "a.jpg"]).error().contains("neither in .svg nor in .png"));
    backpack(&["plot", &run, "--reference", "3.12", "--output", &svg]).expect(2);
}

#[test]
fn failed_tensorboard_events_are_a_warning() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("run")).unwrap();
    fs::write(scratch.path("run/tensorboard"), "not a directory").unwrap();
    let printed = scratch.train("run", &[]).expect(0).stderr;
    assert_eq!(printed.matches("warning     TensorBoard").count(), 1, "{printed}");
}

#[test]
fn version_completions_and_manual_pages_are_printed() {
    let version = backpack(&["--version"]).expect(0).stdout;
    assert!(version.starts_with(&format!("backpack {}", env!("CARGO_PKG_VERSION"))), "{version}");
    for (shell, mark) in [("bash", "complete -F"), ("zsh", "#compdef backpack"), ("fish", "complete -c backpack")] {
        let script = backpack(&["completions", shell]).expect(0).stdout;
        assert!(script.contains(mark) && script.contains("prepare-data"), "{shell}");
    }
    assert!(backpack(&["man"]).expect(0).stdout.contains(".TH backpack 1"));
    let folder = tempfile::tempdir().unwrap();
    backpack(&["man", folder.path().to_str().unwrap()]).expect(0);
    let page = fs::read_to_string(folder.path().join("backpack-train.1")).unwrap();
    assert!(page.contains("resume") && page.contains("Example"));
}
