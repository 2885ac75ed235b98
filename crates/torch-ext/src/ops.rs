//! The fused operations of a training step. Each can be differentiated once, and equals the
//! composition of libtorch operations in its test.
//!
//! Activations are contiguous and fp32 or bf16, on a GPU bf16. Their rows are tokens: N = B T.
//! Parameters are fp32 and receive fp32 gradients. [`linear_cross_entropy`] also runs in fp16. On a
//! GPU, the operations need the kernels of [`crate::cuda_kernels`].

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, check, handle, handle_or_null, new_tensor};

use std::ffi::c_char;

type T = *mut C_tensor;

unsafe extern "C" {
    fn bpx_share_gradient(weight: T, shared: *mut T) -> *mut c_char;
    fn bpx_embedding(shared: T, ids: T, rows: *mut T) -> *mut c_char;
    fn bpx_linear(x: T, master: T, operand: T, transposed: i32, bias: T, y: *mut T) -> *mut c_char;
    fn bpx_mlp(x: T, fc: T, fc_operand: T, fc_bias: T, proj: T, proj_operand: T, y: *mut T) -> *mut c_char;
    fn bpx_attention(qkv: T, bias: T, sequences: i64, n_head: i64, scale: f64, dropout: f64, y: *mut T) -> *mut c_char;
    fn bpx_add_layer_norm(
        stream: T,
        output: T,
        output_bias: T,
        weight: T,
        bias: T,
        eps: f64,
        dropout: f64,
        bf16: i32,
        sum: *mut T,
        normed: *mut T,
    ) -> *mut c_char;
    fn bpx_weighted_sum_of_senses(
        qk: T,
        qk_bias: T,
        senses: T,
        senses_bias: T,
        rows: T,
        sequences: i64,
        num_senses: i64,
        y: *mut T,
    ) -> *mut c_char;
    fn bpx_cuda_weighted_sum_of_senses(
        qk: T,
        senses: T,
        senses_bias: T,
        rows: T,
        sequences: i64,
        num_senses: i64,
        y: *mut T,
    ) -> *mut c_char;
    fn bpx_linear_cross_entropy(hidden: T, master: T, operand: T, targets: T, chunk: i64, loss: *mut T) -> *mut c_char;
    fn bpx_product(out: T, a: T, b: T) -> *mut c_char;
}

/// A weight matrix of a matrix product.
#[derive(Debug, Clone, Copy)]
pub struct MatmulWeight<'a> {
    /// The fp32 parameter, which receives the gradient.
    pub master: &'a Tensor,
    /// The tensor that products read: the parameter itself, or its copy in the type of the
    /// activations.
    pub operand: &'a Tensor,
}

/// Prepares a weight `[V, D]` for several uses in one forward pass: lookups of rows by
/// [`embedding`], and matrix products. The returned tensor shares the memory of the weight. Its
/// gradient is the sum over all uses, without an additional `[V, D]` tensor per use.
///
/// # Errors
/// The weight is not an fp32 matrix on the CPU.
pub fn share_gradient(weight: &Tensor) -> Result<Tensor, Error> {
    // SAFETY: a live handle.
    new_tensor(|shared| unsafe { bpx_share_gradient(handle(weight), shared) })
}

/// Looks up rows `ids [..]` (int64) of a weight that [`share_gradient`] returned: `[.., D]`.
///
/// # Errors
/// The weight does not come from [`share_gradient`], or a row does not exist.
pub fn embedding(shared: &Tensor, ids: &Tensor) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    new_tensor(|rows| unsafe { bpx_embedding(handle(shared), handle(ids), rows) })
}

/// Multiplies `x [N, in]` by a weight stored as `[in, out]`, or as `[out, in]` if `transposed`, and
/// adds the bias `[out]` if there is one.
///
/// # Errors
/// Shapes or types do not match.
pub fn linear(x: &Tensor, weight: MatmulWeight<'_>, transposed: bool, bias: Option<&Tensor>) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    new_tensor(|y| unsafe {
        bpx_linear(handle(x), handle(weight.master), handle(weight.operand), transposed.into(), handle_or_null(bias), y)
    })
}

/// Returns `gelu(x W1 + b1) W2` with the tanh approximation; both weights are `[in, out]`. The
/// caller adds the second bias.
///
/// # Errors
/// Shapes or types do not match.
pub fn mlp(x: &Tensor, fc: MatmulWeight<'_>, fc_bias: &Tensor, proj: MatmulWeight<'_>) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    new_tensor(|y| unsafe {
        bpx_mlp(
            handle(x),
            handle(fc.master),
            handle(fc.operand),
            handle(fc_bias),
            handle(proj.master),
            handle(proj.operand),
            y,
        )
    })
}

/// Returns the causal attention `[N, D]` of `qkv [N, 3 D] + bias`. Dropout applies to the attention
/// weights. On the CPU only.
///
/// # Errors
/// Shapes or types do not match.
pub fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    sequences: i64,
    n_head: i64,
    scale: f64,
    dropout: f64,
) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    new_tensor(|y| unsafe { bpx_attention(handle(qkv), handle(bias), sequences, n_head, scale, dropout, y) })
}

