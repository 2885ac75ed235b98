//! Token ids from host memory as input and target tensors.

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use torch_ext::cuda_memory;

/// The number of tokens that the sense network receives is a multiple of it. oneDNN compiles code
/// for each new number of rows, so a multiple makes the numbers repeat.
const TOKENS_MULTIPLE: usize = 64;

/// The input ids of a forward pass, and their distinct tokens if the host has found them.
///
/// A tensor of ids converts to it. The distinct tokens are then found on the device, if the forward
/// pass needs them, and the host waits for their number.
#[derive(Debug)]
pub struct TokenBatch {
    /// Ids `[B, T]` int64.
    ids: Tensor,
    distinct: Option<DistinctTokens>,
}

/// The distinct tokens of a batch, on its device.
#[derive(Debug)]
pub(crate) struct DistinctTokens {
    /// The tokens `[U]` int64, in increasing order, and zeros up to a multiple of
    /// [`TOKENS_MULTIPLE`].
    pub(crate) tokens: Tensor,
    /// The position `[B T]` int64 of each id in `tokens`.
    pub(crate) rows: Tensor,
}

impl TokenBatch {
    /// The ids `[B, T]` int64.
    pub fn ids(&self) -> &Tensor {
        &self.ids
    }

    /// Returns the distinct tokens.
    pub(crate) fn distinct_tokens(&self) -> DistinctTokens {
        if let Some(DistinctTokens { tokens, rows }) = &self.distinct {
            return DistinctTokens { tokens: tokens.shallow_clone(), rows: rows.shallow_clone() };
        }
        let (distinct, rows, _) = self.ids.flatten(0, -1).internal_unique2(true, true, false);
        let padding = (-distinct.size()[0]).rem_euclid(TOKENS_MULTIPLE as i64);
        DistinctTokens { tokens: distinct.constant_pad_nd([0, padding]), rows }
    }
}

impl From<Tensor> for TokenBatch {
    fn from(ids: Tensor) -> Self {
        TokenBatch { ids, distinct: None }
    }
}

impl From<&Tensor> for TokenBatch {
    fn from(ids: &Tensor) -> Self {
        ids.shallow_clone().into()
    }
}

/// Rows of T + 1 ids in host memory. The first T ids of a row are inputs, the last T are targets.
/// It does not use libtorch, so any thread can create it.
#[derive(Debug)]
pub struct HostBatch {
    rows: Vec<i64>,
    sequence_length: usize,
    /// [`DistinctTokens`] of the inputs as vectors.
    distinct: Option<(Vec<i64>, Vec<i64>)>,
}

impl HostBatch {
    /// Creates a batch from rows of T + 1 ids, with T = `sequence_length`. Finds the distinct tokens
    /// of the inputs if `shares_senses`, the result of [`crate::LanguageModel::shares_senses`].
    pub fn new(rows: Vec<i64>, sequence_length: usize, shares_senses: bool) -> Self {
        let distinct = shares_senses.then(|| {
            let inputs = rows.chunks(sequence_length + 1).flat_map(|row| &row[..row.len() - 1]);
            distinct_tokens(inputs.copied())
        });
        HostBatch { rows, sequence_length, distinct }
    }

    /// Returns inputs and targets on `device`, each `[rows, T]` int64. The targets are the inputs
    /// shifted by one token.
    ///
    /// # Errors
    /// The number of ids is not a multiple of T + 1, or they do not fit on the device.
    pub fn to_device(&self, device: Device) -> Result<(TokenBatch, Tensor)> {
        let length = self.sequence_length as i64;
        let rows = copy_to_device(&self.rows, device)?.f_view([-1, length + 1])?;
        let distinct = match &self.distinct {
            Some((tokens, rows)) => {
                Some(DistinctTokens { tokens: copy_to_device(tokens, device)?, rows: copy_to_device(rows, device)? })
            }
            None => None,
        };
        Ok((TokenBatch { ids: rows.f_narrow(1, 0, length)?, distinct }, rows.f_narrow(1, 1, length)?))
    }
}

/// Returns the distinct ids in increasing order, with zeros up to a multiple of [`TOKENS_MULTIPLE`],
/// and the position of each id among them.
fn distinct_tokens(ids: impl Iterator<Item = i64> + Clone) -> (Vec<i64>, Vec<i64>) {
    let mut tokens: Vec<i64> = ids.clone().collect();
    tokens.sort_unstable();
    tokens.dedup();
    let rows = ids.map(|id| tokens.partition_point(|token| *token < id) as i64).collect();
    tokens.resize(tokens.len().next_multiple_of(TOKENS_MULTIPLE), 0);
    (tokens, rows)
}

fn copy_to_device(values: &[i64], device: Device) -> Result<Tensor> {
    let host = Tensor::f_from_slice(values)?;
    if !device.is_cuda() {
        return Ok(host);
    }
    // libtorch keeps the page-locked memory until the copy is done.
    Ok(cuda_memory::page_locked(&host, device)?.f_to_device_(device, Kind::Int64, true, false)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::derive_seed;

    /// The host and `_unique2` find the same tokens and rows, so losses are equal bit for bit.
    #[test]
    fn distinct_tokens_of_host_and_device_are_equal() {
        for (case, (sequences, length, vocab_size)) in
            [(1, 1, 1), (1, 7, 3), (3, 5, 1_000), (4, 64, 64), (8, 32, 50_257)].into_iter().enumerate()
        {
            let id = |i: usize| (derive_seed(case as u64, &[i as u64]) % vocab_size) as i64;
            let rows: Vec<i64> = (0..sequences * (length + 1)).map(id).collect();
            let without = HostBatch::new(rows.clone(), length, false).to_device(Device::Cpu).unwrap().0;
            let with = HostBatch::new(rows, length, true).to_device(Device::Cpu).unwrap().0;
            assert!(without.distinct.is_none() && with.distinct.is_some());
            assert_eq!(without.ids(), with.ids());
            let (on_device, on_host) = (without.distinct_tokens(), with.distinct_tokens());
            assert_eq!(on_host.tokens.size()[0] % TOKENS_MULTIPLE as i64, 0);
            assert_eq!((on_device.tokens, on_device.rows), (on_host.tokens, on_host.rows), "case {case}");
        }
    }

    #[test]
    fn targets_are_the_inputs_shifted_by_one() {
        let batch = HostBatch::new(vec![5, 6, 7, 8, 9, 10], 2, true);
        let (inputs, targets) = batch.to_device(Device::Cpu).unwrap();
        assert_eq!(inputs.ids(), &Tensor::from_slice(&[5i64, 6, 8, 9]).view([2, 2]));
        assert_eq!(targets, Tensor::from_slice(&[6i64, 7, 9, 10]).view([2, 2]));
        assert!(HostBatch::new(vec![1, 2, 3, 4], 2, false).to_device(Device::Cpu).is_err());
    }
}
