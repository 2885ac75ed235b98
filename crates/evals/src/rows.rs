//! Sequences of a split: read on the host, then made tensors on a device.

use anyhow::Result;
use data_prep::TokenSplit;
use tch::{Device, Kind, Tensor};

/// Blocks of a split as rows of T + 1 ids, one after the other: block i holds tokens i T to
/// i T + T, the last of which is a target alone. Needs nothing of libtorch.
///
/// # Errors
/// When a shard holds an id outside the vocabulary.
pub fn read_rows(split: &TokenSplit, blocks: impl Iterator<Item = u64>, sequence_length: usize) -> Result<Vec<i64>> {
    let mut ids = Vec::new();
    for block in blocks {
        let row = ids.len();
        ids.resize(row + sequence_length + 1, 0);
        split.read(block * sequence_length as u64, &mut ids[row..])?;
    }
    Ok(ids)
}

/// Rows of T + 1 ids as inputs and targets, each `[rows, T]` int64 on `device`; the targets
/// are the inputs one token on.
///
/// # Errors
/// When libtorch refuses.
pub fn inputs_and_targets(rows: &[i64], sequence_length: usize, device: Device) -> Result<(Tensor, Tensor)> {
    let host = Tensor::f_from_slice(rows)?.f_view([-1, sequence_length as i64 + 1])?;
    let rows = if device.is_cuda() {
        // From page-locked memory the copy runs beside the GPU's work; libtorch keeps that
        // memory until the copy is done. Not yet run on a GPU. The inner operator, because
        // `pin_memory` warns whenever it is given a device, and tch always gives one.
        host.f_internal_pin_memory(device)?.f_to_device_(device, Kind::Int64, true, false)?
    } else {
        host
    };
    let length = sequence_length as i64;
    Ok((rows.f_narrow(1, 0, length)?, rows.f_narrow(1, 1, length)?))
}