/// The output of a layer, `value + bias`. A fused operation that reads the output adds the bias, so
/// that no separate operation does.
#[derive(Debug)]
pub struct LayerOutput {
    /// The output without the bias, `[N, D]`.
    pub value: Tensor,
    /// The bias `[D]`; `None` if `value` contains it.
    pub bias: Option<Tensor>,
}

impl LayerOutput {
    /// Returns `value + bias`, in the type of `value`.
    pub fn into_tensor(self) -> Tensor {
        match self.bias {
            Some(bias) => &self.value + bias.to_kind(self.value.kind()),
            None => self.value,
        }
    }
}

/// Returns the sum `stream [N, D] + dropout(output)` in fp32, and its LayerNorm in `kind`.
///
/// # Errors
/// Shapes or types do not match.
pub fn add_layer_norm(
    stream: &Tensor,
    output: Option<&LayerOutput>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    dropout: f64,
    kind: Kind,
) -> Result<(Tensor, Tensor), Error> {
    let (mut sum, mut normed) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: live handles. On success, the shim has stored two tensors, which are now ours.
    unsafe {
        check(bpx_add_layer_norm(
            handle(stream),
            handle_or_null(output.map(|output| &output.value)),
            handle_or_null(output.and_then(|output| output.bias.as_ref())),
            handle(weight),
            handle(bias),
            eps,
            dropout,
            (kind == Kind::BFloat16).into(),
            &mut sum,
            &mut normed,
        ))?;
        Ok((Tensor::from_ptr(sum), Tensor::from_ptr(normed)))
    }
}

/// Maximum number of senses per token in [`weighted_sum_of_senses`].
pub const MAX_SENSES: i64 = 256;

/// Returns the Backpack's weighted sum of the senses of earlier tokens, `[N, D]`.
///
/// `qk [N, 2 D] + qk_bias` are the queries and keys of the contextualization weights.
/// `senses [U, L D] + senses_bias` are the senses of U distinct tokens. `rows [N]` (int64) has the
/// row in `senses` of each token. On the CPU only.
///
/// # Errors
/// Shapes or types do not match, or there are more than [`MAX_SENSES`] senses.
pub fn weighted_sum_of_senses(
    qk: &Tensor,
    qk_bias: &Tensor,
    senses: &Tensor,
    senses_bias: &Tensor,
    rows: &Tensor,
    sequences: i64,
    num_senses: i64,
) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    new_tensor(|y| unsafe {
        bpx_weighted_sum_of_senses(
            handle(qk),
            handle(qk_bias),
            handle(senses),
            handle(senses_bias),
            handle(rows),
            sequences,
            num_senses,
            y,
        )
    })
}

/// [`weighted_sum_of_senses`] with the kernel [`crate::cuda_kernels::CudaKernel::SenseWeights`].
/// The biases of queries and keys are part of `qk [N, 2 D]`. Without `senses_bias`, the senses
/// `[U, L D]` contain their bias. Without `rows`, each token has its own row, U = N.
///
/// # Errors
/// Shapes or types do not match, or the kernel is not loaded.
pub fn weighted_sum_of_senses_on_gpu(
    qk: &Tensor,
    senses: &Tensor,
    senses_bias: Option<&Tensor>,
    rows: Option<&Tensor>,
    sequences: i64,
    num_senses: i64,
) -> Result<Tensor, Error> {
    let (bias, rows) = (handle_or_null(senses_bias), handle_or_null(rows));
    // SAFETY: live handles.
    new_tensor(|y| unsafe {
        bpx_cuda_weighted_sum_of_senses(handle(qk), handle(senses), bias, rows, sequences, num_senses, y)
    })
}

/// Returns the mean cross-entropy, an fp32 scalar, of the logits `hidden [N, D] x weight [V, D]^T`
/// and the targets `[N]` (int64). At most `chunk` rows of logits exist at once.
///
/// Products are in the type of `hidden`; softmax and loss are in fp32. The forward pass also
/// computes the gradients, and one backward pass returns them.
///
/// # Errors
/// Shapes do not match, a target is outside the vocabulary, or memory is exhausted.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: MatmulWeight<'_>,
    targets: &Tensor,
    chunk: i64,
) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    new_tensor(|loss| unsafe {
        bpx_linear_cross_entropy(
            handle(hidden),
            handle(weight.master),
            handle(weight.operand),
            handle(targets),
            chunk,
            loss,
        )
    })
}

/// Writes the matrix product `a b` to `out`, with the library that the fused operations use. All
/// three have the same type.
///
/// # Errors
/// Shapes or types do not match.
pub fn product(out: &Tensor, a: &Tensor, b: &Tensor) -> Result<(), Error> {
    // SAFETY: live handles. The shim writes only through `out`.
    check(unsafe { bpx_product(handle(out), handle(a), handle(b)) })
}
