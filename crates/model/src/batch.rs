//! Token ids from host memory as input and target tensors.

use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// Splits rows of T + 1 ids into inputs and targets on `device`, each int64 `[rows, T]`. The
/// targets are the inputs shifted by one token.
///
/// # Errors
/// The number of ids is not a multiple of T + 1, or they do not fit on the device.
pub fn inputs_and_targets(rows: &[i64], sequence_length: usize, device: Device) -> Result<(Tensor, Tensor)> {
    let host = Tensor::f_from_slice(rows)?.f_view([-1, sequence_length as i64 + 1])?;
    let rows = if device.is_cuda() {
        // From page-locked memory the copy runs concurrently with the GPU's work; libtorch keeps
        // that memory until the copy is done. Not yet run on a GPU. The inner operator is called
        // because `pin_memory` warns whenever it is given a device, and tch always gives one.
        host.f_internal_pin_memory(device)?.f_to_device_(device, Kind::Int64, true, false)?
    } else {
        host
    };
    let length = sequence_length as i64;
    Ok((rows.f_narrow(1, 0, length)?, rows.f_narrow(1, 1, length)?))
}
