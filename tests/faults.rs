//! Faults of long runs: non-finite steps, loss spikes, a full disk. scripts/torture.sh tests more
//! of them.

use std::fs;

use serde_json::Value;

use crate::support::{CommandOutput, Scratch, without_speeds};

const DROPOUT: [&str; 2] = ["--set", "model.dropout=0.1"];

#[test]
fn consecutive_bad_steps_end_the_run_with_the_last_good_weights() {
    let scratch = Scratch::new();
    // The second step has a quarter of this learning rate and makes the weights huge.
    let hot = ["--set", "optimizer.learning_rate=1e30", "--set", "step_guard.max_consecutive_bad_steps=4"];
    let run = scratch.train("run", &[&hot[..], &["--set", "checkpoint.every_steps=0"]].concat());
    let skipped = run.stderr.lines().filter(|line| line.starts_with("skipped     step ")).count();
    let error = run.error();
    assert!(
        error.contains("4 consecutive bad steps up to step 6, ")
            && error.contains("(step_guard.max_consecutive_bad_steps is 4)"),
        "{error}"
    );
    assert!(error.contains("resume with --resume auto from step 2, which has the weights from before"), "{error}");
    assert_eq!((scratch.checkpoints("run"), skipped), (vec![2], 4));
    let bad = &scratch.metrics("run")[3];
    assert_eq!((&bad["loss"], &bad["step"], &bad["skipped"]), (&Value::Null, &4.into(), &2.into()));
    // A checkpoint that is due during the bad steps has the same weights.
    let due = scratch.train("due", &[&hot[..], &["--set", "checkpoint.every_steps=5"]].concat()).error();
    assert!(due.contains("resume with --resume auto from step 5, which"), "{due}");
    let weights = |run: &str, step| fs::read(scratch.checkpoint(run, step).join("model.safetensors")).unwrap();
    assert_eq!(weights("due", 5), weights("run", 2));
}

#[test]
fn a_run_that_skips_spikes_resumes_bit_identically() {
    let scratch = Scratch::new();
    let spikes = ["--set", "step_guard.spike_window=3", "--set", "step_guard.spike_z_score=0.5"];
    let skip = [&spikes[..], &["--set", "step_guard.skip_spikes=true"], &DROPOUT].concat();
    let whole = scratch.train("whole", &skip).expect(0);
    assert!(
        whole.stderr.contains("spike       step ") && whole.stderr.contains("skipped     step "),
        "{}",
        whole.stderr
    );
    for stop in ["4", "5", "9"] {
        scratch.train("parts", &[&skip[..], &["--resume", "auto", "--stop-after", stop]].concat()).expect(85);
    }
    scratch.train("parts", &[&skip[..], &["--resume", "auto"]].concat()).expect(0);
    let bytes = |run: &str, file: &str| fs::read(scratch.checkpoint(run, 12).join(file)).unwrap();
    for file in ["model.safetensors", "optimizer.safetensors"] {
        assert_eq!(bytes("whole", file), bytes("parts", file), "{file}");
    }
    assert_eq!(without_speeds(&scratch.metrics("whole")), without_speeds(&scratch.metrics("parts")));
    // By default spikes are only reported.
    scratch.train("reported", &[&spikes[..], &DROPOUT].concat()).expect(0);
    let last = |run: &str| scratch.metrics(run).into_iter().rfind(|line| line.get("loss").is_some()).unwrap();
    assert!(last("reported").get("skipped").is_none() && last("reported")["spikes"].as_u64().unwrap() > 0);
    assert!(last("whole")["skipped"].as_u64().unwrap() > 0);
}

#[test]
fn the_fp16_loss_scale_is_found_and_restored() {
    let scratch = Scratch::new();
    let half = ["--set", "run.precision=fp16", "--set", "step_guard.initial_loss_scale=4294967296"];
    for kernels in ["reference", "fused"] {
        let kernels = format!("run.kernels={kernels}");
        let arguments = [&half[..], &["--set", &kernels], &DROPOUT].concat();
        let (whole, parts) = (format!("whole-{kernels}"), format!("parts-{kernels}"));
        let steps = ["--set", "schedule.max_steps=40"];
        scratch.train(&whole, &[&arguments[..], &steps].concat()).expect(0);
        scratch.train(&parts, &[&arguments[..], &steps, &["--stop-after", "3"]].concat()).expect(85);
        scratch.train(&parts, &[&arguments[..], &steps, &["--resume", "auto"]].concat()).expect(0);
        let metrics = scratch.metrics(&whole);
        assert_eq!(without_speeds(&metrics), without_speeds(&scratch.metrics(&parts)));
        let lines: Vec<&Value> = metrics.iter().filter(|line| line.get("lr").is_some()).collect();
        let last = lines.last().unwrap();
        let (skipped, scale) = (last["skipped"].as_u64().unwrap(), last["loss_scale"].as_f64().unwrap());
        assert!(skipped > 3 && scale == 2f64.powi(32 - skipped as i32), "{last}");
        assert_eq!((&lines[0]["grad_norm"], lines[0]["loss"].is_number()), (&Value::Null, true));
        assert!(last["loss"].as_f64().unwrap() < lines[0]["loss"].as_f64().unwrap() - 0.2, "{last}");
    }
}

#[test]
fn a_failed_checkpoint_is_a_warning_but_an_error_at_the_last_step() {
    let scratch = Scratch::new();
    scratch.train("whole", &[]).expect(0);
    scratch.train("run", &["--stop-after", "3"]).expect(85);
    // Limits the size of a file to 100 KiB.
    let limited = |arguments: &[String]| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "ulimit -f 200 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_backpack")]).args(arguments);
        CommandOutput::from_output(shell.output().unwrap())
    };
    let ended = limited(&scratch.train_arguments("run", &["--resume", "auto"]));
    for step in ["step-00000004", "step-00000008"] {
        let warned = ended.stderr.lines().any(|line| {
            line.starts_with("warning     the checkpoint") && line.contains(step) && line.contains("the run continues")
        });
        assert!(warned, "{}", ended.stderr);
    }
    let error = ended.error();
    assert!(error.contains("step-00000012 cannot be written; older checkpoints are unchanged"), "{error}");
    assert_eq!(scratch.checkpoints("run"), [3]);
    scratch.train("run", &["--resume", "auto"]).expect(0);
    assert_eq!(without_speeds(&scratch.metrics("whole")), without_speeds(&scratch.metrics("run")));
}
