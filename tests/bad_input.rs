//! Bad input gives exit code 1 and one error line with the cause and a remedy, and changes no
//! files.

use std::fs;

use crate::support::{Scratch, backpack, fixture, token_stream, write_ids};

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in
        [&["train"][..], &["fly"], &["generate", "--model", "x"], &["eval", "--model", "x", "--task", "taste"]]
    {
        backpack(arguments).expect(2);
    }
    backpack(&["--help"]).expect(0);
    backpack(&["train", "--help"]).expect(0);
    backpack(&["--version"]).expect(0);
}

#[test]
fn prepare_data_rejects_bad_inputs() {
    let scratch = Scratch::new();
    let out = scratch.path_str("out");
    let prepare = |name: &str, bytes: &[u8]| {
        fs::write(scratch.path(name), bytes).unwrap();
        let error = backpack(&["prepare-data", "--input", &scratch.path_str(name), "--output", &out]).error();
        assert!(!scratch.path("out").exists(), "{error}");
        error
    };
    assert!(prepare("a.jsonl", b"{\"text\": \"ok\"}\n{\"text\": \n").contains("a.jsonl line 2"));
    assert!(prepare("b.txt", b"caf\xe9").contains("b.txt is not UTF-8 at byte 3"));
    assert!(prepare("c.jsonl", b"").contains("the corpus is empty"));
    assert!(prepare("d.parquet", b"PAR1 and then nothing").contains("d.parquet (21 bytes) as parquet"));
    let error = backpack(&["prepare-data", "--input", "none.jsonl", "--output", &out]).error();
    assert!(error.contains("no such file or directory: none.jsonl"), "{error}");
    fs::create_dir(scratch.path("full")).unwrap();
    write_ids(&scratch.path("full/train-00000.bin"), &[1, 2, 3]);
    let error =
        backpack(&["prepare-data", "--input", "data/demo.jsonl", "--output", &scratch.path_str("full")]).error();
    assert!(error.contains("already holds files"), "{error}");
    assert_eq!(fs::read_dir(scratch.path("full")).unwrap().count(), 1);
}

#[test]
fn train_rejects_invalid_configurations() {
    let scratch = Scratch::new();
    let set = |assignment: &str| scratch.train("run", &["--set", assignment]).error();
    for (assignment, why) in [
        ("optimizer.learning_rat=1", "did you mean optimizer.learning_rate?"),
        ("model.n_embd=wide", "it must be a whole number"),
        ("optimizer.learning_rate=-1e-3", "optimizer.learning_rate is -0.001: it must be above 0"),
        ("schedule.warmup_steps=0", "schedule.warmup_steps is 0"),
        ("schedule.warmup_steps=13", "more than schedule.max_steps 12"),
        ("batch.tokens_per_step=100", "not a multiple of data.sequence_length 32: use 96 or 128"),
        ("batch.micro_batch_size=3", "batch.micro_batch_size 3 does not divide the 4 sequences"),
        ("step_guard.initial_loss_scale=0", "step_guard.initial_loss_scale is 0"),
        ("model.num_senses=3", "must be a multiple of num_senses (3)"),
        ("data.sequence_length=64", "more than model.n_positions 32"),
        ("data.path=nowhere", "the data directory nowhere does not exist"),
        ("data.path=docs", "contains neither manifest.json nor train.bin"),
        ("model.vocab_size=300", "which is not below the model's vocabulary of 300"),
        ("checkpoint.init_from=nowhere", "nowhere is not a directory"),
        ("logging.every_steps=0", "logging.every_steps is 0"),
        ("run.threads=100000", "at most 4096"),
        ("run.seed=-1", "run.seed: invalid value: integer `-1`, expected a whole number of at least 0"),
        ("batch.micro_batch_size=-2", "batch.micro_batch_size: it is -2"),
        ("run.precision=fp8", "run.precision: unknown variant `fp8`, expected one of"),
    ] {
        let error = set(assignment);
        assert!(error.contains(why), "{assignment}: {error}");
    }
    // A dry run reports these errors too.
    for assignment in ["run.threads=100000", "checkpoint.init_from=nowhere", "batch.tokens_per_step=100"] {
        scratch.train("run", &["--dry-run", "--set", assignment]).error();
    }
    let narrow = format!("checkpoint.init_from={}", fixture("one_sense").display());
    let error = scratch.train("run", &["--dry-run", "--set", &narrow]).error();
    assert!(error.contains("is not of [model]'s shape"), "{error}");
    assert!(!scratch.path("run").join("checkpoints").exists());
    let error = backpack(&["train", "--config", "none.toml"]).error();
    assert!(error.contains("cannot read the configuration file none.toml"), "{error}");
}

