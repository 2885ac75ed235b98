//! Comparison of twenty training steps with PyTorch, on the batches of `tests/fixtures/backpack`.
//!
//! The rows of the batches are independent sequences, so they are passed to the training step
//! directly and not through a token shard. Each batch is divided into 1 x 4, 2 x 2 and 4 x 1
//! sequences (micro-batches x size).
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::path::PathBuf;

use model::{ForwardOptions, Kernels, load_model, read_tensors};
use serde_json::Value;
use tch::Device;
use trainer::{
    Collectives, Decay, GradReducer, MicroBatch, Optimizer, OptimizerConfig, ScheduleConfig, StepContext, StepGuard,
    StepGuardConfig, training_step,
};

fn fixture_dir(set: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set)
}

fn trajectory(set: &str, accumulation: i32, kernels: Kernels) {
    let folder = fixture_dir(set);
    let expected: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("train.json")).unwrap()).unwrap();
    let tensors = read_tensors(&folder.join("train.safetensors")).unwrap();
    let number = |key: &str| expected["hp"][key].as_f64().unwrap();
    let (peak, steps) = (number("peak_lr"), number("steps") as u64);
    let schedule = ScheduleConfig {
        warmup_steps: number("warmup_steps") as u64,
        max_steps: steps,
        decay: Decay::Linear,
        min_learning_rate: 0.0,
    };
    let model = load_model(&folder, Device::Cpu).unwrap();
    let config = OptimizerConfig {
        learning_rate: peak,
        betas: (0.9, 0.999),
        eps: number("eps"),
        weight_decay: number("weight_decay"),
        grad_clip: number("clip"),
    };
    let collectives = Collectives::alone();
    let mut context = StepContext {
        optimizer: Optimizer::new(config, &model),
        model,
        step_guard: StepGuard::new(&StepGuardConfig::default(), false, Device::Cpu).unwrap(),
        grad_reducer: GradReducer::None,
        collectives: &collectives,
        forward_options: ForwardOptions { kernels, ..ForwardOptions::evaluation() },
    };
    let batches = &tensors["batches"];
    let (rows, length) = (batches.size()[1], batches.size()[2] - 1);
    let micro = rows / i64::from(accumulation);
    for step in 0..steps {
        let lr = schedule.learning_rate(peak, step);
        assert!((lr - tensors["lr"].double_value(&[step as i64])).abs() < 1e-12, "{set}: rate of step {step}");
        let batch = batches.get(step as i64);
        let micro_batches = (0..accumulation).map(|i| {
            let rows = batch.narrow(0, i64::from(i) * micro, micro);
            // Without dropout the seed is not used.
            let inputs = rows.narrow(1, 0, length).into();
            Ok(MicroBatch { inputs, targets: rows.narrow(1, 1, length), dropout_seed: 0 })
        });
        let result = training_step(&mut context, lr, micro_batches).unwrap();
        let case = format!("{set}, {kernels:?}, {accumulation} x {micro}, step {step}");
        let loss = result.loss.double_value(&[]);
        let want = tensors["loss"].double_value(&[step as i64]);
        assert!((loss - want).abs() < 5e-6, "{case}: loss {loss}, expected {want}");
        let norm = result.grad_norm.double_value(&[]);
        let want = tensors["grad_norm"].double_value(&[step as i64]);
        assert!((norm / want - 1.0).abs() < 1e-4, "{case}: gradient norm {norm}, expected {want}");
    }
    for (name, parameter) in context.model.parameters().iter() {
        let difference = tch::no_grad(|| (parameter - &tensors[&format!("final.{name}")]).abs());
        // Key biases do not change the softmax. Their gradients are rounding noise, which Adam
        // turns into updates of up to the learning rate. Queries come first, then keys.
        let size = difference.size()[0];
        let checked: Vec<(i64, i64)> = match name {
            n if n.ends_with("attn.c_attn.bias") && n.contains(".h.") => vec![(0, size / 3), (2 * size / 3, size / 3)],
            n if n.ends_with("sense_weight_net.c_attn.bias") => vec![(0, size / 2)],
            _ => vec![(0, size)],
        };
        for (start, length) in checked {
            let worst = difference.narrow(0, start, length).max().double_value(&[]);
            assert!(worst < 2e-5, "{set}, {accumulation} x {micro}: {name} is off by {worst:.1e} after {steps} steps");
        }
    }
}

#[test]
fn twenty_steps_equal_pytorch_for_every_accumulation() {
    for set in ["inv_scale", "no_inv_scale", "one_sense"] {
        for accumulation in [1, 2, 4] {
            for kernels in [Kernels::Reference, Kernels::Fused] {
                trajectory(set, accumulation, kernels);
            }
        }
    }
}
