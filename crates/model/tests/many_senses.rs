//! A test of a Backpack with more senses per token than the fused sum of senses supports.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use model::{ForwardOptions, Kernels, LanguageModel, ModelConfig, SenseChoice, SenseEdit, SenseOp};
use tch::{Device, Kind, Tensor};

/// Returns the loss of a batch and the gradients of all parameters, with their names.
fn loss_and_gradients(model: &LanguageModel, kernels: Kernels) -> (f64, Vec<(String, Tensor)>) {
    for (_, parameter) in model.parameters().iter() {
        torch_ext::clear_grad(parameter).unwrap();
    }
    // Some tokens appear more than once.
    let ids = Tensor::arange(16, (Kind::Int64, Device::Cpu)).view([2, 8]).remainder(11);
    let targets = (&ids * 3 + 1).remainder(64);
    let loss = model.loss(&ids, &targets, ForwardOptions { kernels, ..ForwardOptions::evaluation() }).unwrap();
    loss.backward();
    let gradients = model.parameters().iter().map(|(name, parameter)| (name.to_owned(), parameter.grad().copy()));
    (loss.double_value(&[]), gradients.collect())
}

/// The fused kernels compute the layers, and operations of libtorch the sum of the senses.
#[test]
fn fused_gradients_equal_those_of_the_reference() {
    // The number of senses divides the width.
    let width = torch_ext::MAX_SENSES + 8;
    let config = ModelConfig {
        n_embd: width,
        num_senses: width,
        n_head: 2,
        n_layer: 1,
        vocab_size: 64,
        n_positions: 8,
        // The smallest sense network. Its last layer has width^3 weights, which take 74 MB.
        sense_intermediate_scale: 1,
        ..ModelConfig::default()
    };
    let mut model = LanguageModel::initialize(config, 5, Device::Cpu).unwrap();
    for is_edited in [false, true] {
        if is_edited {
            model.edit(&[SenseEdit { token: 3, sense: SenseChoice::All, op: SenseOp::Scale(0.5) }]).unwrap();
        }
        let (want_loss, want) = loss_and_gradients(&model, Kernels::Reference);
        let (loss, got) = loss_and_gradients(&model, Kernels::Fused);
        assert!((loss / want_loss - 1.0).abs() < 1e-6, "edited {is_edited}: {loss}, {want_loss}");
        assert_eq!(got.len(), want.len());
        for ((name, got), (_, want)) in got.iter().zip(&want) {
            let scale = want.abs().max().double_value(&[]);
            let difference = (got - want).abs().max().double_value(&[]);
            assert!(
                difference <= 1e-4 * scale,
                "edited {is_edited}: {name} differs by {difference:.1e} of {scale:.1e}"
            );
        }
    }
}