#[test]
fn cuda_without_a_gpu_is_an_error() {
    let scratch = Scratch::new();
    let finished = scratch.train("run", &["--set", "run.device=cuda", "--stop-after", "1"]);
    // On a machine with a GPU the run starts.
    if finished.code != 85 {
        let error = finished.error();
        assert!(error.contains("cannot use the device \"cuda\""), "{error}");
    }
}

#[test]
fn data_that_does_not_fit_the_model_is_rejected() {
    let scratch = Scratch::new();
    write_ids(&scratch.path("data/val.bin"), &token_stream(32, 311));
    let error = scratch.train("run", &[]).error();
    assert!(error.contains("the val split has 32 tokens, too few for one sequence of 32"), "{error}");
    let (model, data) = (fixture("inv_scale"), scratch.path_str("data"));
    let error = backpack(&["eval", "--model", model.to_str().unwrap(), "--task", "val", "--data", &data]).error();
    assert!(error.contains("too few for one sequence"), "{error}");
    let error = backpack(&["eval", "--model", model.to_str().unwrap(), "--task", "val", "--data", "nowhere"]).error();
    assert!(error.contains("the data directory nowhere does not exist"), "{error}");

    let shards = scratch.path_str("shards");
    backpack(&["prepare-data", "--input", "data/demo.jsonl", "--output", &shards, "--val-fraction", "0.05"]).expect(0);
    let path = format!("data.path={shards}");
    let train = || scratch.train("run", &["--set", &path, "--set", "model.vocab_size=50264"]).error();
    let error = scratch.train("run", &["--set", &path]).error();
    assert!(error.contains("has a vocabulary of 50257, more than model.vocab_size 311"), "{error}");
    let shard = scratch.path("shards/train-00000.bin");
    let whole = fs::read(&shard).unwrap();
    fs::write(&shard, &whole[..whole.len() - 2]).unwrap();
    assert!(train().contains("train-00000.bin has"));
    let mut flipped = whole;
    flipped[100] ^= 1;
    fs::write(&shard, flipped).unwrap();
    assert!(train().contains("train-00000.bin is damaged"));
    assert!(backpack(&["verify-data", &shards]).error().contains("train-00000.bin is damaged"));
}

#[test]
fn invalid_checkpoints_are_rejected() {
    let scratch = Scratch::new();
    let error = scratch.train("run", &["--resume", "nowhere"]).error();
    assert!(error.contains("the checkpoint nowhere does not exist"), "{error}");
    let error = scratch.train("run", &["--resume", "docs"]).error();
    assert!(error.contains("docs is not a checkpoint"), "{error}");
    let fixture = fixture("inv_scale");
    let error = scratch.train("run", &["--resume", fixture.to_str().unwrap()]).error();
    assert!(error.contains("is not a checkpoint"), "{error}");

    scratch.train("run", &["--stop-after", "1"]).expect(85);
    let checkpoint = scratch.checkpoint("run", 1);
    let weights = checkpoint.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let model = checkpoint.to_str().unwrap();
    let damaged = "model.safetensors is damaged";
    assert!(
        backpack(&["eval", "--model", model, "--task", "val", "--data", &scratch.path_str("data")])
            .error()
            .contains(damaged)
    );
    assert!(
        backpack(&["export", "--checkpoint", model, "--output", &scratch.path_str("out")]).error().contains(damaged)
    );
    assert!(!scratch.path("out").exists());
    // Without a valid checkpoint the run starts from step 0 and archives the damaged one.
    let printed = scratch.train("run", &["--resume", "auto", "--stop-after", "1"]).expect(85).stderr;
    assert!(
        printed.contains("skipping") && printed.contains("none of 1 checkpoints verifies: starting at step 0"),
        "{printed}"
    );
    assert!(scratch.path("run/checkpoints/aside-step-00000001/optimizer.safetensors").is_file());
    assert_eq!(scratch.checkpoints("run"), [1]);
}

