//! Tests of model and training step on the device that the environment variable
//! `BACKPACK_TEST_DEVICE` names: `cpu` (the default) or `cuda`, which is the first GPU.
//! `BACKPACK_FIXTURES` names a directory with the fixtures, instead of `tests/fixtures/backpack`.
//!
//! PyTorch computed the expected numbers on a CPU. A GPU adds in another order, so the tolerances are
//! larger there.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use model::{
    ForwardOptions, HostBatch, IncrementalDecoder, Kernels, LanguageModel, Sampling, SenseChoice, SenseEdit, SenseOp,
    derive_seed, generate, load_model, read_tensors,
};
use serde_json::Value;
use support::hyperparameters;
use tch::{Device, Kind, Tensor};
use trainer::{
    Collectives, DeviceKind, GradReducer, LocalRanks, MicroBatch, Optimizer, OptimizerConfig, StepContext, StepGuard,
    StepGuardConfig, training_step,
};

const SETS: [&str; 3] = ["inv_scale", "no_inv_scale", "one_sense"];
const ALL_KERNELS: [Kernels; 2] = [Kernels::Reference, Kernels::Fused];

/// Returns the tested device. Every test calls it before it uses the random generator, because CUDA
/// cannot be loaded afterward.
fn device() -> Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    *DEVICE.get_or_init(|| {
        let kind = match std::env::var("BACKPACK_TEST_DEVICE").as_deref() {
            Err(_) | Ok("cpu") => DeviceKind::Cpu,
            Ok("cuda") => DeviceKind::Cuda,
            Ok(other) => panic!("BACKPACK_TEST_DEVICE is {other:?}: use \"cpu\" or \"cuda\""),
        };
        trainer::select_device(kind, LocalRanks::ALONE).unwrap()
    })
}

/// Returns the tolerance on the tested device, given that on a CPU.
fn tolerance(on_cpu: f64) -> f64 {
    if device().is_cuda() { 10.0 * on_cpu } else { on_cpu }
}

fn fixture_dir(set: &str) -> PathBuf {
    let default = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack");
    std::env::var_os("BACKPACK_FIXTURES").map_or_else(default, PathBuf::from).join(set)
}

fn tensors(set: &str, file: &str) -> BTreeMap<String, Tensor> {
    let tensors = read_tensors(&fixture_dir(set).join(file)).unwrap();
    tensors.into_iter().map(|(name, tensor)| (name, tensor.to_device(device()))).collect()
}

fn fixture_model(set: &str) -> LanguageModel {
    load_model(&fixture_dir(set), device()).unwrap()
}

fn json(set: &str, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture_dir(set).join(file)).unwrap()).unwrap()
}

fn fp32(kernels: Kernels) -> ForwardOptions {
    ForwardOptions { kernels, ..ForwardOptions::evaluation() }
}

fn inputs_and_targets(tokens: &Tensor) -> (Tensor, Tensor) {
    let length = tokens.size()[1] - 1;
    (tokens.narrow(1, 0, length), tokens.narrow(1, 1, length))
}

#[track_caller]
fn assert_close(name: &str, got: &Tensor, want: &Tensor, on_cpu: f64) {
    assert_eq!((got.size(), got.device()), (want.size(), device()), "{name}");
    let (difference, tolerance) = (tch::no_grad(|| (got - want).abs().max().double_value(&[])), tolerance(on_cpu));
    assert!(difference <= tolerance, "{name} differs by {difference:.2e}, more than {tolerance:.0e}");
}

#[test]
fn activations_and_gradients_equal_pytorch() {
    for set in SETS {
        for kernels in ALL_KERNELS {
            let (model, forward) = (fixture_model(set), tensors(set, "forward.safetensors"));
            let (ids, targets) = inputs_and_targets(&forward["tokens"]);
            let (backpack, options) = (model.backpack().unwrap(), fp32(kernels));
            let name = |part: &str| format!("{set}, {kernels:?}: {part}");
            tch::no_grad(|| {
                let weights = backpack.contextualization(&ids, options);
                assert_close(&name("contextualization"), &weights, &forward["contextualization"], 1e-6);
                let senses = backpack.senses(&forward["sense_ids"].unsqueeze(0), options).squeeze_dim(0);
                assert_close(&name("senses"), &senses, &forward["senses"], 1e-5);
                assert_close(&name("logits"), &model.logits(&ids, options), &forward["logits"], 5e-5);
            });
            let loss = model.loss(&ids, &targets, options).unwrap();
            assert_close(&name("loss"), &loss, &forward["loss"], 2e-6);
            loss.backward();
            for (parameter_name, parameter) in model.parameters().iter() {
                let want = &forward[&format!("grad.{parameter_name}")];
                // The tolerance is for gradients of magnitude 1. Some gradients reach 10.
                let magnitude = want.abs().max().double_value(&[]).max(1.0);
                let name = name(&format!("gradient of {parameter_name}"));
                assert_close(&name, &parameter.grad(), want, 1e-6 * magnitude);
            }
        }
    }
}

