//! The model against PyTorch: everything in `tests/fixtures/backpack`, which a PyTorch
//! Backpack made (one thread, fp32, dropout 0; see the README there).
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::{Decoder, Kernels, LanguageModel, Pass, Sampling, SenseEdit, generate, load_folder, read_tensors};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const SETS: [&str; 3] = ["inv_scale", "no_inv_scale", "one_sense"];

fn folder(set: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set)
}

struct Fixture {
    model: LanguageModel,
    forward: BTreeMap<String, Tensor>,
    cases: Value,
}

fn fixture(set: &str) -> Fixture {
    let folder = folder(set);
    Fixture {
        model: load_folder(&folder, Device::Cpu).unwrap(),
        forward: read_tensors(&folder.join("forward.safetensors")).unwrap(),
        cases: serde_json::from_str(&std::fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap(),
    }
}

fn passes() -> [Pass; 2] {
    [Kernels::Plain, Kernels::Fused].map(|kernels| Pass { kernels, ..Pass::evaluation() })
}

#[track_caller]
fn assert_close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), want.size(), "{what}");
    let difference = (got - want).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "{what} differs by {difference:.2e}, more than {tolerance:.0e}");
}

fn inputs_and_targets(tokens: &Tensor) -> (Tensor, Tensor) {
    let length = tokens.size()[1] - 1;
    (tokens.narrow(1, 0, length), tokens.narrow(1, 1, length))
}

#[test]
fn every_stage_of_the_forward_pass_agrees() {
    for set in SETS {
        let Fixture { model, forward, .. } = fixture(set);
        let (ids, targets) = inputs_and_targets(&forward["tokens"]);
        let backpack = model.backpack().unwrap();
        for pass in passes() {
            let of = |what: &str| format!("{set}, {:?}: {what}", pass.kernels);
            tch::no_grad(|| {
                let body = backpack.body().forward(&ids, pass).view_as(&forward["body_hidden"]);
                assert_close(&of("body"), &body, &forward["body_hidden"], 1e-5);
                let weights = backpack.contextualization(&ids, pass);
                assert_close(&of("contextualization"), &weights, &forward["contextualization"], 1e-6);
                let senses = backpack.senses(&forward["sense_ids"].unsqueeze(0), pass).squeeze_dim(0);
                assert_close(&of("senses"), &senses, &forward["senses"], 1e-5);
                assert_close(&of("output"), &model.hidden(&ids, pass), &forward["output_hidden"], 2e-5);
                let logits = model.logits(&ids, pass);
                assert_close(&of("logits"), &logits, &forward["logits"], 5e-5);
                let nll = logits.log_softmax(-1, Kind::Float).gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
                assert_close(&of("nll"), &-nll, &forward["nll"], 5e-5);
                assert_close(&of("loss"), &model.loss(&ids, &targets, pass).unwrap(), &forward["loss"], 2e-6);
                let short = model.logits(&forward["short_ids"], pass);
                assert_close(&of("short logits"), &short, &forward["short_logits"], 5e-5);
            });
        }
    }
}

#[test]
fn every_gradient_agrees() {
    for set in SETS {
        for pass in passes() {
            let Fixture { model, forward, .. } = fixture(set);
            let (ids, targets) = inputs_and_targets(&forward["tokens"]);
            model.loss(&ids, &targets, pass).unwrap().backward();
            let mut compared = 0;
            for (name, parameter) in model.parameters().iter() {
                let want = &forward[&format!("grad.{name}")];
                // The README's 1e-6 is for gradients of order 1; some here reach 10.
                let tolerance = 1e-6 * want.abs().max().double_value(&[]).max(1.0);
                assert_close(
                    &format!("{set}, {:?}: gradient of {name}", pass.kernels),
                    &parameter.grad(),
                    want,
                    tolerance,
                );
                compared += 1;
            }
            assert_eq!(compared, forward.keys().filter(|k| k.starts_with("grad.")).count());
        }
    }
}

fn ids_of(value: &Value) -> Vec<i64> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn greedy_generations_agree_and_slide_past_the_context() {
    for set in SETS {
        let Fixture { model, cases, .. } = fixture(set);
        let mut slid = false;
        for case in cases["generation"].as_array().unwrap() {
            let (prompt, want) = (ids_of(&case["prompt"]), ids_of(&case["new_tokens"]));
            slid |= prompt.len() + want.len() > model.config().n_positions as usize;
            assert_eq!(generate(&model, &prompt, want.len(), Sampling::Greedy).unwrap(), want, "{set}: {prompt:?}");
        }
        assert!(slid, "{set}: no case runs past the context");
    }
}