#[test]
fn inconsistent_model_directories_are_rejected() {
    let scratch = Scratch::new();
    let copy = |change: &dyn Fn(&std::path::Path)| {
        let folder = scratch.path("model");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        for name in ["config.json", "model.safetensors"] {
            fs::copy(fixture("inv_scale").join(name), folder.join(name)).unwrap();
        }
        change(&folder);
        backpack(&["generate", "--model", folder.to_str().unwrap(), "--prompt-ids", "1", "--greedy"]).error()
    };
    let config = |from: &'static str, to: &'static str| {
        copy(&|folder| {
            let path = folder.join("config.json");
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from));
            fs::write(&path, text.replace(from, to)).unwrap();
        })
    };
    let error = config("\"vocab_size\": 311", "\"vocab_size\": 312");
    assert!(
        error.contains("tensor backpack.gpt2_model.wte.weight has shape [311, 40], but config.json requires [312, 40]"),
        "{error}"
    );
    assert!(config("\"n_layer\": 3", "\"n_layer\": 2").contains("h.2."));
    assert!(
        config("\"n_layer\": 3", "\"n_layer\": 4").contains("tensor backpack.gpt2_model.h.3.ln_1.weight is missing")
    );
    assert!(config("\"num_senses\": 4,", "").contains("key num_senses is missing"));
    let wrong_header = copy(&|folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        fs::write(&path, bytes).unwrap();
    });
    assert!(wrong_header.contains("its header claims"), "{wrong_header}");
    let short = copy(&|folder| {
        let path = folder.join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    });
    assert!(short.contains("model.safetensors cannot be read as safetensors"), "{short}");
    let missing = copy(&|folder| fs::remove_file(folder.join("config.json")).unwrap());
    assert!(missing.contains("config.json cannot be read"), "{missing}");
    assert!(
        backpack(&["generate", "--model", "nowhere", "--prompt-ids", "1"])
            .error()
            .contains("nowhere is not a directory")
    );
}

#[test]
fn invalid_prompts_are_rejected() {
    let folder = fixture("inv_scale");
    let model = folder.to_str().unwrap();
    let ids = |ids: &str| backpack(&["generate", "--model", model, "--prompt-ids", ids]).error();
    for (text, why) in [
        ("", "the prompt is empty"),
        ("-1", "id -1 at position 0"),
        ("1,,2", "\"\" is not a token id"),
        ("x", "\"x\" is not a token id"),
    ] {
        assert!(ids(text).contains(why), "{text}");
    }
    backpack(&["generate", "--model", model, "--prompt-ids", "1, 2", "--max-new-tokens", "1"]).expect(0);
    assert!(ids("1,311").contains("id 311 at position 1 is outside the model's vocabulary of 311"));
    assert!(ids(&vec!["1"; 33].join(",")).contains("33 tokens are more than the model's context of 32"));
    let error = backpack(&["generate", "--model", model, "--prompt", ""]).error();
    assert!(error.contains("the prompt is empty"), "{error}");
    let error = backpack(&["generate", "--model", model, "--prompt-ids", "1", "--temperature", "0"]).error();
    assert!(error.contains("temperature is 0"), "{error}");

    let scratch = Scratch::new();
    let dump = |input: &[&str]| {
        let output = scratch.path_str("dump.safetensors");
        let error = backpack(&[&["dump", "--model", model, "--output", &output], input].concat()).error();
        assert!(!scratch.path("dump.safetensors").exists());
        error
    };
    assert!(dump(&["--ids", "400"]).contains("id 400 at position 0"));
    let file = scratch.path("ids.bin");
    write_ids(&file, &[1; 40]);
    assert!(dump(&["--ids-file", file.to_str().unwrap()]).contains("has more ids than the model's context of 32"));
    fs::write(&file, [1u8; 3]).unwrap();
    assert!(dump(&["--ids-file", file.to_str().unwrap()]).contains("3 bytes"));
    // Only as much of the file is read as can be used.
    assert!(dump(&["--ids-file", "/dev/zero"]).contains("has more ids than the model's context"));
    fs::write(&file, []).unwrap();
    assert!(dump(&["--ids-file", file.to_str().unwrap()]).contains("there are no tokens"));
}
