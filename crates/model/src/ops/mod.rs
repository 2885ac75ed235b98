//! The operations of the networks, and the choice of the implementation that computes them. The
//! networks above this module are written as equations.
//!
//! [`Implementation::choose`] makes the choice from the device and the options, once per forward
//! pass. An operation whose fused kernel has a limit chooses again, for example
//! [`Ops::fuses_sum_of_senses`]. `torch_ext::linear_cross_entropy` itself chooses between the CPU
//! and the GPU. To add an implementation, add a variant and choose it; the compiler then lists the
//! operations that must name it.
//!
//! Activations of B sequences of T positions are matrices `[B T, D]`, one row per token.

mod cuda;
mod options;

use anyhow::Result;
use tch::{Device, Kind, Reduction, Tensor};
use torch_ext::cuda_kernels::{self, CudaKernel};
use torch_ext::profiler::{Section, mark};
use torch_ext::{LayerOutput, MatmulWeight};

use crate::layers::{LayerNorm, Linear, Mlp, Weight};

pub use options::{ForwardOptions, Kernels};

/// Returns the number of rows of logits that exist at once in training.
pub fn logit_rows(device: Device) -> i64 {
    match device {
        // 4,096 x 50,264 bf16 take 412 MB. Each chunk adds to the gradient of the weight, which
        // reads and writes 0.3 GB.
        Device::Cuda(_) => 4_096,
        // 512 x 50,264 bf16 take 51 MB. On two cores, 1,024 rows were up to 3% faster, because the
        // gradient of the weight is summed once per chunk.
        _ => 512,
    }
}

/// An implementation of the operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Implementation {
    /// The definition in operations of libtorch.
    Reference,
    /// Operations of libtorch for the layers, and the loss in chunks. The senses of each distinct
    /// token are computed once if dropout permits.
    Composite,
    /// The fused CPU kernels of torch-ext for all layers, and for the sum of up to
    /// [`torch_ext::MAX_SENSES`] senses. Otherwise as `Composite`.
    FusedCpu,
    /// The CUDA kernels of torch-ext, with matrix products and attention of libtorch. An operation
    /// whose kernel is not available is computed as in `Composite`.
    FusedCuda,
}

impl Implementation {
    fn choose(device: Device, options: ForwardOptions) -> Self {
        match (options.kernels, device, options.kind) {
            (Kernels::Reference, _, _) => Implementation::Reference,
            (Kernels::Fused, Device::Cuda(_), Kind::BFloat16) => Implementation::FusedCuda,
            (Kernels::Fused, Device::Cpu, Kind::BFloat16) if cuda_kernels::is_emulated() => Implementation::FusedCuda,
            (Kernels::Fused, Device::Cpu, Kind::Float | Kind::BFloat16) => Implementation::FusedCpu,
            (Kernels::Fused, _, _) => Implementation::Composite,
        }
    }
}

impl ForwardOptions {
    /// Returns whether the layers are fused kernels on this device. They keep fewer tensors for the
    /// backward pass than the operations of libtorch.
    pub fn has_fused_layers(self, device: Device) -> bool {
        match Implementation::choose(device, self) {
            Implementation::Reference | Implementation::Composite => false,
            Implementation::FusedCpu | Implementation::FusedCuda => true,
        }
    }
}

/// The operations of one forward pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ops {
    implementation: Implementation,
    device: Device,
    options: ForwardOptions,
}

/// The senses of the tokens of a batch.
#[derive(Debug)]
pub(crate) struct TokenSenses {
    /// The senses of U tokens, `[U, L D]`.
    pub(crate) output: LayerOutput,
    /// The row of `output` for each token of the batch, `[B T]` int64. `None`: the rows are the
    /// tokens of the batch, U = B T.
    pub(crate) rows: Option<Tensor>,
}

impl TokenSenses {
    /// Returns the senses of the tokens of B sequences, `[B, T, L, D]`.
    pub(crate) fn gather(self, num_senses: i64, sequences: i64) -> Tensor {
        let senses = self.output.into_tensor();
        let senses = match self.rows {
            Some(rows) => senses.index_select(0, &rows),
            None => senses,
        };
        let (tokens, width) = (senses.size()[0], senses.size()[1]);
        senses.view([sequences, tokens / sequences, num_senses, width / num_senses])
    }
}