/// The loss of a batch whose distinct tokens the host has found is that of its tensor of ids.
#[test]
fn distinct_tokens_of_the_host_do_not_change_the_loss() {
    for set in SETS {
        let rows = &tensors(set, "forward.safetensors")["tokens"];
        let (ids, targets) = inputs_and_targets(rows);
        let length = ids.size()[1] as usize;
        for kernels in ALL_KERNELS {
            let (model, options) = (fixture_model(set), fp32(kernels));
            assert_eq!(model.shares_senses(options), kernels == Kernels::Fused);
            let gradient = || model.parameters().get("backpack.gpt2_model.wte.weight").grad();
            let loss = model.loss(&ids, &targets, options).unwrap();
            loss.backward();
            let expected = gradient().copy();
            let _ = gradient().zero_();
            let host_ids: Vec<i64> = Vec::try_from(rows.reshape([-1])).unwrap();
            let (batch, targets) = HostBatch::new(host_ids, length, true).to_device(device()).unwrap();
            let loss_of_batch = model.loss(batch, &targets, options).unwrap();
            loss_of_batch.backward();
            assert_eq!(loss_of_batch, loss, "{set}, {kernels:?}");
            // Sums of gradients have no fixed order on a GPU.
            if !device().is_cuda() {
                assert_eq!(gradient(), expected, "{set}, {kernels:?}");
            }
        }
    }
}

/// A CPU has no fast products in fp16, so only a GPU is tested with it.
#[test]
fn half_precision_is_close_to_fp32_with_fp32_gradients() {
    let kinds: &[Kind] = if device().is_cuda() { &[Kind::BFloat16, Kind::Half] } else { &[Kind::BFloat16] };
    for set in SETS {
        let forward = tensors(set, "forward.safetensors");
        let (ids, targets) = inputs_and_targets(&forward["tokens"]);
        for (&kind, kernels) in kinds.iter().flat_map(|kind| ALL_KERNELS.map(|kernels| (kind, kernels))) {
            let model = fixture_model(set);
            let name = format!("{set}, {kind:?}, {kernels:?}");
            let loss = model.loss(&ids, &targets, ForwardOptions { kind, ..fp32(kernels) }).unwrap();
            let relative = (loss.double_value(&[]) / forward["loss"].double_value(&[]) - 1.0).abs();
            assert!(relative < 0.02, "{name}: the loss differs by {relative}");
            loss.backward();
            for (parameter, tensor) in model.parameters().iter() {
                let gradient = tensor.grad();
                assert_eq!(gradient.kind(), Kind::Float, "{name}: {parameter}");
                assert_eq!(gradient.isfinite().all().int64_value(&[]), 1, "{name}: {parameter}");
            }
        }
    }
}

fn step_context<'a>(
    model: LanguageModel,
    config: OptimizerConfig,
    collectives: &'a Collectives,
    forward_options: ForwardOptions,
) -> StepContext<'a> {
    StepContext {
        optimizer: Optimizer::new(config, &model),
        model,
        step_guard: StepGuard::new(&StepGuardConfig::default(), false, device()).unwrap(),
        grad_reducer: GradReducer::None,
        collectives,
        forward_options,
    }
}

/// Runs one step on rows of tokens `[B, T + 1]`. Returns its loss and the norm of its gradient.
fn run_step(
    context: &mut StepContext<'_>,
    learning_rate: f64,
    batch: &Tensor,
    accumulation: i32,
    step: u64,
) -> (f64, f64) {
    let rows = batch.size()[0] / i64::from(accumulation);
    let micro_batches = (0..accumulation).map(|i| {
        let (inputs, targets) = inputs_and_targets(&batch.narrow(0, i64::from(i) * rows, rows));
        Ok(MicroBatch { inputs: inputs.into(), targets, dropout_seed: derive_seed(7, &[step, i as u64]) })
    });
    let result = training_step(context, learning_rate, micro_batches).unwrap();
    (result.loss.double_value(&[]), result.grad_norm.double_value(&[]))
}

