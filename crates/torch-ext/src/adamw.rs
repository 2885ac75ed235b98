//! Gradient clipping and the AdamW update, in one operation.

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
        skip: *mut C_tensor,
        max_norm: f64,
        lr: f64,
        beta1: f64,
        beta2: f64,
        eps: f64,
        grad_norm: *mut *mut C_tensor,
        overflow: *mut *mut C_tensor,
    ) -> *mut c_char;
    fn bpx_clear_grad(parameter: *mut C_tensor) -> *mut c_char;
}

/// The hyperparameters of one AdamW update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate of this update.
    pub lr: f64,
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Added to the square root of the second moment.
    pub eps: f64,
    /// Maximum global L2 norm, to which gradients are clipped; infinite for no clipping.
    pub max_norm: f64,
}

/// The tensors that an update reads and writes. All lists have one entry per parameter.
#[derive(Debug, Clone, Copy)]
pub struct AdamWTensors<'a> {
    /// Parameters, fp32.
    pub parameters: &'a [Tensor],
    /// Gradients, fp32. Clipping does not change them on the CPU, and scales them on a GPU.
    pub grads: &'a [Tensor],
    /// First moments, fp32.
    pub exp_avgs: &'a [Tensor],
    /// Second moments, fp32.
    pub exp_avg_sqs: &'a [Tensor],
    /// bf16 copies of the parameters that have one. The update writes them, too.
    pub low_precision_copies: &'a [Option<Tensor>],
    /// Decoupled weight decay of each parameter, which the learning rate multiplies.
    pub weight_decays: &'a [f64],
    /// Number of updates so far, for the bias correction: an fp32 scalar on the parameters' device.
    /// The update increments it.
    pub updates: &'a Tensor,
}

/// The loss scale of an update, and whether to skip it. These are scalars on the parameters'
/// device, so that the host does not wait for them.
#[derive(Debug, Clone, Copy, Default)]
pub struct UpdateGuard<'a> {
    /// Factor by which the loss was multiplied before the backward pass, fp32.
    pub loss_scale: Option<&'a Tensor>,
    /// Whether to skip the update, bool.
    pub skip: Option<&'a Tensor>,
}

/// Results of an update, scalars on the parameters' device.
#[derive(Debug)]
pub struct UpdateStats {
    /// Global norm of the gradients before clipping, without the loss scale.
    pub grad_norm: Tensor,
    /// Whether the norm is not finite, bool. If so, the update changed nothing.
    pub overflow: Tensor,
}

/// Clips the gradients by their global norm and updates the parameters by AdamW. On the CPU, one
/// pass over the gradients computes the norm, and a second pass over all tensors does the rest. If
/// the norm is not finite or `guard` skips the update, parameters, moments, copies and the number of
/// updates keep all their bits.
///
/// # Errors
/// The lengths of the lists or the shapes of their tensors differ.
pub fn clipped_adamw(tensors: AdamWTensors<'_>, guard: UpdateGuard<'_>, options: AdamW) -> Result<UpdateStats, Error> {
    let n = tensors.parameters.len();
    let lengths = [
        tensors.grads.len(),
        tensors.exp_avgs.len(),
        tensors.exp_avg_sqs.len(),
        tensors.low_precision_copies.len(),
        tensors.weight_decays.len(),
    ];
    if lengths != [n; 5] {
        return Err(Error(format!("clipped_adamw: {n} parameters, but lists of lengths {lengths:?}")));
    }
    let copies: Vec<_> = tensors.low_precision_copies.iter().map(|copy| handle_or_null(copy.as_ref())).collect();
    let (mut grad_norm, mut overflow) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: lists of n live handles each. The shim writes only through them, and on success it
    // has stored two tensors, which are now ours.
    unsafe {
        check(bpx_clipped_adamw(
            handles(tensors.parameters).as_ptr(),
            handles(tensors.grads).as_ptr(),
            handles(tensors.exp_avgs).as_ptr(),
            handles(tensors.exp_avg_sqs).as_ptr(),
            copies.as_ptr(),
            tensors.weight_decays.as_ptr(),
            n,
            handle(tensors.updates),
            handle_or_null(guard.loss_scale),
            handle_or_null(guard.skip),
            options.max_norm,
            options.lr,
            options.betas.0,
            options.betas.1,
            options.eps,
            &mut grad_norm,
            &mut overflow,
        ))?;
        Ok(UpdateStats { grad_norm: Tensor::from_ptr(grad_norm), overflow: Tensor::from_ptr(overflow) })
    }
}

/// Removes the gradient of a parameter, so that the next backward pass stores its gradient instead
/// of adding to the old one.
pub fn clear_grad(parameter: &Tensor) -> Result<(), Error> {
    // SAFETY: a live handle.
    check(unsafe { bpx_clear_grad(handle(parameter)) })
}
