//! The residual stream of transformer blocks.

use tch::{Kind, Tensor};
use torch_ext::LayerOutput;

use crate::layers::LayerNorm;
use crate::ops::Ops;

/// The residual stream: a sum, fp32 `[N, D]`, to which each layer adds its output. The last output
/// is added together with the next LayerNorm, because the fused kernel does both at once.
#[derive(Debug)]
pub(crate) struct ResidualStream {
    sum: Tensor,
    pending: Option<LayerOutput>,
}

impl ResidualStream {
    /// A stream with this initial value `[N, D]`.
    pub(crate) fn new(initial: Tensor) -> Self {
        ResidualStream { sum: initial, pending: None }
    }

    /// Adds the output `[N, D]` of a layer, after dropout. [`ResidualStream::normalize`] must be
    /// called before the next addition.
    pub(crate) fn add(&mut self, output: LayerOutput) {
        debug_assert!(self.pending.is_none(), "the residual stream is normalized between two additions");
        self.pending = Some(output);
    }

    /// Returns the LayerNorm of the sum, `[N, D]`, in fp32 or in `kind`.
    pub(crate) fn normalize(&mut self, norm: &LayerNorm, kind: Kind, ops: Ops) -> Tensor {
        let (sum, normed) = ops.add_layer_norm(&self.sum, self.pending.take(), norm, kind);
        self.sum = sum;
        normed
    }
}
