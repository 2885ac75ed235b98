//! What a run of days may meet: steps that cannot be used, a loss that jumps, a disk that is full.
//! scripts/torture.sh tries more of it.

use std::fs;

use serde_json::Value;

use crate::support::{Finished, Scratch, exact};

const DROPOUT: [&str; 2] = ["--set", "model.dropout=0.1"];

#[test]
fn a_row_of_bad_steps_ends_the_run_with_a_checkpoint_from_before() {
    let scratch = Scratch::new();
    // The rate of the second step, a quarter of this one's, throws the weights out of all range.
    let hot = ["--set", "optimizer.learning_rate=1e30", "--set", "step_guard.max_consecutive_bad_steps=4"];
    let run = scratch.train("run", &[&hot[..], &["--set", "checkpoint.every_steps=0"]].concat());
    let skipped = run.stderr.lines().filter(|line| line.starts_with("skipped     step ")).count();
    let error = run.error();
    assert!(
        error.contains("the 4 steps up to step 6 ") && error.contains("(step_guard.max_consecutive_bad_steps is 4)"),
        "{error}"
    );
    assert!(error.contains("resume with --resume auto from step 2, which has the weights from before"), "{error}");
    assert_eq!((scratch.checkpoints("run"), skipped), (vec![2], 4));
    let bad = &scratch.metrics("run")[3];
    assert_eq!((&bad["loss"], &bad["step"], &bad["skipped"]), (&Value::Null, &4.into(), &2.into()));
    // One that was due among them has the same weights.
    let due = scratch.train("due", &[&hot[..], &["--set", "checkpoint.every_steps=5"]].concat()).error();
    assert!(due.contains("resume with --resume auto from step 5, which"), "{due}");
    let weights = |run: &str, step| fs::read(scratch.checkpoint(run, step).join("model.safetensors")).unwrap();
    assert_eq!(weights("due", 5), weights("run", 2));
}

#[test]
fn a_run_that_skips_spikes_resumes_bit_for_bit() {
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
    assert_eq!(exact(&scratch.metrics("whole")), exact(&scratch.metrics("parts")));
    // They are only told of by default.
    scratch.train("told", &[&spikes[..], &DROPOUT].concat()).expect(0);
    let last = |run: &str| scratch.metrics(run).into_iter().rfind(|line| line.get("loss").is_some()).unwrap();
    assert!(last("told").get("skipped").is_none() && last("told")["spikes"].as_u64().unwrap() > 0);
    assert!(last("whole")["skipped"].as_u64().unwrap() > 0);
}

#[test]
fn fp16_finds_its_loss_scale_and_resumes_with_it() {
    let scratch = Scratch::new();
    let half = ["--set", "run.precision=fp16", "--set", "stability.initial_loss_scale=4294967296"];
    for kernels in ["plain", "fused"] {
        let kernels = format!("run.kernels={kernels}");
        let arguments = [&half[..], &["--set", &kernels], &DROPOUT].concat();
        let (whole, parts) = (format!("whole-{kernels}"), format!("parts-{kernels}"));
        let steps = ["--set", "schedule.max_steps=40"];
        scratch.train(&whole, &[&arguments[..], &steps].concat()).expect(0);
        scratch.train(&parts, &[&arguments[..], &steps, &["--stop-after", "3"]].concat()).expect(85);
        scratch.train(&parts, &[&arguments[..], &steps, &["--resume", "auto"]].concat()).expect(0);
        let metrics = scratch.metrics(&whole);
        assert_eq!(exact(&metrics), exact(&scratch.metrics(&parts)));
        let lines: Vec<&Value> = metrics.iter().filter(|line| line.get("lr").is_some()).collect();
        let last = lines.last().unwrap();
        let (skipped, scale) = (last["skipped"].as_u64().unwrap(), last["loss_scale"].as_f64().unwrap());
        assert!(skipped > 3 && scale == 2f64.powi(32 - skipped as i32), "{last}");
        assert_eq!((&lines[0]["grad_norm"], lines[0]["loss"].is_number()), (&Value::Null, true));
        assert!(last["loss"].as_f64().unwrap() < lines[0]["loss"].as_f64().unwrap() - 0.2, "{last}");
    }
}

#[test]
fn a_checkpoint_that_cannot_be_written_is_a_warning_and_the_last_one_an_error() {
    let scratch = Scratch::new();
    scratch.train("whole", &[]).expect(0);
    scratch.train("run", &["--stop-after", "3"]).expect(85);
    // No file may be larger than 100 KiB.
    let limited = |arguments: &[String]| {
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", "ulimit -f 200 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_backpack")]).args(arguments);
        Finished::of(shell.output().unwrap())
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
    assert_eq!(exact(&scratch.metrics("whole")), exact(&scratch.metrics("run")));
}
