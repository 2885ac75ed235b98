//! Tests of the model with the fixtures of `tests/fixtures/backpack`. PyTorch computed their numbers
//! with one thread, fp32 and dropout 0, as the README there describes.
//! `tests/interop/hugging_face/test_export.py` computes them again from exported models.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::{
    ForwardOptions, IncrementalDecoder, Kernels, LanguageModel, Sampling, SenseChoice, SenseEdit, SenseOp, generate,
    load_model, read_tensors,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

const SETS: [&str; 3] = ["inv_scale", "no_inv_scale", "one_sense"];

fn fixture_dir(set: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set)
}

struct Fixture {
    model: LanguageModel,
    forward: BTreeMap<String, Tensor>,
    cases: Value,
}

fn fixture(set: &str) -> Fixture {
    let dir = fixture_dir(set);
    Fixture {
        model: load_model(&dir, Device::Cpu).unwrap(),
        forward: read_tensors(&dir.join("forward.safetensors")).unwrap(),
        cases: serde_json::from_str(&std::fs::read_to_string(dir.join("cases.json")).unwrap()).unwrap(),
    }
}

/// Returns the options of the reference kernels and of the fused kernels.
fn all_kernels() -> [ForwardOptions; 2] {
    [Kernels::Reference, Kernels::Fused].map(|kernels| ForwardOptions { kernels, ..ForwardOptions::evaluation() })
}

#[track_caller]
fn assert_close(name: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), want.size(), "{name}");
    let difference = (got - want).abs().max().double_value(&[]);
    assert!(difference <= tolerance, "{name} differs by {difference:.2e}, more than {tolerance:.0e}");
}

fn inputs_and_targets(tokens: &Tensor) -> (Tensor, Tensor) {
    let length = tokens.size()[1] - 1;
    (tokens.narrow(1, 0, length), tokens.narrow(1, 1, length))
}

#[test]
fn activations_equal_pytorch() {
    for set in SETS {
        let Fixture { model, forward, .. } = fixture(set);
        let (ids, targets) = inputs_and_targets(&forward["tokens"]);
        let backpack = model.backpack().unwrap();
        for options in all_kernels() {
            let name = |stage: &str| format!("{set}, {:?}: {stage}", options.kernels);
            tch::no_grad(|| {
                let body = backpack.body().forward(&ids, options).view_as(&forward["body_hidden"]);
                assert_close(&name("body"), &body, &forward["body_hidden"], 1e-5);
                let weights = backpack.contextualization(&ids, options);
                assert_close(&name("contextualization"), &weights, &forward["contextualization"], 1e-6);
                let senses = backpack.senses(&forward["sense_ids"].unsqueeze(0), options).squeeze_dim(0);
                assert_close(&name("senses"), &senses, &forward["senses"], 1e-5);
                assert_close(&name("output"), &model.hidden(&ids, options), &forward["output_hidden"], 2e-5);
                let logits = model.logits(&ids, options);
                assert_close(&name("logits"), &logits, &forward["logits"], 5e-5);
                let nll = logits.log_softmax(-1, Kind::Float).gather(-1, &targets.unsqueeze(-1), false).squeeze_dim(-1);
                assert_close(&name("nll"), &-nll, &forward["nll"], 5e-5);
                assert_close(&name("loss"), &model.loss(&ids, &targets, options).unwrap(), &forward["loss"], 2e-6);
                let short = model.logits(&forward["short_ids"], options);
                assert_close(&name("short logits"), &short, &forward["short_logits"], 5e-5);
            });
        }
    }
}