impl Ops {
    pub(crate) fn new(device: Device, options: ForwardOptions) -> Self {
        Ops { implementation: Implementation::choose(device, options), device, options }
    }

    /// The type of matrix products.
    pub(crate) fn kind(self) -> Kind {
        self.options.kind
    }

    /// Whether the senses of each distinct token are computed once.
    pub(crate) fn shares_senses(self) -> bool {
        match self.implementation {
            Implementation::Reference => false,
            Implementation::Composite | Implementation::FusedCpu | Implementation::FusedCuda => {
                self.options.dropout == 0.0 || self.options.share_sense_dropout
            }
        }
    }

    /// Whether matrix products read bf16 copies of the weights, so that the model should keep them.
    pub(crate) fn reads_low_precision_copies(self) -> bool {
        match self.implementation {
            Implementation::Reference | Implementation::Composite => false,
            Implementation::FusedCpu | Implementation::FusedCuda => self.options.kind == Kind::BFloat16,
        }
    }

    /// Whether one fused operation computes [`Ops::weighted_sum_of_senses`] for this number of
    /// senses per token and of positions per sequence.
    pub(crate) fn fuses_sum_of_senses(self, num_senses: i64, length: i64) -> bool {
        match self.implementation {
            Implementation::Reference | Implementation::Composite => false,
            Implementation::FusedCpu => num_senses <= torch_ext::MAX_SENSES,
            Implementation::FusedCuda => self.has_kernel(CudaKernel::SenseWeights { num_senses, length }),
        }
    }

    fn has_kernel(self, kernel: CudaKernel) -> bool {
        cuda_kernels::is_available(kernel, self.device)
    }

    /// Dropout.
    pub(crate) fn dropout(self, x: Tensor) -> Tensor {
        if self.options.dropout == 0.0 { x } else { x.dropout(self.options.dropout, true) }
    }

    /// Returns the embedding `[V, D]` for its uses in one forward pass: [`Ops::embedding`] and
    /// [`Ops::cross_entropy`]. The fused CPU kernels add the gradients of all uses of one result in
    /// place.
    pub(crate) fn shared_embedding(self, wte: &Tensor) -> Tensor {
        match self.implementation {
            Implementation::Reference | Implementation::Composite | Implementation::FusedCuda => wte.shallow_clone(),
            Implementation::FusedCpu => expect_torch(torch_ext::share_gradient(wte)),
        }
    }

    /// Rows of the shared embedding `[V, D]`: ids `[..]` -> `[.., D]`.
    pub(crate) fn embedding(self, wte: &Tensor, ids: &Tensor) -> Tensor {
        match self.implementation {
            Implementation::Reference | Implementation::Composite | Implementation::FusedCuda => {
                Tensor::embedding(wte, ids, -1, false, false)
            }
            Implementation::FusedCpu => expect_torch(torch_ext::embedding(wte, ids)),
        }
    }

    /// A linear layer: x W + b, `[N, in]` -> `[N, out]`.
    pub(crate) fn linear(self, x: &Tensor, linear: &Linear) -> Tensor {
        match self.implementation {
            Implementation::Reference | Implementation::Composite | Implementation::FusedCpu => {
                self.linear_output(x, linear).into_tensor()
            }
            Implementation::FusedCuda => self.fused_product(x, linear, Some(&linear.bias)),
        }
    }

    /// A linear layer whose output is added to the residual stream: `[N, in]` -> `[N, out]`.
    pub(crate) fn linear_output(self, x: &Tensor, linear: &Linear) -> LayerOutput {
        match self.implementation {
            Implementation::Reference | Implementation::Composite => {
                let kind = self.options.kind;
                let weight = linear.weight.cast(kind);
                let weight = if linear.transposed { weight } else { weight.tr() };
                let value = x.to_kind(kind).linear(&weight, Some(linear.bias.to_kind(kind)));
                LayerOutput { value, bias: None }
            }
            Implementation::FusedCpu | Implementation::FusedCuda => {
                LayerOutput { value: self.fused_product(x, linear, None), bias: Some(linear.bias.shallow_clone()) }
            }
        }
    }

