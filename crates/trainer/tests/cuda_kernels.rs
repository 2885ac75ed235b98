//! Training steps with the CUDA kernels, run by emulation on the CPU
//! (`torch_ext::cuda_kernels::Emulation`): the twenty steps of PyTorch in the fixtures, in bf16, with
//! gradient accumulation and bf16 copies of the weights that the optimizer writes.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

mod support;

use std::path::PathBuf;

use model::{ForwardOptions, load_model, read_tensors};
use support::hyperparameters;
use tch::{Device, Kind};
use torch_ext::cuda_kernels::{self, Emulation};
use trainer::{
    Collectives, GradReducer, MicroBatch, Optimizer, StepContext, StepGuard, StepGuardConfig, training_step,
};

/// A bf16 number has 8 bits. The losses of the fixtures are about 4.
const TOLERANCE: f64 = 1e-2;

#[test]
fn twenty_steps_in_bf16_are_close_to_pytorch_in_fp32() {
    let _emulation = Emulation::start();
    for set in ["inv_scale", "no_inv_scale", "one_sense"] {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set);
        let expected = read_tensors(&dir.join("train.safetensors")).unwrap();
        let recorded: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(dir.join("train.json")).unwrap()).unwrap();
        let (config, schedule) = hyperparameters(&recorded);
        let peak = config.learning_rate;
        let forward_options = ForwardOptions { kind: Kind::BFloat16, ..ForwardOptions::evaluation() };
        let model = load_model(&dir, Device::Cpu).unwrap().with_low_precision_copies(forward_options);
        let collectives = Collectives::alone();
        let mut context = StepContext {
            optimizer: Optimizer::new(config, &model),
            model,
            step_guard: StepGuard::new(&StepGuardConfig::default(), false, Device::Cpu).unwrap(),
            grad_reducer: GradReducer::None,
            collectives: &collectives,
            forward_options,
        };
        let mut largest = 0.0_f64;
        for step in 0..schedule.max_steps {
            let batch = expected["batches"].get(step as i64);
            let (rows, length) = (batch.size()[0] / 2, batch.size()[1] - 1);
            let micro_batches = [0, 1].into_iter().map(|i| {
                let tokens = batch.narrow(0, i * rows, rows);
                let (inputs, targets) = (tokens.narrow(1, 0, length), tokens.narrow(1, 1, length));
                Ok(MicroBatch { inputs: inputs.into(), targets, dropout_seed: 0 })
            });
            let rate = schedule.learning_rate(peak, step);
            let result = training_step(&mut context, rate, micro_batches).unwrap();
            let want = expected["loss"].double_value(&[step as i64]);
            let difference = (result.loss.double_value(&[]) - want).abs();
            largest = largest.max(difference);
        }
        assert!(cuda_kernels::problems().is_empty(), "{:?}", cuda_kernels::problems());
        assert!(largest < TOLERANCE, "{set}: a loss differs by {largest}");
        assert!(largest > 1e-6, "{set}: the losses are those of fp32");
    }
}
