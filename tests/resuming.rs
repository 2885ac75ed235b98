//! Resumed runs have the same result as uninterrupted runs.

use std::fs;

use crate::support::{Scratch, without_speeds};

const DROPOUT: [&str; 2] = ["--set", "model.dropout=0.1"];

#[test]
fn a_resumed_run_equals_an_uninterrupted_run() {
    let scratch = Scratch::new();
    scratch.train("whole", &DROPOUT).expect(0);
    scratch.train("parts", &[&DROPOUT[..], &["--stop-after", "3"]].concat()).expect(85);
    assert_eq!(scratch.checkpoints("parts"), [3]);
    scratch.train("parts", &[&DROPOUT[..], &["--resume", "auto", "--stop-after", "7"]].concat()).expect(85);
    scratch.train("parts", &[&DROPOUT[..], &["--resume", "auto"]].concat()).expect(0);
    let bytes = |run: &str, file: &str| fs::read(scratch.checkpoint(run, 12).join(file)).unwrap();
    for file in ["model.safetensors", "optimizer.safetensors", "config.json"] {
        assert_eq!(bytes("whole", file), bytes("parts", file), "{file}");
    }
    assert_eq!(without_speeds(&scratch.metrics("whole")), without_speeds(&scratch.metrics("parts")));
    // Dropout is active: without it the metrics differ.
    scratch.train("without", &["--set", "model.dropout=0.0"]).expect(0);
    assert_ne!(without_speeds(&scratch.metrics("whole"))[5], without_speeds(&scratch.metrics("without"))[5]);
}

#[test]
fn the_micro_batch_size_does_not_change_a_run_without_dropout() {
    let scratch = Scratch::new();
    let run = |name: &str, micro: &str| {
        scratch.train(name, &["--set", "model.dropout=0", "--set", micro]).expect(0);
        scratch.metrics(name)
    };
    let (one, four) = (run("one", "batch.micro_batch_size=1"), run("four", "batch.micro_batch_size=4"));
    for (a, b) in one.iter().zip(&four).filter(|(a, _)| a.get("loss").is_some()) {
        let difference = a["loss"].as_f64().unwrap() - b["loss"].as_f64().unwrap();
        assert!(difference.abs() < 1e-5, "{a} {b}");
    }
}

#[test]
fn metrics_are_complete_and_the_last_step_is_validated_and_saved() {
    let scratch = Scratch::new();
    scratch.train("run", &[]).expect(0);
    let metrics = scratch.metrics("run");
    let losses: Vec<_> = metrics.iter().filter(|line| line.get("loss").is_some()).collect();
    assert_eq!(losses.len(), 12);
    for (i, line) in losses.iter().enumerate() {
        assert_eq!((line["step"].as_u64(), line["tokens"].as_u64()), (Some(i as u64 + 1), Some(128 * (i as u64 + 1))));
        for key in ["lr", "grad_norm", "tokens_per_s", "mfu"] {
            assert!(line[key].is_number(), "{line}");
        }
    }
    // Warm-up over 4 steps to 2e-3: step 1 has learning rate 0, step 3 half of the peak.
    assert_eq!((losses[0]["lr"].as_f64(), losses[2]["lr"].as_f64()), (Some(0.0), Some(1e-3)));
    let validated: Vec<_> =
        metrics.iter().filter(|l| l.get("val_loss").is_some()).map(|l| l["step"].as_u64().unwrap()).collect();
    assert_eq!(validated, [5, 10, 12]);
    // keep_last 2 and keep_best 3 of the checkpoints 4, 8 and 12, of which only 12 was validated.
    assert_eq!(scratch.checkpoints("run"), [8, 12]);
    let first = losses[0]["loss"].as_f64().unwrap();
    assert!((first - 311f64.ln()).abs() < 0.2, "a new model predicts uniformly: {first}");
    assert!(losses[11]["loss"].as_f64().unwrap() < first);
    let resolved = fs::read_to_string(scratch.path("run").join("config.toml")).unwrap();
    assert!(resolved.contains("weight_decay = 0.1") && resolved.contains("keep_every = 50000"), "{resolved}");
    assert_eq!(fs::read_dir(scratch.path("run").join("tensorboard")).unwrap().count(), 1);
}

