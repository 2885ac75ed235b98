//! The few layers that everything is made of, and how a forward pass is done.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{ProductWeight, ResidualBranch};

use crate::parameters::Parameters;

/// Which implementation computes what both can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kernels {
    /// The definition: whole logits, every token's senses. The oracle of the tests.
    Reference,
    /// The same numbers from less work: logits by chunks with their gradient in the same
    /// pass, and the senses of each distinct token once where no dropout tells them apart.
    /// On the CPU every layer is a fused kernel besides.
    #[default]
    Fused,
}

/// How one forward pass is done.
#[derive(Debug, Clone, Copy)]
pub struct ForwardOptions {
    /// Type of matrix products: `Float` or `BFloat16`. Weights, residual stream,
    /// LayerNorm, softmax and loss stay fp32.
    pub kind: Kind,
    /// Dropout probability: 0 in evaluation.
    pub dropout: f64,
    /// The implementation.
    pub kernels: Kernels,
    /// With dropout and fused kernels: the senses of a token that a micro-batch repeats are
    /// made once, so that its places share their dropout masks.
    pub share_sense_dropout: bool,
}

impl ForwardOptions {
    /// fp32 without dropout.
    pub fn evaluation() -> Self {
        ForwardOptions { kind: Kind::Float, dropout: 0.0, kernels: Kernels::Fused, share_sense_dropout: false }
    }

    /// Whether the fused kernels compute this pass on `device`.
    pub(crate) fn is_fused_on(&self, device: Device) -> bool {
        self.kernels == Kernels::Fused && device == Device::Cpu && matches!(self.kind, Kind::Float | Kind::BFloat16)
    }

    /// Whether each distinct token's senses are made once.
    pub(crate) fn shares_senses(&self) -> bool {
        self.kernels == Kernels::Fused && (self.dropout == 0.0 || self.share_sense_dropout)
    }

    pub(crate) fn drop(&self, x: Tensor) -> Tensor {
        if self.dropout == 0.0 { x } else { x.dropout(self.dropout, true) }
    }
}