/// Compares all parameters with those of PyTorch after its last step.
fn assert_parameters_close(name: &str, model: &LanguageModel, expected: &BTreeMap<String, Tensor>) {
    for (parameter, tensor) in model.parameters().iter() {
        let want = &expected[&format!("final.{parameter}")];
        // Key biases do not change the softmax. Their gradients are rounding noise, which Adam turns
        // into updates of up to the learning rate. Queries come first, then keys.
        let size = want.size()[0];
        let checked: Vec<(i64, i64)> = match parameter {
            n if n.ends_with("attn.c_attn.bias") && n.contains(".h.") => vec![(0, size / 3), (2 * size / 3, size / 3)],
            n if n.ends_with("sense_weight_net.c_attn.bias") => vec![(0, size / 2)],
            _ => vec![(0, size)],
        };
        for (start, length) in checked {
            let part = |tensor: &Tensor| tensor.detach().narrow(0, start, length);
            assert_close(&format!("{name}: {parameter} after the last step"), &part(tensor), &part(want), 2e-5);
        }
    }
}

/// The batches of 4 sequences are divided into 1, 2 and 4 micro-batches.
#[test]
fn twenty_steps_equal_pytorch_for_every_accumulation() {
    for set in SETS {
        for (accumulation, kernels) in [1, 2, 4].into_iter().flat_map(|n| ALL_KERNELS.map(|kernels| (n, kernels))) {
            let expected = tensors(set, "train.safetensors");
            let (config, schedule) = hyperparameters(&json(set, "train.json"));
            let (peak, collectives) = (config.learning_rate, Collectives::alone());
            let mut context = step_context(fixture_model(set), config, &collectives, fp32(kernels));
            for step in 0..schedule.max_steps {
                let batch = expected["batches"].get(step as i64);
                let rate = schedule.learning_rate(peak, step);
                let (loss, norm) = run_step(&mut context, rate, &batch, accumulation, step);
                let name = format!("{set}, {kernels:?}, accumulation {accumulation}, step {step}");
                let want = |key: &str| expected[key].double_value(&[step as i64]);
                assert!((rate - want("lr")).abs() < 1e-12, "{name}: rate {rate}, not {}", want("lr"));
                assert!((loss - want("loss")).abs() < tolerance(5e-6), "{name}: loss {loss}, not {}", want("loss"));
                let norm_error = (norm / want("grad_norm") - 1.0).abs();
                assert!(norm_error < tolerance(1e-4), "{name}: the gradient norm differs by {norm_error}");
            }
            let name = format!("{set}, {kernels:?}, accumulation {accumulation}");
            assert_parameters_close(&name, &context.model, &expected);
        }
    }
}

/// A run that is saved after half of the steps and resumed has the losses of an uninterrupted run:
/// bit for bit on a CPU, and within a tolerance on a GPU, where some sums have no
/// fixed order. This is the only test of this program that draws random numbers, so no other test
/// changes the state of the generator between a seed and its masks.
#[test]
fn stop_and_resume_continues_the_run() {
    let set = "inv_scale";
    let batches = &tensors(set, "train.safetensors")["batches"];
    let (config, schedule) = hyperparameters(&json(set, "train.json"));
    let (steps, collectives) = (schedule.max_steps, Collectives::alone());
    for (kernels, share_sense_dropout) in [(Kernels::Reference, false), (Kernels::Fused, false), (Kernels::Fused, true)]
    {
        let options = ForwardOptions { dropout: 0.1, share_sense_dropout, ..fp32(kernels) };
        let start = |model: LanguageModel| step_context(model, config.clone(), &collectives, options);
        let run = |context: &mut StepContext<'_>, steps: std::ops::Range<u64>| -> Vec<f64> {
            let loss = |step: u64| {
                let rate = schedule.learning_rate(config.learning_rate, step);
                run_step(context, rate, &batches.get(step as i64), 2, step).0
            };
            steps.map(loss).collect()
        };
        let whole = run(&mut start(fixture_model(set)), 0..steps);

        let saved = tempfile::tempdir().unwrap();
        let moments_file = saved.path().join("moments.safetensors");
        let mut first = start(fixture_model(set));
        let mut losses = run(&mut first, 0..steps / 2);
        model::save_model(&first.model, saved.path()).unwrap();
        let moments: Vec<(String, Tensor)> =
            first.optimizer.state().into_iter().map(|(name, moment)| (name, moment.to_device(Device::Cpu))).collect();
        model::write_tensors(&moments_file, moments.iter().map(|(name, moment)| (name.as_str(), moment))).unwrap();
        drop(first);
        let mut second = start(load_model(saved.path(), device()).unwrap());
        second.optimizer.restore(read_tensors(&moments_file).unwrap(), steps / 2).unwrap();
        losses.extend(run(&mut second, steps / 2..steps));

        let name = format!("{kernels:?}, shared masks: {share_sense_dropout}");
        if device().is_cuda() {
            for (step, (resumed, whole)) in losses.iter().zip(&whole).enumerate() {
                assert!((resumed - whole).abs() < 1e-4, "{name}: step {step} has loss {resumed}, not {whole}");
            }
        } else {
            assert_eq!(losses, whole, "{name}");
        }
    }
}