/// With what is kept of the past or without: the same logits, before and past the context.
#[test]
fn decoding_token_by_token_equals_the_whole_forward_pass() {
    for set in SETS {
        for kind in [Kind::Float, Kind::BFloat16] {
            let Fixture { model, .. } = fixture(set);
            let context = model.config().n_positions as usize;
            let pass = Pass { kind, ..Pass::evaluation() };
            let ids: Vec<i64> = (0..context as i64 + 6).map(|i| i * i % 97).collect();
            let mut decoder = Decoder::new(&model, pass);
            let mut from = 0;
            for to in (5..=ids.len()).filter(|to| *to == 5 || *to > 9) {
                let logits = decoder.push(&ids[from..to]);
                from = to;
                let window = &ids[to.saturating_sub(context)..to];
                let want = tch::no_grad(|| model.logits(&Tensor::from_slice(window).unsqueeze(0), pass)).get(0).get(-1);
                // bf16 sums in another order.
                let tolerance = if kind == Kind::Float { 5e-5 } else { 0.5 };
                assert_close(&format!("{set}, {kind:?}, {to} tokens"), &logits, &want, tolerance);
            }
        }
    }
}

#[test]
fn sense_edits_agree() {
    for set in SETS {
        let Fixture { model, forward, cases } = fixture(set);
        for (which, want) in [("edit_single", "edit_single_logits"), ("edit_multi", "edit_multi_logits")] {
            let edits: Vec<SenseEdit> = serde_json::from_value(cases[which].clone()).unwrap();
            for pass in passes() {
                let hidden = model.backpack().unwrap().forward_edited(&forward["edit_ids"], &edits, pass).unwrap();
                assert_close(&format!("{set}: {which}"), &model.head(&hidden, pass), &forward[want], 5e-5);
            }
        }
    }
}

#[test]
fn an_edit_of_a_sense_that_is_not_there_is_refused() {
    let Fixture { model, forward, .. } = fixture("one_sense");
    let edit = SenseEdit { token: 3, sense: 1, factor: 0.0 };
    let error =
        model.backpack().unwrap().forward_edited(&forward["edit_ids"], &[edit], Pass::evaluation()).unwrap_err();
    assert_eq!(error.to_string(), "an edit names sense 1 of token 3, but the model has senses 0 to 0");
}

#[test]
fn bf16_products_stay_near_fp32_with_fp32_gradients() {
    for set in SETS {
        let Fixture { model, forward, .. } = fixture(set);
        let (ids, targets) = inputs_and_targets(&forward["tokens"]);
        for kernels in [Kernels::Plain, Kernels::Fused] {
            let pass = Pass { kind: Kind::BFloat16, kernels, ..Pass::evaluation() };
            let loss = model.loss(&ids, &targets, pass).unwrap();
            loss.backward();
            assert_eq!(loss.kind(), Kind::Float);
            let relative = (loss.double_value(&[]) / forward["loss"].double_value(&[]) - 1.0).abs();
            assert!(relative < 0.02, "{set}: loss off by {relative}");
            for (name, parameter) in model.parameters().iter() {
                assert_eq!(parameter.grad().kind(), Kind::Float, "{name}");
            }
            // The fused kernels hand on what the next product reads.
            let handed_on = if kernels == Kernels::Plain { Kind::Float } else { Kind::BFloat16 };
            assert_eq!(model.backpack().unwrap().body().forward(&ids, pass).kind(), handed_on);
        }
    }
}

#[test]
fn too_many_ids_none_and_foreign_ones_are_refused() {
    let model = fixture("inv_scale").model;
    let error = |ids: &[i64]| generate(&model, ids, 1, Sampling::Greedy).unwrap_err().to_string();
    assert_eq!(error(&[]), "there are no tokens: give at least one");
    assert_eq!(error(&[0; 33]), "33 tokens are more than the model's context of 32 (n_positions): give fewer");
    assert_eq!(error(&[1, 311]), "id 311 at place 1 is outside the model's vocabulary of 311 (0 to 310)");
}

#[test]
fn a_saved_model_has_the_same_tensors_and_config() {
    for set in SETS {
        let model = fixture(set).model;
        let saved = tempfile::tempdir().unwrap();
        model::save_folder(&model, saved.path()).unwrap();
        assert_eq!(load_folder(saved.path(), Device::Cpu).unwrap().config(), model.config());
        let (before, after) = (folder(set).join(model::WEIGHTS_FILE), saved.path().join(model::WEIGHTS_FILE));
        assert_eq!(read_tensors(&before).unwrap(), read_tensors(&after).unwrap());
    }
}
