//! The sequences that `bench` trains on.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use model::derive_seed;
use model::inputs_and_targets;
use tch::{Device, Tensor};

/// Seeds the random ids, the same whatever `run.seed` is.
const SEED: u64 = 1;

/// Rows of T + 1 ids without an end: T inputs, and as targets the same one id on.
#[derive(Debug)]
pub(crate) struct SyntheticRows {
    source: SyntheticSource,
    sequence_length: usize,
}

#[derive(Debug)]
enum SyntheticSource {
    /// Row r is `ids[r T .. r T + T + 1]`, and after the last comes the first again.
    File(Vec<u16>),
    /// Zipf's law, as that of words: the k-th most frequent id (k - 1) comes with a
    /// probability near 1 / (k ln V). How many of a batch's ids are distinct decides part of
    /// the work, and uniform ids would almost all be.
    Random { vocab_size: i64 },
}

impl SyntheticRows {
    /// The rows of `file`, of which only what the first `most` rows take is read, or random ones.
    ///
    /// # Errors
    /// When the file cannot be read, is too short for a row, or holds an id that is not below
    /// `vocab_size`.
    pub(crate) fn open(file: Option<&Path>, sequence_length: usize, vocab_size: i64, most: u64) -> Result<Self> {
        let source = match file {
            Some(path) => SyntheticSource::File(read_ids(path, sequence_length, vocab_size, most)?),
            None => SyntheticSource::Random { vocab_size },
        };
        Ok(SyntheticRows { source, sequence_length })
    }

    /// Rows numbered `first .. first + count` as inputs and targets, each `[count, T]` int64.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn read(&self, first: u64, count: u64, device: Device) -> Result<(Tensor, Tensor)> {
        let ids: Vec<i64> = (first..first + count).flat_map(|row| self.row(row)).collect();
        inputs_and_targets(&ids, self.sequence_length, device)
    }

    fn row(&self, row: u64) -> Vec<i64> {
        let length = self.sequence_length;
        match &self.source {
            SyntheticSource::File(ids) => {
                let rows = (ids.len() - 1) / length;
                let start = (row % rows as u64) as usize * length;
                ids[start..=start + length].iter().copied().map(i64::from).collect()
            }
            SyntheticSource::Random { vocab_size } => (0..=length as u64)
                .map(|place| {
                    // 53 bits make a double in [0, 1).
                    let uniform = (derive_seed(SEED, &[row, place]) >> 11) as f64 / (1_u64 << 53) as f64;
                    let rank = ((vocab_size + 1) as f64).powf(uniform) as i64;
                    rank.clamp(1, *vocab_size) - 1
                })
                .collect(),
        }
    }
}

/// What `most` rows take of a file of ids, uint16 little-endian.
fn read_ids(path: &Path, sequence_length: usize, vocab_size: i64, most: u64) -> Result<Vec<u16>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(2 * (most * sequence_length as u64 + 1)).read_to_end(&mut bytes))
        .with_context(|| format!("the tokens file {} cannot be read", path.display()))?;
    ensure!(
        bytes.len().is_multiple_of(2),
        "the tokens file {} has {} bytes: uint16 ids take an even number",
        path.display(),
        bytes.len()
    );
    let ids: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    ensure!(
        ids.len() > sequence_length,
        "the tokens file {} holds {} ids, too few for one row of {}: data.sequence_length {sequence_length} and one to predict",
        path.display(),
        ids.len(),
        sequence_length + 1
    );
    let foreign = ids.iter().enumerate().find(|(_, id)| i64::from(**id) >= vocab_size);
    if let Some((place, id)) = foreign {
        anyhow::bail!(
            "the tokens file {} holds id {id} at place {place}, which is not below the model's vocabulary of {vocab_size}",
            path.display()
        );
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn written(ids: &[u16]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn values(tensor: Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape([-1])).unwrap()
    }

    #[test]
    fn the_rows_of_a_file_overlap_by_one_and_wrap_round() {
        // Two rows of three, and two ids that make no third.
        let file = written(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let rows = SyntheticRows::open(Some(file.path()), 3, 9, 10).unwrap();
        let (inputs, targets) = rows.read(1, 3, Device::Cpu).unwrap();
        assert_eq!(values(inputs), [3, 4, 5, 0, 1, 2, 3, 4, 5]);
        assert_eq!(values(targets), [4, 5, 6, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refuse = |ids: &[u16], most: u64| {
            SyntheticRows::open(Some(written(ids).path()), 3, 9, most).map(|_| ()).map_err(|e| e.to_string())
        };
        assert!(refuse(&[1, 2, 3], 5).unwrap_err().contains("holds 3 ids, too few for one row of 4"));
        assert!(refuse(&[1, 2, 3, 9], 5).unwrap_err().contains("holds id 9 at place 3"));
        // What no step will use is not looked at.
        refuse(&[1, 2, 3, 4, 9], 1).unwrap();
    }

    #[test]
    fn random_ids_follow_zipf_and_are_the_same_every_time() {
        let rows = || SyntheticRows::open(None, 512, 50_264, 0).unwrap();
        let ids = |first| values(rows().read(first, 4, Device::Cpu).unwrap().0);
        assert_eq!(ids(8), ids(8));
        assert_ne!(ids(8), ids(12));
        let batch = ids(0);
        assert!(batch.iter().all(|id| (0..50_264).contains(id)));
        let distinct = batch.iter().collect::<BTreeSet<_>>().len() as f64 / batch.len() as f64;
        assert!((0.45..0.65).contains(&distinct), "{distinct}");
        let first = batch.iter().filter(|id| **id == 0).count() as f64 / batch.len() as f64;
        assert!((first - 2f64.ln() / 50_265f64.ln()).abs() < 0.03, "{first}");
    }
}