    /// GELU(x W1 + b1) W2 + b2: `[N, in]` -> `[N, out]`.
    pub(crate) fn mlp(self, x: &Tensor, mlp: &Mlp) -> LayerOutput {
        let Mlp { c_fc, c_proj } = mlp;
        let is_fused = match self.implementation {
            Implementation::Reference | Implementation::Composite => false,
            Implementation::FusedCpu => true,
            Implementation::FusedCuda => self.has_kernel(CudaKernel::BiasGelu),
        };
        if !is_fused {
            return self.linear_output(&self.linear(x, c_fc).gelu("tanh"), c_proj);
        }
        let kind = self.options.kind;
        let x = x.to_kind(kind);
        let value = c_fc
            .weight
            .with_operand(kind, |fc| c_proj.weight.with_operand(kind, |proj| torch_ext::mlp(&x, fc, &c_fc.bias, proj)));
        LayerOutput { value: expect_torch(value), bias: Some(c_proj.bias.shallow_clone()) }
    }

    /// A linear layer whose output is split into N parts (queries, keys, values) of H `heads`:
    /// `[B T, D]` -> `[B, H, T, D/H]` each.
    pub(crate) fn project_heads<const N: usize>(
        self,
        x: &Tensor,
        linear: &Linear,
        heads: i64,
        sequences: i64,
    ) -> [Tensor; N] {
        let (rows, d) = (x.size()[0], x.size()[1]);
        // `split`, because the gradient of a selection is as large as all parts.
        let parts = self.linear(x, linear).view([sequences, rows / sequences, N as i64 * d]).split(d, 2);
        let shape = [sequences, rows / sequences, heads, d / heads];
        std::array::from_fn(|part| parts[part].view(shape).transpose(1, 2))
    }

    /// softmax(scale Q K^T) V: `[B, H, T, D/H]` each -> `[B T, D]`. libtorch uses its flash kernel
    /// where it has one.
    pub(crate) fn attend(self, query: &Tensor, key: &Tensor, value: &Tensor, causal: bool, scale: f64) -> Tensor {
        let (mask, dropout) = (None::<Tensor>, self.options.dropout);
        let attended = Tensor::scaled_dot_product_attention(query, key, value, mask, dropout, causal, scale, false);
        attended.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    }

    /// Causal attention in each of B sequences, from `c_attn`, which projects x to queries, keys
    /// and values: `[B T, D]` -> `[B T, D]`.
    pub(crate) fn causal_attention(
        self,
        x: &Tensor,
        c_attn: &Linear,
        heads: i64,
        sequences: i64,
        scale: f64,
    ) -> Tensor {
        match self.implementation {
            Implementation::Reference | Implementation::Composite | Implementation::FusedCuda => {
                let [query, key, value] = self.project_heads(x, c_attn, heads, sequences);
                self.attend(&query, &key, &value, true, scale)
            }
            Implementation::FusedCpu => {
                let (qkv, dropout) = (self.fused_product(x, c_attn, None), self.options.dropout);
                expect_torch(torch_ext::attention(&qkv, &c_attn.bias, sequences, heads, scale, dropout))
            }
        }
    }

