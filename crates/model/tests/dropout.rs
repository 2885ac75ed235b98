//! Tests of the positions of dropout. A second, direct implementation of the Backpack draws from the
//! same generator in the same order and must give the same numbers.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::path::PathBuf;
use std::sync::Mutex;

use model::{ForwardOptions, Kernels, LanguageModel, load_model};
use tch::{Device, Kind, Tensor};

/// Held by a test that draws random numbers, because the process has one generator.
static GENERATOR: Mutex<()> = Mutex::new(());

/// The direct implementation. The order of its operations is the order of the draws.
struct DirectBackpack<'m> {
    model: &'m LanguageModel,
    p: f64,
}

impl DirectBackpack<'_> {
    fn get(&self, name: &str) -> Tensor {
        self.model.parameters().get(&format!("backpack.{name}"))
    }

    fn drop(&self, x: Tensor) -> Tensor {
        x.dropout(self.p, true)
    }

    fn conv1d(&self, x: &Tensor, name: &str) -> Tensor {
        x.matmul(&self.get(&format!("{name}.weight"))) + self.get(&format!("{name}.bias"))
    }

    fn norm(&self, x: &Tensor, name: &str) -> Tensor {
        let (w, b) = (self.get(&format!("{name}.weight")), self.get(&format!("{name}.bias")));
        x.layer_norm(w.size(), Some(&w), Some(&b), 1e-5, false)
    }

    fn mlp(&self, x: &Tensor, name: &str) -> Tensor {
        self.conv1d(&self.conv1d(x, &format!("{name}.c_fc")).gelu("tanh"), &format!("{name}.c_proj"))
    }

    fn heads(x: &Tensor, count: i64) -> Tensor {
        let size = x.size();
        x.view([size[0], size[1], count, size[2] / count]).transpose(1, 2)
    }

    /// Returns the softmax of the causal scores: `[B, H, T, T]`.
    fn causal(query: &Tensor, key: &Tensor, scale: f64) -> Tensor {
        let t = query.size()[2];
        let future = Tensor::ones([t, t], (Kind::Bool, Device::Cpu)).triu(1);
        (query.matmul(&key.transpose(2, 3)) * scale).masked_fill(&future, f64::NEG_INFINITY).softmax(-1, Kind::Float)
    }

    fn transformer(&self, ids: &Tensor) -> Tensor {
        let config = self.model.config();
        let mut x = self.get("gpt2_model.wte.weight").index(&[Some(ids)])
            + self.get("gpt2_model.wpe.weight").narrow(0, 0, ids.size()[1]);
        x = self.drop(x); // embeddings
        for layer in 0..config.n_layer {
            let name = format!("gpt2_model.h.{layer}");
            let qkv = self.conv1d(&self.norm(&x, &format!("{name}.ln_1")), &format!("{name}.attn.c_attn"));
            let [q, k, v] =
                [0, 1, 2].map(|i| Self::heads(&qkv.narrow(-1, i * config.n_embd, config.n_embd), config.n_head));
            let depth = if config.scale_attn_by_inverse_layer_idx { layer + 1 } else { 1 };
            let weights = Self::causal(&q, &k, (config.head_size() as f64).powf(-0.5) / depth as f64);
            let mixed = self.drop(weights).matmul(&v); // attention probabilities
            let mixed = mixed.transpose(1, 2).flatten(2, 3);
            x = &x + self.drop(self.conv1d(&mixed, &format!("{name}.attn.c_proj"))); // residual branch
            let mlp = self.mlp(&self.norm(&x, &format!("{name}.ln_2")), &format!("{name}.mlp"));
            x = &x + self.drop(mlp); // residual branch
        }
        self.norm(&x, "gpt2_model.ln_f")
    }

    fn hidden(&self, ids: &Tensor) -> Tensor {
        let config = self.model.config();
        let context = self.transformer(ids);
        let c_attn = (self.get("sense_weight_net.c_attn.weight"), self.get("sense_weight_net.c_attn.bias"));
        let qk = context.matmul(&c_attn.0.tr()) + c_attn.1;
        let [q, k] = [0, 1].map(|i| Self::heads(&qk.narrow(-1, i * config.n_embd, config.n_embd), config.num_senses));
        // The contextualization weights have no dropout.
        let weights = Self::causal(&q, &k, ((config.n_embd / config.num_senses) as f64).powf(-0.5));
        let x = self.drop(self.get("gpt2_model.wte.weight").index(&[Some(&ids.flatten(0, -1))]));
        let x = &x + self.drop(self.norm(&x, "sense_network.ln"));
        let mlp = self.mlp(&self.norm(&x, "sense_network.block.ln_1"), "sense_network.block.mlp");
        let x = &x + self.drop(mlp);
        // The senses have no dropout.
        let senses = self.mlp(&self.norm(&x, "sense_network.block.ln_2"), "sense_network.final_mlp");
        let (b, t) = (ids.size()[0], ids.size()[1]);
        let senses = senses.view([b, t, config.num_senses, config.n_embd]).transpose(1, 2);
        weights.matmul(&senses).sum_dim_intlist(1i64, false, Kind::Float)
    }
}

