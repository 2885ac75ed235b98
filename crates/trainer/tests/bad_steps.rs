//! A skipped step does not change weights and moments, and training in fp16 follows training in
//! fp32.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::sync::Mutex;

use model::{ForwardOptions, Kernels, LanguageModel, ModelConfig};
use tch::{Device, Kind, Tensor};
use trainer::{
    Collectives, GradReducer, MicroBatch, Optimizer, OptimizerConfig, StepContext, StepGuard, StepGuardConfig,
    StepStats, training_step,
};

/// Serializes the tests that use libtorch's random generator, which is shared by the process.
static GENERATOR: Mutex<()> = Mutex::new(());

struct Run {
    context: StepContext<'static>,
    ids: Tensor,
}

impl Run {
    fn new(kind: Kind, kernels: Kernels, step_guard: &StepGuardConfig) -> Self {
        let config = ModelConfig {
            n_embd: 32,
            n_head: 4,
            n_layer: 2,
            num_senses: 4,
            vocab_size: 96,
            n_positions: 16,
            ..ModelConfig::default()
        };
        let forward_options = ForwardOptions { kind, dropout: 0.0, kernels, share_sense_dropout: false };
        let turn = GENERATOR.lock().unwrap();
        let model =
            LanguageModel::initialize(config, 3, Device::Cpu).unwrap().with_low_precision_copies(forward_options);
        drop(turn);
        let optimizer = Optimizer::new(OptimizerConfig { learning_rate: 3e-3, ..OptimizerConfig::default() }, &model);
        let step_guard = StepGuard::new(step_guard, kind == Kind::Half, Device::Cpu).unwrap();
        // Sequences with a pattern that can be learned.
        let ids = Tensor::arange(8 * 17, (Kind::Int64, Device::Cpu)).view([8, 17]);
        let ids = (&ids * &ids * 7).remainder(96);
        let context = StepContext {
            model,
            optimizer,
            step_guard,
            grad_reducer: GradReducer::None,
            collectives: Box::leak(Box::new(Collectives::alone())),
            forward_options,
        };
        Run { context, ids }
    }

    fn step(&mut self) -> StepStats {
        let (inputs, targets) = (self.ids.narrow(1, 0, 16), self.ids.narrow(1, 1, 16));
        let micro_batches = (0..2i32).map(|i| {
            let rows = |ids: &Tensor| ids.narrow(0, i64::from(4 * i), 4);
            // Without dropout the seed is not used.
            Ok(MicroBatch { inputs: rows(&inputs).into(), targets: rows(&targets), dropout_seed: 0 })
        });
        let result = training_step(&mut self.context, 3e-3, micro_batches).unwrap();
        self.context.step_guard.read_stats(&result.loss, &result.grad_norm, &result.z_score).unwrap()
    }

    /// Returns the weights, their low-precision copies and the moments.
    fn tensors(&self) -> Vec<Tensor> {
        let parameters = self.context.model.parameters();
        let copies = parameters.iter().filter_map(|(name, _)| parameters.low_precision_copy(name));
        let weights = parameters.iter().map(|(_, tensor)| tensor.detach().copy());
        weights
            .chain(copies.map(|c| c.copy()))
            .chain(self.context.optimizer.state().iter().map(|(_, m)| m.copy()))
            .collect()
    }

    fn embedding(&self) -> Tensor {
        self.context.model.parameters().get("backpack.gpt2_model.wpe.weight").detach()
    }
}

#[test]
fn non_finite_step_is_skipped_and_training_continues() {
    for (kind, kernels) in
        [(Kind::Float, Kernels::Reference), (Kind::Float, Kernels::Fused), (Kind::BFloat16, Kernels::Fused)]
    {
        let (mut run, mut undisturbed) = (
            Run::new(kind, kernels, &StepGuardConfig::default()),
            Run::new(kind, kernels, &StepGuardConfig::default()),
        );
        for _ in 0..3 {
            run.step();
            undisturbed.step();
        }
        // One weight is NaN for one step, as after a flipped bit.
        let mut value = run.embedding().get(5).get(7);
        let good = value.copy();
        let _ = value.fill_(f64::NAN);
        let before = run.tensors();
        let seen = run.step();
        assert!(seen.loss.is_nan() && !seen.grad_norm.is_finite(), "{seen:?}");
        assert_eq!((seen.skipped, seen.consecutive_bad_steps, seen.steps_since_update), (1, 1, 1));
        for (was, is) in before.iter().zip(run.tensors()) {
            assert!(was.nan_to_num(1e9, 0.0, 0.0) == is.nan_to_num(1e9, 0.0, 0.0), "{kind:?}, {kernels:?}");
        }
        value.copy_(&good);
        // The skipped step does not count in the bias correction either.
        for _ in 0..3 {
            let (seen, expected) = (run.step(), undisturbed.step());
            assert_eq!((seen.loss, seen.grad_norm, seen.consecutive_bad_steps), (expected.loss, expected.grad_norm, 0));
        }
        assert!(run.tensors().iter().zip(undisturbed.tensors()).all(|(a, b)| *a == b));
    }
}

#[test]
fn training_in_fp16_follows_fp32() {
    let losses = |kind, kernels| -> Vec<f64> {
        // The initial scale is low enough that no step is skipped. A skipped step would delay all
        // later ones.
        let low = StepGuardConfig { initial_loss_scale: 1_024.0, ..StepGuardConfig::default() };
        let mut run = Run::new(kind, kernels, &low);
        (0..40).map(|_| run.step().loss).collect()
    };
    let expected = losses(Kind::Float, Kernels::Reference);
    assert!(expected[39] < 0.7 * expected[0], "{expected:?}");
    for kernels in [Kernels::Reference, Kernels::Fused] {
        let half = losses(Kind::Half, kernels);
        for (step, (half, expected)) in half.iter().zip(&expected).enumerate() {
            assert!((half - expected).abs() < 0.02, "{kernels:?}, step {step}: {half} and {expected}");
        }
    }
}

#[test]
fn an_overflow_in_fp16_skips_the_step_and_halves_the_scale() {
    let high = StepGuardConfig { initial_loss_scale: 2f64.powi(32), ..StepGuardConfig::default() };
    let mut run = Run::new(Kind::Half, Kernels::Reference, &high);
    let before = run.tensors();
    let first = run.step();
    assert!(first.loss.is_finite() && !first.grad_norm.is_finite(), "{first:?}");
    assert_eq!((first.loss_scale, first.skipped, first.consecutive_bad_steps), (Some(2f64.powi(31)), 1, 0));
    assert!(before.iter().zip(run.tensors()).all(|(a, b)| *a == b));
    let steps: Vec<StepStats> = (0..30).map(|_| run.step()).collect();
    // Training starts when the scale is low enough.
    let found = steps.iter().rfind(|seen| seen.steps_since_update == 0).unwrap();
    assert!(found.grad_norm.is_finite() && found.loss < first.loss - 0.5, "{found:?}");
    assert_eq!(found.loss_scale, Some(2f64.powi(32 - found.skipped as i32)));
    assert!(found.skipped > 10 && found.consecutive_bad_steps == 0, "{found:?}");
}
