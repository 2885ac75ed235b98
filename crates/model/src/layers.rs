//! The few layers that everything is made of, and how a forward pass is done.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::parameters::Parameters;

/// Which implementation computes what both can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernels {
    /// The definition: whole logits, every token's senses. The oracle of the tests.
    Plain,
    /// The same numbers from less work: logits by chunks with their gradient in the same
    /// pass, and the senses of each distinct token once where no dropout tells them apart.
    #[default]
    Fused,
}

/// How one forward pass is done.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    /// Type of matrix products: `Float` or `BFloat16`. Weights, residual stream,
    /// LayerNorm, softmax and loss stay fp32.
    pub kind: Kind,
    /// Dropout probability: 0 in evaluation.
    pub dropout: f64,
    /// The implementation.
    pub kernels: Kernels,
}

impl Pass {
    /// fp32 without dropout.
    pub fn evaluation() -> Self {
        Pass { kind: Kind::Float, dropout: 0.0, kernels: Kernels::Fused }
    }

    pub(crate) fn drop(&self, x: Tensor) -> Tensor {
        if self.dropout == 0.0 { x } else { x.dropout(self.dropout, true) }
    }
}

/// y = x W + b.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[out, in]`, a view where the file holds `[in, out]`.
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// GPT-2's `Conv1D`, stored `[in, out]`.
    pub(crate) fn conv1d(parameters: &Parameters, name: &str) -> Self {
        Linear { weight: parameters.get(&format!("{name}.weight")).tr(), bias: parameters.get(&format!("{name}.bias")) }
    }

    /// `nn.Linear`, stored `[out, in]`.
    pub(crate) fn nn_linear(parameters: &Parameters, name: &str) -> Self {
        Linear { weight: parameters.get(&format!("{name}.weight")), bias: parameters.get(&format!("{name}.bias")) }
    }

    /// `[.., in] -> [.., out]`, of the pass's type.
    pub(crate) fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        x.to_kind(pass.kind).linear(&self.weight.to_kind(pass.kind), Some(self.bias.to_kind(pass.kind)))
    }
}

/// Normalisation over the last axis.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    epsilon: f64,
}

impl LayerNorm {
    pub(crate) fn new(parameters: &Parameters, name: &str, epsilon: f64) -> Self {
        LayerNorm {
            weight: parameters.get(&format!("{name}.weight")),
            bias: parameters.get(&format!("{name}.bias")),
            epsilon,
        }
    }

    /// `[.., D] -> [.., D]`, fp32.
    pub(crate) fn forward(&self, x: &Tensor) -> Tensor {
        x.to_kind(Kind::Float).layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.epsilon, false)
    }
}

/// Linear, GELU (tanh approximation), linear.
#[derive(Debug)]
pub(crate) struct Mlp {
    c_fc: Linear,
    c_proj: Linear,
}

impl Mlp {
    pub(crate) fn new(parameters: &Parameters, name: &str) -> Self {
        Mlp {
            c_fc: Linear::conv1d(parameters, &format!("{name}.c_fc")),
            c_proj: Linear::conv1d(parameters, &format!("{name}.c_proj")),
        }
    }

    pub(crate) fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        self.c_proj.forward(&self.c_fc.forward(x, pass).gelu("tanh"), pass)
    }
}