#[test]
fn a_finished_run_is_not_changed() {
    let scratch = Scratch::new();
    scratch.train("run", &[]).expect(0);
    let before = read_all_files(&scratch.path("run"));
    let again = scratch.train("run", &["--resume", "auto"]).expect(0);
    assert!(again.stderr.contains("this run is finished: 12 of 12 steps"), "{}", again.stderr);
    assert_eq!(before, read_all_files(&scratch.path("run")));
    let error = scratch.train("run", &[]).error();
    assert!(error.contains("already holds checkpoints") && error.contains("--resume auto"), "{error}");
}

fn read_all_files(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(read_all_files(&path)),
            false => found.push((path.display().to_string(), fs::read(&path).unwrap())),
        }
    }
    found.sort();
    found
}

#[test]
fn a_damaged_checkpoint_is_skipped_or_rejected() {
    let scratch = Scratch::new();
    scratch.train("whole", &[]).expect(0);
    scratch.train("run", &["--stop-after", "4"]).expect(85);
    scratch.train("run", &["--resume", "auto", "--stop-after", "6"]).expect(85);
    let newest = scratch.checkpoint("run", 6);
    for file in ["optimizer.safetensors", "state.json", "model.safetensors", "config.json"] {
        let path = newest.join(file);
        let good = fs::read(&path).unwrap();
        let mut bad = good.clone();
        let middle = bad.len() / 2;
        bad[middle] ^= 4;
        fs::write(&path, &bad).unwrap();
        let error = scratch.train("other", &["--resume", newest.to_str().unwrap()]).error();
        assert!(error.contains(file), "{error}");
        if file == "model.safetensors" {
            break;
        }
        fs::write(&path, &good).unwrap();
    }
    // An incomplete checkpoint of a killed process is ignored.
    fs::create_dir(scratch.path("run").join("checkpoints/.step-00000008")).unwrap();
    let resumed = scratch.train("run", &["--resume", "auto"]).expect(0);
    assert!(resumed.stderr.contains("skipping") && resumed.stderr.contains("at step 4"), "{}", resumed.stderr);
    let weights = |run: &str| fs::read(scratch.checkpoint(run, 12).join("model.safetensors")).unwrap();
    assert_eq!(weights("whole"), weights("run"));
    assert_eq!(without_speeds(&scratch.metrics("whole")), without_speeds(&scratch.metrics("run")));
}

#[test]
fn a_given_checkpoint_is_resumed_in_any_run_directory() {
    let scratch = Scratch::new();
    scratch.train("run", &["--set", "checkpoint.keep_last=9"]).expect(0);
    let whole = fs::read(scratch.checkpoint("run", 12).join("model.safetensors")).unwrap();
    let from = scratch.checkpoint("run", 4);
    scratch.train("branch", &["--resume", from.to_str().unwrap()]).expect(0);
    assert_eq!(fs::read(scratch.checkpoint("branch", 12).join("model.safetensors")).unwrap(), whole);
    let metrics = without_speeds(&scratch.metrics("run"));
    // Later checkpoints in the same run directory are archived.
    scratch.train("run", &["--resume", from.to_str().unwrap(), "--stop-after", "5"]).expect(85);
    assert_eq!(scratch.checkpoints("run"), [4, 5]);
    assert_eq!(without_speeds(&scratch.metrics("run"))[..4], metrics[..4]);
    assert!(scratch.path("run/checkpoints/aside-step-00000012/state.json").is_file());
    scratch.train("run", &["--resume", "auto"]).expect(0);
    assert_eq!(fs::read(scratch.checkpoint("run", 12).join("model.safetensors")).unwrap(), whole);
    assert_eq!(without_speeds(&scratch.metrics("run")), metrics);
}

#[test]
fn settings_of_the_data_order_cannot_change_on_resume() {
    let scratch = Scratch::new();
    scratch.train("run", &["--stop-after", "2"]).expect(85);
    let resume = |set: &str| scratch.train("run", &["--resume", "auto", "--set", set]);
    assert!(resume("run.seed=2").error().contains("run.seed is 2, but the checkpoint was saved with 1111"));
    assert!(resume("data.order=sequential").error().contains("data.order"));
    assert!(resume("model.n_layer=2").error().contains("model.n_layer is 2"));
    let changed = resume("schedule.max_steps=14").expect(0);
    assert!(changed.stderr.contains("schedule.max_steps 12 -> 14"), "{}", changed.stderr);
}

