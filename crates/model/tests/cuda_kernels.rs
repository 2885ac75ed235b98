//! The whole model with the CUDA kernels, emulated on the CPU (`torch_ext::cuda_kernels::Emulation`),
//! compared with the fixtures of PyTorch.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::collections::BTreeMap;
use std::path::PathBuf;

use model::{ForwardOptions, Kernels, LanguageModel, load_model, read_tensors};
use tch::{Device, Kind, Tensor};
use torch_ext::cuda_kernels::{self, Emulation};

const SETS: [&str; 3] = ["inv_scale", "no_inv_scale", "one_sense"];

fn fixture(set: &str) -> (LanguageModel, BTreeMap<String, Tensor>) {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set);
    (load_model(&dir, Device::Cpu).unwrap(), read_tensors(&dir.join("forward.safetensors")).unwrap())
}

/// Returns the loss and the gradients of all parameters.
fn loss_and_gradients(
    model: &LanguageModel,
    tokens: &Tensor,
    options: ForwardOptions,
) -> (f64, BTreeMap<String, Tensor>) {
    for (_, parameter) in model.parameters().iter() {
        torch_ext::clear_grad(parameter).unwrap();
    }
    let length = tokens.size()[1] - 1;
    let (ids, targets) = (tokens.narrow(1, 0, length), tokens.narrow(1, 1, length));
    let loss = model.loss(&ids, &targets, options).unwrap();
    loss.backward();
    let gradients = model.parameters().iter().map(|(name, p)| (name.to_owned(), p.grad().copy())).collect();
    (loss.double_value(&[]), gradients)
}

/// The relative error against the fp32 gradients of PyTorch is at most 1.5 times that of libtorch's
/// operations in bf16, which is about 1%.
#[test]
fn gradients_are_as_close_to_fp32_as_those_of_the_reference_kernels() {
    for set in SETS {
        let (model, forward) = fixture(set);
        let options = ForwardOptions { kind: Kind::BFloat16, ..ForwardOptions::evaluation() };
        let distance = |gradients: &BTreeMap<String, Tensor>| -> f64 {
            let (mut difference, mut norm) = (0.0, 0.0);
            for (name, gradient) in gradients {
                let want = &forward[&format!("grad.{name}")];
                assert_eq!(gradient.kind(), Kind::Float, "{name}");
                difference += (gradient - want).square().sum(Kind::Double).double_value(&[]);
                norm += want.square().sum(Kind::Double).double_value(&[]);
            }
            (difference / norm).sqrt()
        };
        let reference = ForwardOptions { kernels: Kernels::Reference, ..options };
        let (reference_loss, gradients) = loss_and_gradients(&model, &forward["tokens"], reference);
        let reference_distance = distance(&gradients);
        let emulation = Emulation::start();
        let (loss, gradients) = loss_and_gradients(&model, &forward["tokens"], options);
        let sharing = ForwardOptions { share_sense_dropout: true, ..options };
        let (shared_loss, shared_gradients) = loss_and_gradients(&model, &forward["tokens"], sharing);
        drop(emulation);
        assert!(cuda_kernels::problems().is_empty(), "{:?}", cuda_kernels::problems());
        let want = forward["loss"].double_value(&[]);
        let limit = 1.5 * (reference_loss - want).abs() + 2e-4 * want;
        assert!((loss - want).abs() < limit, "{set}: loss {loss}, in PyTorch {want}");
        assert!((shared_loss - want).abs() < limit, "{set}: loss {shared_loss}, in PyTorch {want}");
        for own in [distance(&gradients), distance(&shared_gradients)] {
            assert!(own < 1.5 * reference_distance, "{set}: {own:.2e}, the reference {reference_distance:.2e}");
        }
    }
}
