//! The commands that load a model, compared with fixtures from PyTorch.

use std::fs;

use model::read_tensors;
use serde_json::Value;

use crate::support::{CommandOutput, Scratch, backpack, command, fixture, token_stream, write_ids};

fn ids_text(ids: &Value) -> String {
    let ids: Vec<String> = ids.as_array().unwrap().iter().map(Value::to_string).collect();
    ids.join(",")
}

#[test]
fn generate_matches_the_fixtures() {
    for set in ["inv_scale", "no_inv_scale", "one_sense"] {
        let folder = fixture(set);
        let cases: Value = serde_json::from_str(&fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
        for case in cases["generation"].as_array().unwrap() {
            let (prompt, want) = (ids_text(&case["prompt"]), &case["new_tokens"]);
            let count = want.as_array().unwrap().len().to_string();
            let model = folder.to_str().unwrap();
            let arguments = [
                "generate",
                "--model",
                model,
                "--prompt-ids",
                &prompt,
                "--max-new-tokens",
                &count,
                "--greedy",
                "--json",
            ];
            let answer = backpack(&arguments).expect(0).json();
            assert_eq!((&answer["new_ids"], &answer["prompt_ids"]), (want, &case["prompt"]));
            assert!(answer["text"].is_null());
        }
    }
}

#[test]
fn sampling_is_reproducible_by_seed() {
    let model = fixture("inv_scale");
    let sample = |seed: &str, top_k: &str| {
        let model = model.to_str().unwrap();
        let arguments = [
            "generate",
            "--model",
            model,
            "--prompt-ids",
            "1,2",
            "--seed",
            seed,
            "--top-k",
            top_k,
            "--temperature",
            "2",
        ];
        backpack(&arguments).expect(0).stdout
    };
    assert_eq!(sample("1", "50"), sample("1", "50"));
    assert_ne!(sample("1", "50"), sample("2", "50"));
    assert_eq!(sample("1", "1"), sample("2", "1"));
}

#[test]
fn dump_matches_the_fixtures() {
    let scratch = Scratch::new();
    for set in ["inv_scale", "no_inv_scale", "one_sense"] {
        let folder = fixture(set);
        let forward = read_tensors(&folder.join("forward.safetensors")).unwrap();
        let row = forward["tokens"].get(1);
        let ids: Vec<i64> = Vec::try_from(row.narrow(0, 0, row.size()[0] - 1)).unwrap();
        write_ids(&scratch.path("ids.bin"), &ids.iter().map(|&id| id as u16).collect::<Vec<_>>());
        let (model, file, text) = (folder.to_str().unwrap(), scratch.path_str("ids.bin"), format!("{ids:?}"));
        let list = text.trim_matches(['[', ']']).replace(' ', "");
        for (i, input) in [["--ids-file", &file], ["--ids", &list]].iter().enumerate() {
            let output = scratch.path_str(&format!("{set}-{i}.safetensors"));
            backpack(&["dump", "--model", model, input[0], input[1], "--output", &output]).expect(0);
            let dumped = read_tensors(output.as_ref()).unwrap();
            assert_eq!(Vec::<i64>::try_from(&dumped["ids"]).unwrap(), ids);
            for name in ["logits", "contextualization"] {
                let difference = (&dumped[name] - forward[name].get(1)).abs().max().double_value(&[]);
                assert!(difference < 5e-5, "{set} {name}: {difference}");
            }
            let config: Value = serde_json::from_str(&fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
            let number = |key: &str| config[key].as_i64().unwrap();
            assert_eq!(dumped["senses"].size(), [ids.len() as i64, number("num_senses"), number("n_embd")]);
            assert_eq!(dumped.len(), 4);
        }
    }
}

#[test]
fn dump_and_generate_compute_in_bf16_on_request() {
    let scratch = Scratch::new();
    let folder = fixture("inv_scale");
    let model = folder.to_str().unwrap();
    let dump = |precision: &str| {
        let output = scratch.path_str(&format!("{precision}.safetensors"));
        backpack(&["dump", "--model", model, "--ids", "5,7,5,90", "--precision", precision, "--output", &output])
            .expect(0);
        read_tensors(output.as_ref()).unwrap()
    };
    let (fp32, bf16) = (dump("fp32"), dump("bf16"));
    for name in ["logits", "contextualization", "senses"] {
        assert_eq!(bf16[name].kind(), tch::Kind::Float);
        let scale = fp32[name].abs().max().double_value(&[]);
        let off = (&bf16[name] - &fp32[name]).abs().max().double_value(&[]) / scale;
        assert!(off > 0.0 && off < 0.05, "{name}: {off}");
    }
    let arguments =
        ["generate", "--model", model, "--prompt-ids", "5,7", "--max-new-tokens", "40", "--greedy", "--json"];
    let answer = backpack(&[&arguments[..], &["--precision", "bf16"]].concat()).expect(0).json();
    assert_eq!(answer["new_ids"].as_array().unwrap().len(), 40);
}

/// Trains on a plain token stream in sequential order, from given weights. The first step has
/// learning rate 0, so the losses of steps 1 and 2 are those of the given model on the first and
/// second batch.
#[test]
fn sequential_training_starts_from_the_given_weights() {
    let scratch = Scratch::new();
    let model = fixture("inv_scale");
    let init = format!("checkpoint.init_from={}", model.display());
    let sequential = ["--set", "data.order=sequential", "--set", "model.dropout=0", "--set", &init];
    scratch.train("run", &[&sequential[..], &["--set", "batch.micro_batch_size=1"]].concat()).expect(0);
    let metrics = scratch.metrics("run");
    let ids = token_stream(4_500, 311);
    for step in 0..2 {
        let folder = scratch.path(&format!("batch{step}"));
        fs::create_dir(&folder).unwrap();
        write_ids(&folder.join("val.bin"), &ids[step * 128..=(step + 1) * 128]);
        let folder = folder.to_str().unwrap();
        let eval = ["eval", "--model", model.to_str().unwrap(), "--task", "val", "--data", folder, "--json"];
        let answer = backpack(&eval).expect(0).json();
        assert_eq!((answer["task"].as_str(), answer["tokens"].as_u64()), (Some("val"), Some(128)));
        let (loss, want) = (metrics[step]["loss"].as_f64().unwrap(), answer["loss"].as_f64().unwrap());
        assert!((loss - want).abs() < 1e-5, "step {step}: {loss}, expected {want}");
        assert!((answer["perplexity"].as_f64().unwrap() - want.exp()).abs() < 1e-6 * want.exp());
    }
}

#[test]
fn an_export_equals_its_checkpoint_and_needs_no_tokenizer() {
    let scratch = Scratch::new();
    scratch.train("run", &[]).expect(0);
    let (checkpoint, output) = (scratch.checkpoint("run", 12), scratch.path("export"));
    let export = ["export", "--checkpoint", checkpoint.to_str().unwrap(), "--output", output.to_str().unwrap()];
    let printed = backpack(&export).expect(0).stdout;
    assert!(printed.contains("skipped the tokenizer files: the model's vocabulary of 311 is smaller"), "{printed}");
    let bytes = |folder: &std::path::Path| fs::read(folder.join("model.safetensors")).unwrap();
    assert_eq!(bytes(&checkpoint), bytes(&output));
    let mut names: Vec<_> = fs::read_dir(&output).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    let expected = [
        "README.md",
        "config.json",
        "configuration_backpack_gpt2.py",
        "generation_config.json",
        "loss.svg",
        "model.safetensors",
        "modeling_backpack_gpt2.py",
    ];
    assert_eq!(names, expected);
    let card = fs::read_to_string(output.join("README.md")).unwrap();
    for part in [
        "| steps | 12 of 12 |",
        "| validation loss |",
        "![Training and validation loss](loss.svg)",
        "trust_remote_code=True",
        "torch.randint(0, 311, (1, 32)",
    ] {
        assert!(card.contains(part), "{part}: {card}");
    }
    assert!(backpack(&export).error().contains(" is not empty: choose a new directory"));
    let run = scratch.path_str("run");
    let error = backpack(&["export", "--checkpoint", &run, "--output", &scratch.path_str("e2")]).error();
    assert!(error.contains("is a run directory"), "{error}");
    // The published architecture name, and no aliases among the tensors.
    let config: Value = serde_json::from_str(&fs::read_to_string(output.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["architectures"][0], "BackpackGPT2LMHeadModel");
    let tensors = read_tensors(&output.join("model.safetensors")).unwrap();
    assert!(tensors.contains_key("backpack.gpt2_model.wte.weight") && !tensors.contains_key("lm_head.weight"));
    // An export is a model directory, and its export has the same bytes.
    let again = scratch.path("again");
    let output = output.to_str().unwrap();
    backpack(&["export", "--checkpoint", output, "--output", again.to_str().unwrap()]).expect(0);
    assert_eq!(bytes(&checkpoint), bytes(&again));
    for (dtype, kind) in [("bf16", tch::Kind::BFloat16), ("fp16", tch::Kind::Half)] {
        let half = scratch.path(dtype);
        backpack(&["export", "--checkpoint", output, "--output", half.to_str().unwrap(), "--dtype", dtype]).expect(0);
        let tensors = read_tensors(&half.join("model.safetensors")).unwrap();
        assert!(tensors.values().all(|t| t.kind() == kind));
        let generate = ["generate", "--model", half.to_str().unwrap(), "--prompt-ids", "1", "--greedy"];
        backpack(&generate).expect(0);
    }
}

/// Compares `dump` of a full context with the forward pass of the reference kernels.
#[test]
fn a_dump_of_512_tokens_equals_the_reference_forward_pass() {
    let scratch = Scratch::new();
    let long = ["--set", "model.n_positions=512", "--stop-after", "1"];
    scratch.train("run", &long).expect(85);
    let (checkpoint, output) = (scratch.checkpoint("run", 1), scratch.path_str("dump.safetensors"));
    let ids = token_stream(512, 311);
    write_ids(&scratch.path("ids.bin"), &ids);
    let ids: Vec<i64> = ids.iter().map(|&id| i64::from(id)).collect();
    let model = checkpoint.to_str().unwrap();
    backpack(&["dump", "--model", model, "--ids-file", &scratch.path_str("ids.bin"), "--output", &output]).expect(0);
    let loaded = model::load_model(&checkpoint, tch::Device::Cpu).unwrap();
    let options = model::ForwardOptions { kernels: model::Kernels::Reference, ..model::ForwardOptions::evaluation() };
    let logits = tch::no_grad(|| loaded.logits(&tch::Tensor::from_slice(&ids).unsqueeze(0), options)).get(0);
    let difference = (logits - &read_tensors(output.as_ref()).unwrap()["logits"]).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn a_gpt2_baseline_trains_dumps_and_generates() {
    let scratch = Scratch::new();
    scratch.train("run", &["--set", "model.architecture=gpt2", "--set", "run.kernels=reference"]).expect(0);
    let (checkpoint, output) = (scratch.checkpoint("run", 12), scratch.path_str("dump.safetensors"));
    let model = checkpoint.to_str().unwrap();
    backpack(&["dump", "--model", model, "--ids", "1,2,3", "--output", &output]).expect(0);
    let dumped = read_tensors(output.as_ref()).unwrap();
    assert_eq!((dumped.len(), dumped["logits"].size()), (2, vec![3, 311]));
    let generated = backpack(&["generate", "--model", model, "--prompt-ids", "5", "--max-new-tokens", "40"]).expect(0);
    assert_eq!(generated.stdout.trim().split(',').count(), 40);
}

#[test]
fn bf16_training_reaches_the_loss_of_fp32() {
    let scratch = Scratch::new();
    let last = |run: &str, precision: &str| {
        scratch.train(run, &["--set", precision, "--set", "model.dropout=0"]).expect(0);
        scratch.metrics(run).iter().rev().find_map(|line| line["val_loss"].as_f64()).unwrap()
    };
    let (fp32, bf16) = (last("fp32", "run.precision=fp32"), last("bf16", "run.precision=bf16"));
    assert!((fp32 - bf16).abs() < 2e-2, "{fp32} {bf16}");
}

#[test]
fn runs_are_plotted() {
    let scratch = Scratch::new();
    scratch.train("run", &[]).expect(0);
    let svg = scratch.path_str("loss.svg");
    backpack(&["plot", &scratch.path_str("run"), "--output", &svg]).expect(0);
    let text = fs::read_to_string(&svg).unwrap();
    assert!(text.contains("<svg") && text.contains("run: training") && text.contains("run: validation"));
}

#[test]
fn doctor_prints_the_installation() {
    let printed = backpack(&["doctor"]).expect(0).stdout;
    for word in
        ["libtorch     2.13.0", "fp32 matrix products", "CUDA  ", "driver  ", "NCCL  ", "lo 127.0.0.1", "50257 ids"]
    {
        assert!(printed.contains(word), "{printed}");
    }
    assert!(printed.contains("fp32 matrix products do not use TF32"), "{printed}");
    let output = command(&["doctor"]).env("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "1").output().unwrap();
    let printed = CommandOutput::from_output(output).expect(0).stdout;
    assert!(printed.contains("warning: fp32 matrix products would use TF32"), "{printed}");
}
