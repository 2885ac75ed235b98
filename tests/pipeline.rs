//! From raw text to generated text, on the corpus in `data/`.

use std::fs;

use serde_json::Value;

use crate::support::{Scratch, backpack};

/// A model with GPT-2's vocabulary, small enough for a test.
const CONFIG: &str = r#"
base = "ROOT/configs/quickstart.toml"
[run]
device = "cpu"
[model]
n_embd = 32
n_layer = 2
n_positions = 32
[data]
path = "DATA"
sequence_length = 32
[optimizer]
learning_rate = 1e-2
[schedule]
warmup_steps = 5
max_steps = 20
[batch]
tokens_per_step = 256
[validation]
every_steps = 10
max_sequences = 40
"#;

#[test]
fn the_pipeline_runs_from_raw_text_to_generated_text() {
    let scratch = Scratch::new();
    let (data, run, model) = (scratch.path_str("shards"), scratch.path_str("run"), scratch.path_str("model"));
    let printed =
        backpack(&["prepare-data", "--input", "data/demo.jsonl", "--output", &data, "--val-fraction", "0.05"])
            .expect(0)
            .stdout;
    assert!(printed.contains("train  237 documents") && printed.contains("val    13 documents"), "{printed}");
    let verified = backpack(&["verify-data", &data]).expect(0).stdout;
    assert!(verified.contains("agrees with its manifest") && verified.contains("\" the\""), "{verified}");

    let config = scratch.path("config.toml");
    let root = crate::support::root();
    fs::write(&config, CONFIG.replace("DATA", &data).replace("ROOT", root.to_str().unwrap())).unwrap();
    let train =
        |more: &[&str]| backpack(&[&["train", "--config", config.to_str().unwrap(), "--run-dir", &run], more].concat());
    let dry = train(&["--dry-run"]).expect(0);
    assert!(
        dry.stderr.contains("1 x 8 (accumulation x micro-batch)") && !scratch.path("run").exists(),
        "{}",
        dry.stderr
    );
    train(&["--stop-after", "8"]).expect(85);
    train(&["--resume", "auto"]).expect(0);
    let metrics = scratch.metrics("run");
    let losses: Vec<f64> = metrics.iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert_eq!(losses.len(), 20);
    assert!(losses[19] < losses[0] - 0.5, "{losses:?}");

    let checkpoint = scratch.checkpoint("run", 20);
    backpack(&["export", "--checkpoint", checkpoint.to_str().unwrap(), "--output", &model]).expect(0);
    for name in ["tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "generation_config.json"] {
        assert!(scratch.path("model").join(name).is_file(), "{name}");
    }
    let eval = backpack(&["eval", "--model", &model, "--task", "val", "--data", &data, "--limit", "40", "--json"]);
    let loss = eval.expect(0).json()["loss"].as_f64().unwrap();
    let in_training = metrics.iter().rev().find_map(|line| line["val_loss"].as_f64()).unwrap();
    assert!((loss - in_training).abs() < 1e-5, "{loss}, in training {in_training}");

    let generate = ["generate", "--model", &model, "--prompt", "It is a truth", "--max-new-tokens", "12", "--json"];
    let answer: Value = backpack(&generate).expect(0).json();
    assert_eq!(answer["prompt_ids"], serde_json::json!([1026, 318, 257, 3872]));
    assert!(answer["text"].as_str().unwrap().starts_with("It is a truth"));
    assert!(answer["new_ids"].as_array().unwrap().iter().all(|id| id.as_i64().unwrap() <= 50_256));
    let dump = scratch.path_str("dump.safetensors");
    backpack(&["dump", "--model", &model, "--text", "It is", "--output", &dump]).expect(0);
}
