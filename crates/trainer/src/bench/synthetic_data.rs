//! The sequences that `backpack bench` trains on.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use model::{HostBatch, derive_seed};

/// Seeds the random ids, independently of `run.seed`.
const SEED: u64 = 1;

/// An unlimited number of rows of T + 1 ids. The first T ids are inputs, the last T are targets.
#[derive(Debug)]
pub(crate) struct SyntheticRows {
    source: SyntheticSource,
    sequence_length: usize,
}

#[derive(Debug)]
enum SyntheticSource {
    /// Row r is `ids[r T .. r T + T + 1]`. The first row follows the last.
    File(Vec<u16>),
    /// Ids that follow Zipf's law, as words do: the k-th most frequent id is k - 1 and has a
    /// probability of about 1 / (k ln V). The work depends on the number of distinct ids per batch;
    /// uniform ids would almost all be distinct.
    Random { vocab_size: i64 },
}

impl SyntheticRows {
    /// Reads the first `max_rows` rows of `file`, or returns random rows for `None`.
    ///
    /// # Errors
    /// The file cannot be read, is too short for a row, or holds an id that is not below
    /// `vocab_size`.
    pub(crate) fn open(file: Option<&Path>, sequence_length: usize, vocab_size: i64, max_rows: u64) -> Result<Self> {
        let source = match file {
            Some(path) => SyntheticSource::File(read_ids(path, sequence_length, vocab_size, max_rows)?),
            None => SyntheticSource::Random { vocab_size },
        };
        Ok(SyntheticRows { source, sequence_length })
    }

    /// Returns the rows `first .. first + count`, with their distinct tokens if `shares_senses`.
    pub(crate) fn read(&self, first: u64, count: u64, shares_senses: bool) -> HostBatch {
        let ids: Vec<i64> = (first..first + count).flat_map(|row| self.row(row)).collect();
        HostBatch::new(ids, self.sequence_length, shares_senses)
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
                .map(|position| {
                    // A double in [0, 1) has 53 bits.
                    let uniform = (derive_seed(SEED, &[row, position]) >> 11) as f64 / (1_u64 << 53) as f64;
                    let rank = ((vocab_size + 1) as f64).powf(uniform) as i64;
                    rank.clamp(1, *vocab_size) - 1
                })
                .collect(),
        }
    }
}

/// Reads the ids of the first `max_rows` rows of a file of uint16 little-endian ids.
fn read_ids(path: &Path, sequence_length: usize, vocab_size: i64, max_rows: u64) -> Result<Vec<u16>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(2 * (max_rows * sequence_length as u64 + 1)).read_to_end(&mut bytes))
        .with_context(|| format!("the tokens file {} cannot be read", path.display()))?;
    ensure!(
        bytes.len().is_multiple_of(2),
        "the tokens file {} has {} bytes, but uint16 ids take an even number of bytes",
        path.display(),
        bytes.len()
    );
    let ids: Vec<u16> = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    ensure!(
        ids.len() > sequence_length,
        "the tokens file {} holds {} ids, too few for one row of {}: data.sequence_length {sequence_length} plus one target",
        path.display(),
        ids.len(),
        sequence_length + 1
    );
    let invalid = ids.iter().enumerate().find(|(_, id)| i64::from(**id) >= vocab_size);
    if let Some((position, id)) = invalid {
        anyhow::bail!(
            "the tokens file {} holds id {id} at position {position}, which is not below model.vocab_size {vocab_size}",
            path.display()
        );
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tch::{Device, Tensor};

    use super::*;

    fn write_ids(ids: &[u16]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    fn values(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape([-1])).unwrap()
    }

    #[test]
    fn rows_of_a_file_overlap_by_one_id_and_wrap_around() {
        // Two rows of three ids, and two ids that are too few for a third row.
        let file = write_ids(&[0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let rows = SyntheticRows::open(Some(file.path()), 3, 9, 10).unwrap();
        let (inputs, targets) = rows.read(1, 3, false).to_device(Device::Cpu).unwrap();
        assert_eq!(values(inputs.ids()), [3, 4, 5, 0, 1, 2, 3, 4, 5]);
        assert_eq!(values(&targets), [4, 5, 6, 1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn files_that_do_not_fit_are_errors() {
        let open = |ids: &[u16], max_rows: u64| {
            SyntheticRows::open(Some(write_ids(ids).path()), 3, 9, max_rows).map(|_| ()).map_err(|e| e.to_string())
        };
        assert!(open(&[1, 2, 3], 5).unwrap_err().contains("holds 3 ids, too few for one row of 4"));
        assert!(open(&[1, 2, 3, 9], 5).unwrap_err().contains("holds id 9 at position 3"));
        // Ids that no step uses are not checked.
        open(&[1, 2, 3, 4, 9], 1).unwrap();
    }

    #[test]
    fn random_ids_follow_zipf_and_are_reproducible() {
        let rows = || SyntheticRows::open(None, 512, 50_264, 0).unwrap();
        let ids = |first| values(rows().read(first, 4, true).to_device(Device::Cpu).unwrap().0.ids());
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