#[test]
fn a_stop_step_already_reached_runs_no_step() {
    let scratch = Scratch::new();
    // Saves the initial weights.
    scratch.train("run", &["--stop-after", "0"]).expect(85);
    assert_eq!(scratch.checkpoints("run"), [0]);
    assert!(scratch.metrics("run").is_empty());
    scratch.train("run", &["--resume", "auto", "--stop-after", "3"]).expect(85);
    scratch.train("run", &["--resume", "auto", "--stop-after", "2"]).expect(85);
    assert_eq!((scratch.checkpoints("run"), scratch.metrics("run").len()), (vec![0, 3], 3));
    scratch.train("run", &["--resume", "auto", "--stop-after", "12"]).expect(0);
}

#[test]
fn init_from_sets_omitted_model_keys_except_dropout() {
    let scratch = Scratch::new();
    scratch.train("narrow", &["--set", "model.n_inner=48", "--stop-after", "1"]).expect(85);
    let narrow = scratch.checkpoint("narrow", 1);
    let init = format!("checkpoint.init_from={}", narrow.display());
    let other = ["--set", &init, "--set", "model.dropout=0.25"];
    scratch.train("run", &[&other[..], &["--stop-after", "2"]].concat()).expect(85);
    // The initial weights are not read again.
    fs::remove_dir_all(&narrow).unwrap();
    scratch.train("run", &[&other[..], &["--resume", "auto"]].concat()).expect(0);
    let config = fs::read_to_string(scratch.checkpoint("run", 12).join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!((&config["n_inner"], &config["resid_pdrop"]), (&48.into(), &0.25.into()));
}

#[test]
fn a_backpack_is_initialized_from_a_gpt2() {
    let scratch = Scratch::new();
    scratch.train("gpt2", &["--set", "model.architecture=gpt2"]).expect(0);
    let init = format!("checkpoint.init_from={}", scratch.checkpoint("gpt2", 12).display());
    scratch.train("run", &["--set", &init, "--stop-after", "0"]).expect(85);
    let tensors =
        |run: &str, step| model::read_tensors(&scratch.checkpoint(run, step).join("model.safetensors")).unwrap();
    let (body, backpack) = (tensors("gpt2", 12), tensors("run", 0));
    for (name, tensor) in &body {
        assert_eq!(backpack[&name.replace("transformer.", "backpack.gpt2_model.")], *tensor, "{name}");
    }
    scratch.train("run", &["--set", &init, "--resume", "auto"]).expect(0);
    let narrow = ["--set", &init, "--set", "model.n_head=2"];
    let error = scratch.train("other", &narrow).error();
    assert!(error.contains("the trunk cannot start from") && error.contains("n_head is 2 here and 4 there"), "{error}");
}

#[test]
fn a_rejected_resume_keeps_the_checkpoints() {
    let scratch = Scratch::new();
    scratch.train("run", &[]).expect(0);
    assert_eq!(scratch.checkpoints("run"), [8, 12]);
    let first = scratch.checkpoint("run", 8);
    let from = ["--resume", first.to_str().unwrap()];
    let refused = scratch.train("run", &[&from[..], &["--set", "run.seed=7"]].concat()).error();
    assert!(refused.contains("run.seed is 7, but the checkpoint was saved with"), "{refused}");
    assert_eq!(scratch.checkpoints("run"), [8, 12]);
    // The optimizer state of another architecture does not fit.
    let refused = scratch.train("run", &[&from[..], &["--set", "model.architecture=gpt2"]].concat()).error();
    assert!(refused.contains("step-00000008"), "{refused}");
    assert_eq!(scratch.checkpoints("run"), [8, 12]);
    scratch.train("run", &[&from[..], &["--stop-after", "9"]].concat()).expect(85);
    assert_eq!(scratch.checkpoints("run"), [8, 9]);
}