    /// Adds a layer's output to the residual stream and normalizes the sum:
    /// s = stream + dropout(output), LayerNorm(s). Both are `[N, D]`; s is fp32, and the second is
    /// fp32 or of type `kind`.
    pub(crate) fn add_layer_norm(
        self,
        stream: &Tensor,
        output: Option<LayerOutput>,
        norm: &LayerNorm,
        kind: Kind,
    ) -> (Tensor, Tensor) {
        let (weight, bias) = (&norm.weight, &norm.bias);
        let is_fused = match self.implementation {
            Implementation::Reference | Implementation::Composite => false,
            Implementation::FusedCpu => true,
            Implementation::FusedCuda => self.has_kernel(CudaKernel::AddLayerNorm { width: stream.size()[1] }),
        };
        if is_fused {
            let (dropout, output) = (self.options.dropout, output.as_ref());
            let fused = torch_ext::add_layer_norm(stream, output, weight, bias, norm.epsilon, dropout, kind);
            return expect_torch(fused);
        }
        let sum = match output {
            Some(output) => stream + self.dropout(output.into_tensor()),
            None => stream.shallow_clone(),
        };
        let normed = sum.layer_norm(weight.size(), Some(weight), Some(bias), norm.epsilon, false);
        (sum, normed)
    }

    /// q k^T / sqrt(channels): `[B, L, R, D/L]` and `[B, L, S, D/L]` -> `[B, L, R, S]` fp32.
    pub(crate) fn sense_scores(self, query: &Tensor, key: &Tensor) -> Tensor {
        let channels = query.size()[3];
        query.matmul(&key.transpose(2, 3)).to_kind(Kind::Float) * (channels as f64).powf(-0.5)
    }

    /// The contextualization weights alpha = softmax(q k^T / sqrt(channels)), causal, where
    /// `c_attn` projects the hidden states `[B T, D]` to queries and keys of L senses: `[B, L, T,
    /// T]` fp32. Each row is a distribution over the positions up to its own.
    pub(crate) fn sense_weights(self, hidden: &Tensor, c_attn: &Linear, num_senses: i64, sequences: i64) -> Tensor {
        let t = hidden.size()[0] / sequences;
        let [query, key] = self.project_heads(hidden, c_attn, num_senses, sequences);
        let mut scores = self.sense_scores(&query, &key);
        let future = Tensor::ones([t, t], (Kind::Bool, hidden.device())).triu(1);
        scores.masked_fill_(&future, f64::NEG_INFINITY).softmax(-1, Kind::Float)
    }

    /// The sum of the senses weighted by alpha, for R positions: alpha `[B, L, R, T]` and senses
    /// `[B, T, L, D]` -> `[B, R, D]`. It is one matrix product over pairs of position and sense, so
    /// that the output of a single sense is never stored.
    pub(crate) fn combine_senses(self, alpha: &Tensor, senses: &Tensor) -> Tensor {
        let size = senses.size();
        let (b, t, l, d) = (size[0], size[1], size[2], size[3]);
        let rows = alpha.size()[2];
        let alpha = alpha.to_kind(self.options.kind).permute([0, 2, 3, 1]).reshape([b, rows, t * l]);
        alpha.matmul(&senses.reshape([b, t * l, d]))
    }

    /// The sum of the senses of the tokens up to each position, weighted by the contextualization
    /// weights of [`Ops::sense_weights`]: `[B T, D]`.
    ///
    /// The implementation calls the two closures in its own order, which decides the order of the
    /// dropout masks and of the backward pass. The fused operations call `senses` first: the sense
    /// network, which has a quarter of all parameters, then runs its backward pass after that of
    /// the trunk, when the activations of the trunk are already freed.
    pub(crate) fn weighted_sum_of_senses(
        self,
        senses: impl FnOnce() -> TokenSenses,
        hidden: impl FnOnce() -> Tensor,
        c_attn: &Linear,
        num_senses: i64,
        length: i64,
    ) -> Tensor {
        if !self.fuses_sum_of_senses(num_senses, length) {
            let hidden = mark(&hidden(), Section::Body, Section::EmbeddingBackward);
            let sequences = hidden.size()[0] / length;
            let senses = senses().gather(num_senses, sequences);
            let senses = mark(&senses, Section::Senses, Section::MixingBackward);
            let alpha = self.sense_weights(&hidden, c_attn, num_senses, sequences);
            return self.combine_senses(&alpha, &senses).flatten(0, 1);
        }
        let TokenSenses { output: LayerOutput { value: senses, bias }, rows } = senses();
        let senses = mark(&senses, Section::Senses, Section::EmbeddingBackward);
        let hidden = mark(&hidden(), Section::Body, Section::MixingBackward);
        let sequences = hidden.size()[0] / length;
        if self.implementation == Implementation::FusedCuda {
            let (qk, senses) = (self.linear(&hidden, c_attn), senses.to_kind(self.options.kind));
            let (bias, rows) = (bias.as_ref(), rows.as_ref());
            let sum = torch_ext::weighted_sum_of_senses_on_gpu(&qk, &senses, bias, rows, sequences, num_senses);
            return expect_torch(sum);
        }
        let rows = rows.unwrap_or_else(|| Tensor::arange(hidden.size()[0], (Kind::Int64, hidden.device())));
        let bias = bias.unwrap_or_else(|| Tensor::zeros(senses.size()[1], (Kind::Float, senses.device())));
        let qk = self.fused_product(&hidden, c_attn, None);
        expect_torch(torch_ext::weighted_sum_of_senses(&qk, &c_attn.bias, &senses, &bias, &rows, sequences, num_senses))
    }