/// A refusal of the fused operations ends like one of tch's short-hand methods: shapes are
/// the network's own, so that a lack of memory is the one that can be met.
pub(crate) fn sure<T>(result: Result<T, torch_ext::Error>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A weight that is multiplied: the fp32 parameter, and its bf16 copy where one is kept.
#[derive(Debug)]
pub(crate) struct Weight {
    master: Tensor,
    copy: Option<Tensor>,
}

impl Weight {
    pub(crate) fn new(parameters: &Parameters, name: &str) -> Self {
        Weight { master: parameters.get(name), copy: parameters.copy_of(name) }
    }

    /// The parameter.
    pub(crate) fn master(&self) -> &Tensor {
        &self.master
    }

    /// The parameter in the pass's type, differentiable.
    pub(crate) fn cast(&self, pass: ForwardOptions) -> Tensor {
        self.master.to_kind(pass.kind)
    }

    /// Calls a fused operation with the parameter and what it is to read.
    pub(crate) fn with<R>(&self, pass: ForwardOptions, operation: impl FnOnce(ProductWeight<'_>) -> R) -> R {
        let master = &self.master;
        match &self.copy {
            Some(copy) if copy.kind() == pass.kind => operation(ProductWeight { master, value: copy }),
            _ if pass.kind == Kind::Float => operation(ProductWeight { master, value: master }),
            _ => operation(ProductWeight { master, value: &master.detach().to_kind(pass.kind) }),
        }
    }
}

/// y = x W + b.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Weight,
    /// Whether the weight is stored `[out, in]`.
    transposed: bool,
    bias: Tensor,
}

impl Linear {
    /// GPT-2's `Conv1D`, stored `[in, out]`.
    pub(crate) fn conv1d(parameters: &Parameters, name: &str) -> Self {
        Self::new(parameters, name, false)
    }

    /// `nn.Linear`, stored `[out, in]`.
    pub(crate) fn nn_linear(parameters: &Parameters, name: &str) -> Self {
        Self::new(parameters, name, true)
    }

    fn new(parameters: &Parameters, name: &str, transposed: bool) -> Self {
        let weight = Weight::new(parameters, &format!("{name}.weight"));
        Linear { weight, transposed, bias: parameters.get(&format!("{name}.bias")) }
    }

    /// The bias, for whoever adds it to a [`Linear::product`].
    pub(crate) fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// `[N, in] -> [N, out]`, of the pass's type.
    pub(crate) fn forward(&self, x: &Tensor, pass: ForwardOptions) -> Tensor {
        if pass.is_fused_on(x.device()) {
            return self.product(x, pass) + self.bias.to_kind(pass.kind);
        }
        let weight = self.weight.cast(pass);
        let weight = if self.transposed { weight } else { weight.tr() };
        x.to_kind(pass.kind).linear(&weight, Some(self.bias.to_kind(pass.kind)))
    }

    /// `[N, in] -> [N, out]` by the fused kernels, without the bias.
    pub(crate) fn product(&self, x: &Tensor, pass: ForwardOptions) -> Tensor {
        sure(self.weight.with(pass, |weight| torch_ext::linear(&x.to_kind(pass.kind), weight, self.transposed)))
    }

    /// What goes onto a residual stream: `[N, in] -> [N, out]`.
    pub(crate) fn branch(&self, x: &Tensor, pass: ForwardOptions) -> ResidualBranch {
        if pass.is_fused_on(x.device()) {
            ResidualBranch { value: self.product(x, pass), bias: Some(self.bias.shallow_clone()) }
        } else {
            ResidualBranch { value: self.forward(x, pass), bias: None }
        }
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
}

/// The sum that blocks add to, fp32 `[N, D]`, and what the last one is yet to add: the fused
/// kernel adds and normalises in one pass.
#[derive(Debug)]
pub(crate) struct AddLayerNorm {
    sum: Tensor,
    pending: Option<ResidualBranch>,
}

impl AddLayerNorm {
    pub(crate) fn new(start: Tensor) -> Self {
        AddLayerNorm { sum: start, pending: None }
    }

    /// Adds a block's result, which is normalised before the next comes.
    pub(crate) fn push(&mut self, branch: ResidualBranch) {
        debug_assert!(self.pending.is_none(), "a residual stream is normalised between two results");
        self.pending = Some(branch);
    }

    /// The normalised sum `[N, D]`, in `kind` or fp32.
    pub(crate) fn normalise(&mut self, norm: &LayerNorm, kind: Kind, pass: ForwardOptions) -> Tensor {
        let pending = self.pending.take();
        if pass.is_fused_on(self.sum.device()) {
            let (weight, bias) = (&norm.weight, &norm.bias);
            let done =
                torch_ext::add_layer_norm(&self.sum, pending.as_ref(), weight, bias, norm.epsilon, pass.dropout, kind);
            let (sum, normed) = sure(done);
            self.sum = sum;
            return normed;
        }
        if let Some(ResidualBranch { value, bias }) = pending {
            let value = bias.map_or_else(|| value.shallow_clone(), |bias| &value + bias);
            self.sum = &self.sum + pass.drop(value);
        }
        let (weight, bias) = (Some(&norm.weight), Some(&norm.bias));
        self.sum.layer_norm(norm.weight.size(), weight, bias, norm.epsilon, false)
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

    /// The second linear's bias.
    pub(crate) fn bias(&self) -> &Tensor {
        self.c_proj.bias()
    }

    /// `[N, in] -> [N, out]`.
    pub(crate) fn branch(&self, x: &Tensor, pass: ForwardOptions) -> ResidualBranch {
        if !pass.is_fused_on(x.device()) {
            return ResidualBranch {
                value: self.c_proj.forward(&self.c_fc.forward(x, pass).gelu("tanh"), pass),
                bias: None,
            };
        }
        let x = x.to_kind(pass.kind);
        let value = self
            .c_fc
            .weight
            .with(pass, |fc| self.c_proj.weight.with(pass, |proj| torch_ext::mlp(&x, fc, self.c_fc.bias(), proj)));
        ResidualBranch { value: sure(value), bias: Some(self.bias().shallow_clone()) }
    }

    /// The same with its bias.
    pub(crate) fn forward(&self, x: &Tensor, pass: ForwardOptions) -> Tensor {
        let ResidualBranch { value, bias } = self.branch(x, pass);
        bias.map_or_else(|| value.shallow_clone(), |bias| &value + bias.to_kind(value.kind()))
    }
}