#[test]
fn dropout_equals_a_direct_implementation() {
    let _guard = GENERATOR.lock().unwrap();
    for set in ["inv_scale", "no_inv_scale", "one_sense"] {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set);
        let model = load_model(&dir, Device::Cpu).unwrap();
        let ids = Tensor::arange(2 * 20, (Kind::Int64, Device::Cpu)).view([2, 20]) * 5;
        for p in [0.1, 0.5] {
            let options = ForwardOptions { dropout: p, kernels: Kernels::Reference, ..ForwardOptions::evaluation() };
            tch::manual_seed(7);
            let got = model.hidden(&ids, options);
            tch::manual_seed(7);
            let want = DirectBackpack { model: &model, p }.hidden(&ids);
            let difference = (&got - &want).abs().max().double_value(&[]);
            assert!(difference < 2e-5, "{set}, {p}: {difference}");
            let without = model.hidden(&ids, ForwardOptions { dropout: 0.0, ..options });
            assert!((got - without).abs().max().double_value(&[]) > 1e-2);
        }
    }
}

/// Returns the mean and the variance of each output over `draws` forward passes, as `[2, ..]`.
fn moments(model: &model::LanguageModel, ids: &Tensor, options: ForwardOptions, draws: i64) -> Tensor {
    tch::manual_seed(11);
    let all: Vec<Tensor> = (0..draws).map(|_| tch::no_grad(|| model.hidden(ids, options))).collect();
    let all = Tensor::stack(&all, 0);
    Tensor::stack(&[all.mean_dim(0, false, Kind::Float), all.var_dim(0, true, false)], 0)
}

/// The fused kernels draw other masks than the reference kernels. Mean and variance must be equal.
#[test]
fn fused_and_reference_dropout_have_equal_mean_and_variance() {
    let _guard = GENERATOR.lock().unwrap();
    let draws = 400;
    for set in ["inv_scale", "no_inv_scale", "one_sense"] {
        let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set);
        let model = load_model(&dir, Device::Cpu).unwrap();
        let ids = Tensor::arange(2 * 20, (Kind::Int64, Device::Cpu)).view([2, 20]) * 5;
        let options = ForwardOptions { dropout: 0.2, ..ForwardOptions::evaluation() };
        let reference = moments(&model, &ids, ForwardOptions { kernels: Kernels::Reference, ..options }, draws);
        let fused = moments(&model, &ids, options, draws);
        // The differences of the means in standard errors have an expected root mean square of 1.
        let errors = ((reference.get(1) + fused.get(1)) / draws as f64).sqrt();
        let z = ((reference.get(0) - fused.get(0)) / errors).square().mean(Kind::Double).double_value(&[]).sqrt();
        assert!((0.7..1.35).contains(&z), "{set}: means differ by {z:.2} standard errors");
        let total = |m: &Tensor| m.get(1).mean(Kind::Double).double_value(&[]);
        let ratio = total(&fused) / total(&reference);
        assert!((0.9..1.1).contains(&ratio), "{set}: {ratio:.3} of the variance");
    }
}

/// With shared masks a repeated token has the same senses at all its positions.
#[test]
fn shared_dropout_uses_one_mask_per_token() {
    let _guard = GENERATOR.lock().unwrap();
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack/inv_scale");
    let model = load_model(&dir, Device::Cpu).unwrap();
    let ids = Tensor::from_slice(&[5i64, 9, 5]).unsqueeze(0);
    let first_and_last = |share_sense_dropout| {
        let options = ForwardOptions { dropout: 0.3, share_sense_dropout, ..ForwardOptions::evaluation() };
        let senses = model.backpack().unwrap().senses(&ids, options);
        (senses.select(1, 0), senses.select(1, 2))
    };
    let (first, last) = first_and_last(true);
    assert!(first == last);
    let (first, last) = first_and_last(false);
    assert!(first != last);
}

/// Dropout sets the given fraction to zero and scales the rest so that the mean is unchanged.
#[test]
fn dropout_keeps_the_mean() {
    let _guard = GENERATOR.lock().unwrap();
    tch::manual_seed(1);
    let dropped = Tensor::ones([1_000_000], (Kind::Float, Device::Cpu)).dropout(0.1, true);
    let zeros = dropped.eq(0.0).to_kind(Kind::Float).mean(Kind::Double).double_value(&[]);
    // The tolerance is four standard deviations of the fraction of one million draws.
    assert!((zeros - 0.1).abs() < 4.0 * (0.09f64 / 1e6).sqrt(), "{zeros}");
    assert!((dropped.max().double_value(&[]) - 1.0 / 0.9).abs() < 1e-6);
}
