//! Clipping and AdamW.

use std::ffi::c_char;

use tch::Tensor;
use torch_sys::C_tensor;

use crate::error::{Error, check, handle, handle_or_null, handles};

unsafe extern "C" {
    fn bpx_clipped_adamw(
        params: *const *mut C_tensor,
        grads: *const *mut C_tensor,
        exp_avgs: *const *mut C_tensor,
        exp_avg_sqs: *const *mut C_tensor,
        copies: *const *mut C_tensor,
        weight_decays: *const f64,
        n: usize,
        updates: *mut C_tensor,
        loss_scale: *mut C_tensor,
        veto: *mut C_tensor,
        max_norm: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        norm: *mut *mut C_tensor,
        overflow: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn bpx_forget_grad(parameter: *mut C_tensor) -> *mut c_char;
}

/// The hyper-parameters of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Gradients are scaled to at most this global L2 norm; infinite for no clipping.
    pub max_norm: f64,
}

/// What an update reads and writes; the lists run in parallel.
#[derive(Debug, Clone, Copy)]
pub struct AdamWTensors<'a> {
    /// fp32.
    pub parameters: &'a [Tensor],
    /// fp32; left as they are on the CPU, scaled by the clip on a GPU.
    pub grads: &'a [Tensor],
    /// First moments, fp32.
    pub exp_avgs: &'a [Tensor],
    /// Second moments, fp32.
    pub exp_avg_sqs: &'a [Tensor],
    /// bf16 copies of the parameters, where there are any: rewritten with them.
    pub copies: &'a [Option<Tensor>],
    /// Decoupled weight decay of each (multiplied by the learning rate).
    pub weight_decays: &'a [f64],
    /// Updates done, an fp32 scalar on the parameters' device: counts, for the bias correction.
    pub updates: &'a Tensor,
}

/// What decides beside the gradients whether and how an update is made; scalars on the
/// parameters' device, so that the host waits for none of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpdateGuard<'a> {
    /// What the loss was multiplied by before the backward pass, fp32.
    pub loss_scale: Option<&'a Tensor>,
    /// Whether to leave everything as it is, bool.
    pub veto: Option<&'a Tensor>,
}

/// What an update tells; scalars on the parameters' device.
#[derive(Debug)]
pub struct UpdateStats {
    /// Global norm of the gradients before clipping, without the loss scale.
    pub grad_norm: Tensor,
    /// Whether that is no finite number, bool: then nothing was changed.
    pub overflow: Tensor,
}

/// Clips the gradients by their global norm and updates the parameters by AdamW, both in
/// one pass on the CPU. Where the norm is no finite number, or `conditions` veto it,
/// parameters, moments, copies and the count of updates stay as they are, bit for bit.
///
/// # Errors
/// When lengths or shapes disagree.
pub fn clipped_adamw(
    lists: AdamWTensors<'_>,
    conditions: UpdateGuard<'_>,
    options: AdamW,
) -> Result<UpdateStats, Error> {
    let n = lists.parameters.len();
    let lengths = [
        lists.grads.len(),
        lists.exp_avgs.len(),
        lists.exp_avg_sqs.len(),
        lists.copies.len(),
        lists.weight_decays.len(),
    ];
    if lengths != [n; 5] {
        return Err(Error(format!("clipped_adamw: {n} parameters, but lists of {lengths:?}")));
    }
    let copies: Vec<_> = lists.copies.iter().map(|copy| handle_or_null(copy.as_ref())).collect();
    let (mut norm, mut overflow) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: lists of n live handles each; the shim writes only through them, and on success
    // stored two tensors that are now ours.
    unsafe {
        check(bpx_clipped_adamw(
            handles(lists.parameters).as_ptr(),
            handles(lists.grads).as_ptr(),
            handles(lists.exp_avgs).as_ptr(),
            handles(lists.exp_avg_sqs).as_ptr(),
            copies.as_ptr(),
            lists.weight_decays.as_ptr(),
            n,
            handle(lists.updates),
            handle_or_null(conditions.loss_scale),
            handle_or_null(conditions.veto),
            options.max_norm,
            options.lr,
            options.betas.0,
            options.betas.1,
            options.eps,
            &mut norm,
            &mut overflow,
        ))?;
        Ok(UpdateStats { grad_norm: Tensor::from_ptr(norm), overflow: Tensor::from_ptr(overflow) })
    }
}

/// Leaves a parameter without a gradient, so that the next backward pass hands its own over
/// instead of adding to zeros.
///
/// # Errors
/// When libtorch refuses.
pub fn forget_grad(parameter: &Tensor) -> Result<(), Error> {
    // SAFETY: a live handle.
    check(unsafe { bpx_forget_grad(handle(parameter)) })
}
