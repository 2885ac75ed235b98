//! `backpack bench`: the report that other programs read.

use std::fs;

use serde_json::Value;

use crate::support::{CommandOutput, Scratch, backpack, token_stream, write_ids};

fn bench(scratch: &Scratch, more: &[&str]) -> CommandOutput {
    let config = scratch.path_str("bench.toml");
    if !scratch.path("bench.toml").exists() {
        // Without a path in [data]: bench needs no data.
        let text = fs::read_to_string(scratch.path("small.toml")).unwrap();
        let without: String =
            text.lines().filter(|line| !line.starts_with("path")).map(|line| format!("{line}\n")).collect();
        fs::write(&config, without).unwrap();
    }
    backpack(&[&["bench", "--config", &config], more].concat())
}

fn losses(report: &Value) -> Vec<f64> {
    report["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect()
}

#[test]
fn json_report_has_all_keys() {
    let scratch = Scratch::new();
    let finished = bench(&scratch, &["--json", "--steps", "3", "--warmup", "1"]).expect(0);
    assert_eq!(finished.stdout.lines().count(), 1);
    assert!(finished.stderr.contains("step 4/4"), "{}", finished.stderr);
    let report = finished.json();
    let number = |key: &str| report[key].as_f64().unwrap_or_else(|| panic!("{key}: {report}"));
    let tokens_per_s = number("tokens_per_s");
    assert!(tokens_per_s > 0.0 && number("tokens_per_s_best") >= tokens_per_s);
    let mfu = tokens_per_s * number("flops_per_token") / number("matmul_peak_flops");
    assert!((number("mfu") / mfu - 1.0).abs() < 1e-9);
    assert!(number("peak_memory_bytes") > 10e6);
    assert_eq!(report["step_seconds"].as_array().unwrap().len(), 3);
    let mut sorted: Vec<f64> = report["step_seconds"].as_array().unwrap().iter().map(|s| s.as_f64().unwrap()).collect();
    sorted.sort_by(f64::total_cmp);
    assert!((tokens_per_s * sorted[1] / 128.0 - 1.0).abs() < 1e-9);
    for (key, value) in [
        ("precision", Value::from("fp32")),
        ("kernels", "fused".into()),
        ("device", "cpu".into()),
        ("threads", 1.into()),
        ("micro_batch", 2.into()),
        ("accumulation", 2.into()),
        ("sequence_length", 32.into()),
        ("peak_device_memory_bytes", Value::Null),
    ] {
        assert_eq!(report[key], value, "{key}");
    }
    assert!(report["parameters"].as_u64().is_some() && report["version"].is_string());
    assert!(report["libtorch"].as_str().unwrap().starts_with("2.13"));
    let parts = report["seconds_by_part"].as_object().unwrap();
    assert!(parts.contains_key("data") && parts.contains_key("clip and optimizer"), "{parts:?}");
    assert!(parts.values().all(|seconds| seconds.as_f64().unwrap() >= 0.0));

    // The losses include the warm-up steps. With new weights the first is near that of a uniform
    // prediction.
    let losses = losses(&report);
    assert_eq!(losses.len(), 4);
    assert!((losses[0] - 311f64.ln()).abs() < 0.2, "{losses:?}");

    // The same as text.
    let shown = bench(&scratch, &["--steps", "4", "--warmup", "0", "--profile-steps", "0"]).expect(0);
    for part in ["2 x 2 sequences of 32", "tokens/s (median of 4 steps; best", "MFU", "GB resident"] {
        assert!(shown.stdout.contains(part), "{}", shown.stdout);
    }
    assert!(!shown.stdout.contains("by part"), "{}", shown.stdout);
    for loss in losses {
        assert!(shown.stderr.contains(&format!("loss {loss:.4}")), "{loss} is not in {}", shown.stderr);
    }
}

/// The file has six rows of 32 tokens and a step takes four: rows 0 to 3, 4 to 1, 2 to 5, and 0 to
/// 3 again.
#[test]
fn rows_of_a_file_are_used_in_order_and_wrap_around() {
    let scratch = Scratch::new();
    write_ids(&scratch.path("six.bin"), &token_stream(6 * 32 + 1, 311));
    let file = scratch.path_str("six.bin");
    // With this learning rate the weights do not change.
    let fixed = ["--set", "optimizer.learning_rate=1e-15", "--set", "model.dropout=0"];
    let arguments = ["--json", "--warmup", "1", "--steps", "3", "--profile-steps", "0", "--tokens-file", &file];
    let losses = losses(&bench(&scratch, &[&arguments[..], &fixed].concat()).expect(0).json());
    let differ = |a: usize, b: usize| (losses[a] - losses[b]).abs() > 1e-5;
    assert!(!differ(0, 3) && differ(0, 1) && differ(1, 2) && differ(2, 0), "{losses:?}");
}

#[test]
fn bench_rejects_bad_inputs() {
    let scratch = Scratch::new();
    let refused = |more: &[&str]| bench(&scratch, more).error();
    assert!(refused(&["--steps", "0"]).contains("--steps is 0"));
    assert!(refused(&["--set", "batch.tokens_per_step=100"]).contains("not a multiple of data.sequence_length 32"));
    assert!(refused(&["--tokens-file", "none.bin"]).contains("the tokens file none.bin cannot be read"));
    let file = scratch.path_str("ids.bin");
    write_ids(&scratch.path("ids.bin"), &[1; 32]);
    let short = refused(&["--tokens-file", &file]);
    assert!(short.contains("holds 32 ids, too few for one row of 33"), "{short}");
    let mut ids = [1; 40];
    ids[33] = 311;
    write_ids(&scratch.path("ids.bin"), &ids);
    let foreign = refused(&["--tokens-file", &file]);
    assert!(foreign.contains("holds id 311 at position 33, which is not below model.vocab_size 311"), "{foreign}");
    fs::write(scratch.path("ids.bin"), [0u8; 67]).unwrap();
    assert!(refused(&["--tokens-file", &file]).contains("67 bytes"));
    let hot = refused(&["--set", "optimizer.learning_rate=1e30", "--steps", "5"]);
    assert!(hot.contains("lower optimizer.learning_rate"), "{hot}");
}
