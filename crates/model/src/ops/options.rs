//! The settings of a forward pass.

use serde::{Deserialize, Serialize};
use tch::Kind;

/// The set of kernels that compute a forward pass and its gradients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernels {
    /// The definition in operations of libtorch: all logits at once, and the senses of every token.
    /// The tests compare the fused kernels with it.
    Reference,
    /// The function of [`Kernels::Reference`] with less work: the logits in chunks, each with its
    /// gradient, and the senses of each distinct token once if dropout permits. On the CPU with fp32
    /// and bf16, and on a GPU with bf16, the layers are fused kernels.
    #[default]
    Fused,
}

/// The settings of one forward pass.
#[derive(Debug, Clone, Copy)]
pub struct ForwardOptions {
    /// Type of matrix products: `Float`, `BFloat16` or `Half`. Weights, residual stream, LayerNorm,
    /// softmax and loss are fp32.
    pub kind: Kind,
    /// Dropout probability; 0 in evaluation.
    pub dropout: f64,
    /// The set of kernels that compute the forward pass.
    pub kernels: Kernels,
    /// With dropout and fused kernels: compute the senses of a token once per micro-batch, so that
    /// all its positions have the same dropout mask.
    pub share_sense_dropout: bool,
}

impl ForwardOptions {
    /// Returns the settings of an evaluation: fp32, no dropout, fused kernels.
    pub fn evaluation() -> Self {
        ForwardOptions { kind: Kind::Float, dropout: 0.0, kernels: Kernels::Fused, share_sense_dropout: false }
    }
}
