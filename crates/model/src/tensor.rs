//! Helpers for tensors.

use tch::Tensor;

/// Returns whether a tensor holds neither NaN nor infinity. Waits for the tensor's device.
pub fn is_finite(tensor: &Tensor) -> bool {
    tensor.isfinite().all().int64_value(&[]) == 1
}