    /// Logits of hidden states over the embedding `head` `[V, D]`: `[.., D]` -> `[.., V]` fp32.
    pub(crate) fn logits(self, hidden: &Tensor, head: &Weight) -> Tensor {
        let kind = self.options.kind;
        let hidden = hidden.to_kind(kind);
        match self.implementation {
            Implementation::Reference | Implementation::Composite => {
                hidden.linear::<Tensor>(&head.cast(kind), None).to_kind(Kind::Float)
            }
            Implementation::FusedCpu | Implementation::FusedCuda => {
                let mut shape = hidden.size();
                let width = shape.pop().unwrap_or_default();
                let rows = hidden.reshape([-1, width]);
                let logits = expect_torch(head.with_operand(kind, |head| torch_ext::linear(&rows, head, true, None)));
                shape.push(logits.size()[1]);
                logits.view(shape.as_slice()).to_kind(Kind::Float)
            }
        }
    }

    /// Mean cross-entropy of the logits of hidden states `[N, D]` and the targets `[N]`, an fp32
    /// scalar. `wte` is the shared embedding, which receives the gradient of `head`.
    ///
    /// # Errors
    /// A target is outside the vocabulary (found on the CPU only), or memory is exhausted.
    pub(crate) fn cross_entropy(
        self,
        hidden: &Tensor,
        head: &Weight,
        wte: &Tensor,
        targets: &Tensor,
    ) -> Result<Tensor> {
        match self.implementation {
            Implementation::Reference => {
                let class_weights = None::<Tensor>;
                let logits = self.logits(hidden, head);
                Ok(logits.f_cross_entropy_loss(targets, class_weights, Reduction::Mean, -100, 0.0)?)
            }
            Implementation::Composite | Implementation::FusedCpu | Implementation::FusedCuda => {
                if self.implementation == Implementation::FusedCuda {
                    // Compiles and loads the kernel. Without it, the operation uses libtorch.
                    let _ = self.has_kernel(CudaKernel::CrossEntropy { vocab_size: wte.size()[0] });
                }
                let hidden = hidden.to_kind(self.options.kind);
                Ok(head.with_operand(self.options.kind, |head| {
                    let head = MatmulWeight { master: wte, ..head };
                    torch_ext::linear_cross_entropy(&hidden, head, targets, logit_rows(self.device))
                })?)
            }
        }
    }

    /// x W + `bias` by a fused operation: `[N, in]` -> `[N, out]`.
    fn fused_product(self, x: &Tensor, linear: &Linear, bias: Option<&Tensor>) -> Tensor {
        let (x, kind) = (x.to_kind(self.options.kind), self.options.kind);
        let product = |weight: MatmulWeight<'_>| torch_ext::linear(&x, weight, linear.transposed, bias);
        expect_torch(linear.weight.with_operand(kind, product))
    }
}

/// Returns the result of a fused operation, and panics on its error, as the methods of tch do. The
/// networks choose the shapes, so that exhausted memory is the one error to expect.
fn expect_torch<T>(result: Result<T, torch_ext::Error>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests;