#[test]
fn gradients_equal_pytorch() {
    for set in SETS {
        for options in all_kernels() {
            let Fixture { model, forward, .. } = fixture(set);
            let (ids, targets) = inputs_and_targets(&forward["tokens"]);
            model.loss(&ids, &targets, options).unwrap().backward();
            let mut compared = 0;
            for (name, parameter) in model.parameters().iter() {
                let want = &forward[&format!("grad.{name}")];
                // The tolerance 1e-6 is for gradients of magnitude 1. Some gradients reach 10.
                let tolerance = 1e-6 * want.abs().max().double_value(&[]).max(1.0);
                assert_close(
                    &format!("{set}, {:?}: gradient of {name}", options.kernels),
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
fn greedy_generation_equals_pytorch_beyond_the_context_length() {
    for set in SETS {
        let Fixture { model, cases, .. } = fixture(set);
        let mut exceeds_context = false;
        for case in cases["generation"].as_array().unwrap() {
            let (prompt, want) = (ids_of(&case["prompt"]), ids_of(&case["new_tokens"]));
            exceeds_context |= prompt.len() + want.len() > model.config().n_positions as usize;
            assert_eq!(generate(&model, &prompt, want.len(), Sampling::Greedy).unwrap(), want, "{set}: {prompt:?}");
        }
        assert!(exceeds_context, "{set}: no case exceeds the context length");
    }
}

/// The caches do not change the logits, within and beyond the context length.
#[test]
fn incremental_decoding_equals_the_forward_pass() {
    for set in SETS {
        for kind in [Kind::Float, Kind::BFloat16] {
            let Fixture { model, .. } = fixture(set);
            let context = model.config().n_positions as usize;
            let options = ForwardOptions { kind, ..ForwardOptions::evaluation() };
            let ids: Vec<i64> = (0..context as i64 + 6).map(|i| i * i % 97).collect();
            let mut decoder = IncrementalDecoder::new(&model, options);
            let mut from = 0;
            for to in (5..=ids.len()).filter(|to| *to == 5 || *to > 9) {
                let logits = decoder.append(&ids[from..to]);
                from = to;
                let window = &ids[to.saturating_sub(context)..to];
                let want =
                    tch::no_grad(|| model.logits(&Tensor::from_slice(window).unsqueeze(0), options)).get(0).get(-1);
                // With bf16 the order of the sums matters.
                let tolerance = if kind == Kind::Float { 5e-5 } else { 0.5 };
                assert_close(&format!("{set}, {kind:?}, {to} tokens"), &logits, &want, tolerance);
            }
        }
    }
}

/// Parses the edits of a case, which are objects with the keys `token`, `sense` and `factor`.
fn edits_of(value: &Value) -> Vec<SenseEdit> {
    let edit = |edit: &Value| SenseEdit {
        token: edit["token"].as_i64().unwrap(),
        sense: SenseChoice::One(edit["sense"].as_i64().unwrap()),
        op: SenseOp::Scale(edit["factor"].as_f64().unwrap()),
    };
    value.as_array().unwrap().iter().map(edit).collect()
}

#[test]
fn sense_edits_equal_pytorch() {
    for set in SETS {
        let Fixture { mut model, forward, cases } = fixture(set);
        let ids = &forward["edit_ids"];
        let unedited = tch::no_grad(|| model.logits(ids, ForwardOptions::evaluation()));
        for (case, want) in [("edit_single", "edit_single_logits"), ("edit_multi", "edit_multi_logits")] {
            let check = |model: &LanguageModel| {
                for options in all_kernels() {
                    assert_close(&format!("{set}: {case}"), &model.logits(ids, options), &forward[want], 5e-5);
                }
                let row: Vec<i64> = Vec::try_from(ids.get(0)).unwrap();
                let last = IncrementalDecoder::new(model, ForwardOptions::evaluation()).append(&row);
                assert_close(&format!("{set}: {case}, decoded"), &last, &forward[want].get(0).get(-1), 5e-5);
                Ok(())
            };
            model.with_edits(&edits_of(&cases[case]), check).unwrap();
        }
        assert_close(set, &model.logits(ids, ForwardOptions::evaluation()), &unedited, 0.0);
    }
}

#[test]
fn edits_apply_in_order_and_are_saved_with_the_model() {
    let Fixture { mut model, .. } = fixture("inv_scale");
    let (d, options) = (model.config().n_embd, ForwardOptions::evaluation());
    let ids = Tensor::from_slice(&[5i64, 7, 5]).unsqueeze(0);
    let senses =
        |model: &LanguageModel| tch::no_grad(|| model.backpack().unwrap().senses(&ids, options)).squeeze_dim(0);
    let before = senses(&model);
    let vector: Vec<f32> = (0..d).map(|i| i as f32 / 7.0).collect();
    let one = |sense, op| SenseEdit { token: 5, sense: SenseChoice::One(sense), op };
    let all = |op| SenseEdit { token: 5, sense: SenseChoice::All, op };
    model
        .edit(&[
            one(0, SenseOp::Scale(3.0)),
            one(1, SenseOp::Replace(vector.clone())),
            all(SenseOp::Add(vector.clone())),
            one(2, SenseOp::Scale(0.0)),
        ])
        .unwrap();
    let (after, vector) = (senses(&model), Tensor::from_slice(&vector));
    let both = |position: i64, sense: i64| (before.get(position).get(sense), after.get(position).get(sense));
    for position in [0, 2] {
        assert_close("scaled, then added to", &both(position, 0).1, &(both(position, 0).0 * 3.0 + &vector), 1e-5);
        assert_close("replaced, then added to", &both(position, 1).1, &(&vector * 2.0), 1e-6);
        assert_close("added to, then removed", &both(position, 2).1, &vector.zeros_like(), 0.0);
        assert_close("added to", &both(position, 3).1, &(both(position, 3).0 + &vector), 1e-6);
    }
    assert_close("another word", &after.get(1), &before.get(1), 0.0);
    // A second edit applies to the edited senses.
    model.edit(&[one(1, SenseOp::Scale(0.5))]).unwrap();
    let after = senses(&model);
    assert_close("edited twice", &after.get(0).get(1), &vector, 1e-6);

    let saved = tempfile::tempdir().unwrap();
    model::save_model(&model, saved.path()).unwrap();
    let mut loaded = load_model(saved.path(), Device::Cpu).unwrap();
    assert_close("loaded", &senses(&loaded), &after, 0.0);
    // `with_edits` undoes only its own edits.
    let removed = loaded.with_edits(&[all(SenseOp::Scale(0.0))], |model| Ok(senses(model).get(0).abs().max())).unwrap();
    assert_eq!(removed.double_value(&[]), 0.0);
    assert_close("loaded, after a temporary edit", &senses(&loaded), &after, 0.0);
    let (_, exported) = model::export_tensors(&loaded, Kind::BFloat16).unwrap();
    let kinds: Vec<Kind> =
        exported.iter().filter(|(n, _)| n.contains("edited_senses")).map(|(_, t)| t.kind()).collect();
    assert_eq!(kinds, [Kind::Int64, Kind::BFloat16]);
}

#[test]
fn invalid_edits_are_errors() {
    let mut model = fixture("one_sense").model;
    let vocab_size = model.config().vocab_size;
    let mut error = |token, sense, op| {
        model.edit(&[SenseEdit { token, sense: SenseChoice::One(sense), op }]).unwrap_err().to_string()
    };
    let zero = SenseOp::Scale(0.0);
    assert_eq!(error(3, 1, zero.clone()), "an edit names sense 1 of token 3, but the model has senses 0 to 0");
    let unknown_token = format!("an edit names token {vocab_size}, but the model's ids are 0 to {}", vocab_size - 1);
    assert_eq!(error(vocab_size, 0, zero), unknown_token);
    assert!(error(3, 0, SenseOp::Scale(f64::NAN)).contains("the factor NaN"));
    assert!(error(3, 0, SenseOp::Add(vec![1.0])).contains("a vector of 1 numbers"));
}

#[test]
fn sense_table_equals_the_sense_network() {
    for set in SETS {
        let Fixture { mut model, forward, cases } = fixture(set);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(model::SENSE_TABLE_FILE);
        let (ids, _) = inputs_and_targets(&forward["tokens"]);
        let case = &cases["generation"][1];
        let (prompt, want) = (ids_of(&case["prompt"]), ids_of(&case["new_tokens"]));
        for (kind, tolerance) in [(Kind::Float, 5e-5), (Kind::BFloat16, 0.3)] {
            model.write_sense_table(&path, kind, &mut |_| ()).unwrap();
            let mut with_table = fixture(set).model;
            with_table.use_sense_table(&path).unwrap();
            for options in all_kernels() {
                let options = ForwardOptions { kind: Kind::Float, ..options };
                assert_close(
                    &format!("{set}, {kind:?}"),
                    &with_table.logits(&ids, options),
                    &forward["logits"],
                    tolerance,
                );
            }
            assert_eq!(generate(&with_table, &prompt, want.len(), Sampling::Greedy).unwrap(), want, "{set}, {kind:?}");
            // Edits apply to the senses of the table.
            let edits = edits_of(&cases["edit_multi"]);
            with_table.edit(&edits).unwrap();
            let edited = with_table.logits(&forward["edit_ids"], ForwardOptions::evaluation());
            assert_close(&format!("{set}, edited"), &edited, &forward["edit_multi_logits"], tolerance);
        }
        // The table of an edited model includes its edits.
        model.edit(&edits_of(&cases["edit_single"])).unwrap();
        model.write_sense_table(&path, Kind::Float, &mut |_| ()).unwrap();
        model.use_sense_table(&path).unwrap();
        // A table of another model is an error.
        let mut other = LanguageModel::initialize(model.config().clone(), 1, Device::Cpu).unwrap();
        let error = other.use_sense_table(&path).unwrap_err().to_string();
        assert!(error.contains("holds the senses of other weights"), "{error}");
    }
}

#[test]
fn contextualization_weights_can_be_scaled_while_decoding() {
    let Fixture { mut model, .. } = fixture("inv_scale");
    let ids = [5i64, 7, 9, 5];
    // The factor of a word applies to all its senses at all its positions.
    let num_senses = model.config().num_senses;
    let mut scale = |window: &[i64]| {
        let factors: Vec<f32> = window.iter().map(|&id| if id == 5 { 0.25 } else { 1.0 }).collect();
        Tensor::from_slice(&factors).unsqueeze(1).repeat([1, num_senses])
    };
    let scaled = IncrementalDecoder::new(&model, ForwardOptions::evaluation()).append_scaled(&ids, Some(&mut scale));
    model.edit(&[SenseEdit { token: 5, sense: SenseChoice::All, op: SenseOp::Scale(0.25) }]).unwrap();
    assert_close(
        "as an edit",
        &scaled,
        &IncrementalDecoder::new(&model, ForwardOptions::evaluation()).append(&ids),
        5e-5,
    );
}

#[test]
fn bf16_loss_is_close_to_fp32_with_fp32_gradients() {
    for set in SETS {
        let Fixture { model, forward, .. } = fixture(set);
        let (ids, targets) = inputs_and_targets(&forward["tokens"]);
        for kernels in [Kernels::Reference, Kernels::Fused] {
            let options = ForwardOptions { kind: Kind::BFloat16, kernels, ..ForwardOptions::evaluation() };
            let loss = model.loss(&ids, &targets, options).unwrap();
            loss.backward();
            assert_eq!(loss.kind(), Kind::Float);
            let relative = (loss.double_value(&[]) / forward["loss"].double_value(&[]) - 1.0).abs();
            assert!(relative < 0.02, "{set}: the loss differs by {relative}");
            for (name, parameter) in model.parameters().iter() {
                assert_eq!(parameter.grad().kind(), Kind::Float, "{name}");
            }
            // The fused kernels return the type that the next product reads.
            let output_kind = if kernels == Kernels::Reference { Kind::Float } else { Kind::BFloat16 };
            assert_eq!(model.backpack().unwrap().body().forward(&ids, options).kind(), output_kind);
        }
    }
}

#[test]
fn bf16_evaluation_keeps_edits_and_stays_close_to_fp32() {
    for set in SETS {
        let Fixture { mut model, forward, cases } = fixture(set);
        let ids = &forward["edit_ids"];
        let unedited = &tch::no_grad(|| model.logits(ids, model.evaluation_options()));
        model.edit(&edits_of(&cases["edit_single"])).unwrap();
        let model = model.with_evaluation_kind(Kind::BFloat16);
        assert_eq!(model.evaluation_options().kind, Kind::BFloat16);
        let logits = tch::no_grad(|| model.logits(ids, model.evaluation_options()));
        let distance = |other: &Tensor| (&logits - other).abs().max().double_value(&[]);
        let (to_edited, to_unedited) = (distance(&forward["edit_single_logits"]), distance(unedited));
        assert!(to_edited > 0.0 && to_edited < to_unedited / 4.0, "{set}: {to_edited}, {to_unedited}");
        let wte = model.parameters().get("backpack.gpt2_model.wte.weight");
        let copy = model.with_parameter("backpack.gpt2_model.wte.weight", wte.detach()).unwrap();
        assert_eq!(tch::no_grad(|| copy.logits(ids, copy.evaluation_options())), logits, "{set}");
    }
}

#[test]
fn invalid_prompts_are_errors() {
    let model = fixture("inv_scale").model;
    let error = |ids: &[i64]| generate(&model, ids, 1, Sampling::Greedy).unwrap_err().to_string();
    assert_eq!(error(&[]), "there are no tokens: give at least one");
    assert_eq!(error(&[0; 33]), "33 tokens are more than the model's context of 32 (n_positions): give fewer");
    assert_eq!(error(&[1, 311]), "id 311 at position 1 is outside the model's vocabulary of 311 (0 to 310)");
}

#[test]
fn saved_model_has_equal_tensors_and_config() {
    for set in SETS {
        let model = fixture(set).model;
        let saved = tempfile::tempdir().unwrap();
        model::save_model(&model, saved.path()).unwrap();
        assert_eq!(load_model(saved.path(), Device::Cpu).unwrap().config(), model.config());
        let (before, after) = (fixture_dir(set).join(model::WEIGHTS_FILE), saved.path().join(model::WEIGHTS_FILE));
        assert_eq!(read_tensors(&before).unwrap(), read_tensors(&after).unwrap());
    }
}
