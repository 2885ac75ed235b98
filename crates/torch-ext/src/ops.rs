//! The fused operations of a training step on a CPU. Each is differentiable once, and equal
//! to the composition of libtorch's own operations that its test spells out.
//!
//! Activations are fp32 or bf16 and contiguous; rows are tokens, N = B T. Parameters are fp32
//! and get fp32 gradients.

use tch::{Kind, Tensor};
use torch_sys::C_tensor;

use crate::error::{Error, check, handle, handle_or_null, made};

use std::ffi::c_char;

type T = *mut C_tensor;

unsafe extern "C" {
    fn bpx_tie(weight: T, tied: *mut T) -> *mut c_char;
    fn bpx_embedding(tied: T, ids: T, rows: *mut T) -> *mut c_char;
    fn bpx_linear(x: T, master: T, value: T, transposed: i32, y: *mut T) -> *mut c_char;
    fn bpx_mlp(x: T, fc: T, fc_value: T, fc_bias: T, proj: T, proj_value: T, y: *mut T) -> *mut c_char;
    fn bpx_attention(qkv: T, bias: T, sequences: i64, n_head: i64, scale: f64, dropout: f64, y: *mut T) -> *mut c_char;
    fn bpx_add_layer_norm(
        stream: T,
        branch: T,
        branch_bias: T,
        weight: T,
        bias: T,
        eps: f64,
        dropout: f64,
        bf16: i32,
        sum: *mut T,
        normed: *mut T,
    ) -> *mut c_char;
    fn bpx_mix_senses(
        qk: T,
        qk_bias: T,
        senses: T,
        senses_bias: T,
        place: T,
        sequences: i64,
        num_senses: i64,
        y: *mut T,
    ) -> *mut c_char;
    fn bpx_linear_cross_entropy(hidden: T, master: T, value: T, targets: T, chunk: i64, loss: *mut T) -> *mut c_char;
    fn bpx_product(out: T, a: T, b: T) -> *mut c_char;
}

/// A weight matrix: the parameter, and what products read of it.
#[derive(Debug, Clone, Copy)]
pub struct ProductWeight<'a> {
    /// The fp32 parameter, which gets the gradient.
    pub master: &'a Tensor,
    /// The parameter itself, or its copy in the activations' type.
    pub value: &'a Tensor,
}

/// A weight `[V, D]` for several uses in one pass, as its own rows ([`embedding`]) and as a
/// factor: their gradients become one without a further `[V, D]`. It is the same memory; only
/// gradients pass through what comes back.
///
/// # Errors
/// When it is no fp32 matrix on the CPU.
pub fn tie(weight: &Tensor) -> Result<Tensor, Error> {
    // SAFETY: a live handle.
    made(|tied| unsafe { bpx_tie(handle(weight), tied) })
}

/// Rows `ids [..]` (int64) of a weight that comes from [`tie`]: `[.., D]`.
///
/// # Errors
/// When the weight does not come from there, or there is no such row.
pub fn embedding(tied: &Tensor, ids: &Tensor) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    made(|rows| unsafe { bpx_embedding(handle(tied), handle(ids), rows) })
}

/// `x [N, in]` times a weight stored `[in, out]`, or `[out, in]` where `transposed`.
///
/// # Errors
/// When shapes or types disagree.
pub fn linear(x: &Tensor, weight: ProductWeight<'_>, transposed: bool) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    made(|y| unsafe { bpx_linear(handle(x), handle(weight.master), handle(weight.value), transposed.into(), y) })
}

/// `gelu(x W1 + b1) W2` with the tanh approximation, both weights `[in, out]`; the second
/// bias is left to whoever adds the result up.
///
/// # Errors
/// When shapes or types disagree.
pub fn mlp(x: &Tensor, fc: ProductWeight<'_>, fc_bias: &Tensor, proj: ProductWeight<'_>) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    made(|y| unsafe {
        bpx_mlp(
            handle(x),
            handle(fc.master),
            handle(fc.value),
            handle(fc_bias),
            handle(proj.master),
            handle(proj.value),
            y,
        )
    })
}

/// The causal attention of `qkv [N, 3 D] + bias`: `[N, D]`. Dropout falls on the weights.
///
/// # Errors
/// When shapes or types disagree.
pub fn attention(
    qkv: &Tensor,
    bias: &Tensor,
    sequences: i64,
    n_head: i64,
    scale: f64,
    dropout: f64,
) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    made(|y| unsafe { bpx_attention(handle(qkv), handle(bias), sequences, n_head, scale, dropout, y) })
}

/// What is added to a residual stream: a result `[N, D]`, and its bias where it has one.
#[derive(Debug)]
pub struct ResidualBranch {
    /// The result.
    pub value: Tensor,
    /// Added to it before dropout.
    pub bias: Option<Tensor>,
}

/// `stream [N, D] + dropout(branch + bias)` in fp32, and its LayerNorm in `kind`.
///
/// # Errors
/// When shapes or types disagree.
pub fn add_layer_norm(
    stream: &Tensor,
    branch: Option<&ResidualBranch>,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
    dropout: f64,
    kind: Kind,
) -> Result<(Tensor, Tensor), Error> {
    let (mut sum, mut normed) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: live handles; on success the shim stored two tensors that are now ours.
    unsafe {
        check(bpx_add_layer_norm(
            handle(stream),
            handle_or_null(branch.map(|b| &b.value)),
            handle_or_null(branch.and_then(|b| b.bias.as_ref())),
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

/// Senses of a word that [`mix_senses`] takes at most.
pub const MOST_SENSES: i64 = 256;

/// The Backpack's sum over the senses of earlier words, `[N, D]`.
///
/// `qk [N, 2 D] + qk_bias` are the contextualisation's queries and keys; `senses [U, L D] +
/// senses_bias` those of U distinct words; `place [N]` (int64) says which word each token is.
///
/// # Errors
/// When shapes or types disagree, or there are more than [`MOST_SENSES`].
pub fn mix_senses(
    qk: &Tensor,
    qk_bias: &Tensor,
    senses: &Tensor,
    senses_bias: &Tensor,
    place: &Tensor,
    sequences: i64,
    num_senses: i64,
) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    made(|y| unsafe {
        bpx_mix_senses(
            handle(qk),
            handle(qk_bias),
            handle(senses),
            handle(senses_bias),
            handle(place),
            sequences,
            num_senses,
            y,
        )
    })
}

/// Mean cross-entropy, an fp32 scalar, of the logits `hidden [N, D] x weight [V, D]^T`
/// against `targets [N]` (int64), never holding more than `chunk` rows of logits.
///
/// Products are in `hidden`'s type, softmax and loss in fp32. The gradients are made in the
/// forward pass and handed over by the backward pass, once.
///
/// # Errors
/// When shapes disagree, a target is outside the vocabulary or memory runs out.
pub fn linear_cross_entropy(
    hidden: &Tensor,
    weight: ProductWeight<'_>,
    targets: &Tensor,
    chunk: i64,
) -> Result<Tensor, Error> {
    // SAFETY: live handles.
    made(|loss| unsafe {
        bpx_linear_cross_entropy(
            handle(hidden),
            handle(weight.master),
            handle(weight.value),
            handle(targets),
            chunk,
            loss,
        )
    })
}

/// `a b` into `out`, all of one type, by the library that the fused operations use.
///
/// # Errors
/// When shapes or types disagree.
pub fn product(out: &Tensor, a: &Tensor, b: &Tensor) -> Result<(), Error> {
    // SAFETY: live handles; the shim writes only through `out`.
    check(unsafe { bpx_product(handle(out), handle(a), handle(b)) })
}