#[test]
fn a_step_that_overflows_changes_nothing() {
    let forward = tensors("inv_scale", "forward.safetensors");
    for kernels in ALL_KERNELS {
        let collectives = Collectives::alone();
        let mut context =
            step_context(fixture_model("inv_scale"), OptimizerConfig::default(), &collectives, fp32(kernels));
        // One normal step, so that the moments are not zero.
        run_step(&mut context, 1e-3, &forward["tokens"], 1, 0);
        let state = |context: &StepContext<'_>| -> Vec<(String, Tensor)> {
            let weights = context.model.parameters().iter().map(|(name, tensor)| (name.to_owned(), tensor.detach()));
            weights.chain(context.optimizer.state()).map(|(name, tensor)| (name, tensor.copy())).collect()
        };
        let before = state(&context);
        let mut weight = context.model.parameters().get("backpack.gpt2_model.ln_f.weight").detach();
        let finite = weight.copy();
        let _ = weight.fill_(f64::INFINITY);
        let (_, norm) = run_step(&mut context, 1e-3, &forward["tokens"], 1, 1);
        assert!(!norm.is_finite(), "{kernels:?}: {norm}");
        weight.copy_(&finite);
        for ((name, after), (_, before)) in state(&context).iter().zip(&before) {
            assert_eq!(after, before, "{kernels:?}: {name}");
        }
        // The next step has a finite loss and changes the weights.
        let (loss, _) = run_step(&mut context, 1e-3, &forward["tokens"], 1, 2);
        assert!(
            loss.is_finite()
                && context.model.parameters().iter().any(|(name, tensor)| {
                    before.iter().any(|(other, before)| name == other && tensor.detach() != *before)
                })
        );
    }
}

#[test]
fn generation_and_edits_equal_pytorch() {
    for set in SETS {
        let (mut model, forward, cases) =
            (fixture_model(set), tensors(set, "forward.safetensors"), json(set, "cases.json"));
        let ids_of = |value: &Value| -> Vec<i64> { serde_json::from_value(value.clone()).unwrap() };
        for case in cases["generation"].as_array().unwrap() {
            let (prompt, want) = (ids_of(&case["prompt"]), ids_of(&case["new_tokens"]));
            assert_eq!(generate(&model, &prompt, want.len(), Sampling::Greedy).unwrap(), want, "{set}: {prompt:?}");
        }
        let ids = &forward["edit_ids"];
        for (case, want) in [("edit_single", "edit_single_logits"), ("edit_multi", "edit_multi_logits")] {
            let edit = |edit: &Value| SenseEdit {
                token: edit["token"].as_i64().unwrap(),
                sense: SenseChoice::One(edit["sense"].as_i64().unwrap()),
                op: SenseOp::Scale(edit["factor"].as_f64().unwrap()),
            };
            let edits: Vec<SenseEdit> = cases[case].as_array().unwrap().iter().map(edit).collect();
            let check = |model: &LanguageModel| {
                for kernels in ALL_KERNELS {
                    let logits = model.logits(ids, fp32(kernels));
                    assert_close(&format!("{set}, {kernels:?}: {case}"), &logits, &forward[want], 5e-5);
                }
                let row: Vec<i64> = Vec::try_from(ids.get(0)).unwrap();
                let last = IncrementalDecoder::new(model, ForwardOptions::evaluation()).append(&row);
                assert_close(&format!("{set}: {case}, decoded"), &last, &forward[want].get(0).get(-1), 5e-5);
                Ok(())
            };
            model.with_edits(&edits, check).unwrap();
        }
    }
}
