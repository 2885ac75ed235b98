//! The parameters of the layers that the networks consist of. The module `ops` computes with them.

use tch::{Kind, Tensor};
use torch_ext::MatmulWeight;

use crate::parameters::Parameters;

/// A weight matrix of matrix products: the fp32 parameter, and its bf16 copy if the model keeps
/// one.
#[derive(Debug)]
pub(crate) struct Weight {
    master: Tensor,
    low_precision_copy: Option<Tensor>,
}

impl Weight {
    pub(crate) fn new(parameters: &Parameters, name: &str) -> Self {
        Weight { master: parameters.get(name), low_precision_copy: parameters.low_precision_copy(name) }
    }

    /// The fp32 parameter.
    pub(crate) fn master(&self) -> &Tensor {
        &self.master
    }

    /// Casts the parameter to `kind`. Gradients pass through the cast.
    pub(crate) fn cast(&self, kind: Kind) -> Tensor {
        self.master.to_kind(kind)
    }

    /// Calls a fused operation with the parameter and the tensor in `kind` that its products read:
    /// the parameter itself, the kept copy, or a copy for this call.
    pub(crate) fn with_operand<R>(&self, kind: Kind, operation: impl FnOnce(MatmulWeight<'_>) -> R) -> R {
        let master = &self.master;
        match &self.low_precision_copy {
            Some(copy) if copy.kind() == kind => operation(MatmulWeight { master, operand: copy }),
            _ if kind == Kind::Float => operation(MatmulWeight { master, operand: master }),
            _ => operation(MatmulWeight { master, operand: &master.detach().to_kind(kind) }),
        }
    }
}

/// A linear layer: y = x W + b.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) weight: Weight,
    /// Whether the weight is stored as `[out, in]` instead of `[in, out]`.
    pub(crate) transposed: bool,
    pub(crate) bias: Tensor,
}

impl Linear {
    /// GPT-2's `Conv1D`, whose weight is stored as `[in, out]`.
    pub(crate) fn conv1d(parameters: &Parameters, name: &str) -> Self {
        Self::new(parameters, name, false)
    }

    /// PyTorch's `nn.Linear`, whose weight is stored as `[out, in]`.
    pub(crate) fn nn_linear(parameters: &Parameters, name: &str) -> Self {
        Self::new(parameters, name, true)
    }

    fn new(parameters: &Parameters, name: &str, transposed: bool) -> Self {
        let weight = Weight::new(parameters, &format!("{name}.weight"));
        Linear { weight, transposed, bias: parameters.get(&format!("{name}.bias")) }
    }
}

/// LayerNorm over the last axis.
#[derive(Debug)]
pub(crate) struct LayerNorm {
    pub(crate) weight: Tensor,
    pub(crate) bias: Tensor,
    pub(crate) epsilon: f64,
}

impl LayerNorm {
    pub(crate) fn new(parameters: &Parameters, name: &str, epsilon: f64) -> Self {
        LayerNorm {
            weight: parameters.get(&format!("{name}.weight")),
            bias: parameters.get(&format!("{name}.bias")),
            epsilon,
        }
    }
}

/// A multilayer perceptron: linear, GELU (tanh approximation), linear.
#[derive(Debug)]
pub(crate) struct Mlp {
    pub(crate) c_fc: Linear,
    pub(crate) c_proj: Linear,
}

impl Mlp {
    pub(crate) fn new(parameters: &Parameters, name: &str) -> Self {
        Mlp {
            c_fc: Linear::conv1d(parameters, &format!("{name}.c_fc")),
            c_proj: Linear::conv1d(parameters, &format!("{name}.c_proj")),
        }
    }
}
