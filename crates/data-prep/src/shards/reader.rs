//! Reader of a split: the memory-mapped shards as one stream of tokens.

use std::fmt;
use std::path::Path;

use anyhow::{Result, bail, ensure};

use crate::shards::manifest::{MANIFEST_FILE, Manifest};
use crate::shards::mapped_shard::MappedShard;
use crate::shards::split::Split;

/// Maximum size in bytes of a split that is hashed, and whose ids are checked, when it is opened.
/// This takes about a second. Larger splits are checked by `backpack verify-data`, so that a run
/// does not wait until a disk is read.
const MAX_BYTES_CHECKED_AT_OPEN: u64 = 1 << 30;

/// Shard of a split.
struct SplitShard {
    /// Position of the shard's first token in the split.
    first: u64,
    shard: MappedShard,
}

/// Memory-mapped split that can be read at any position. A read may cross shards.
pub struct TokenSplit {
    split: Split,
    shards: Vec<SplitShard>,
    num_tokens: u64,
    vocab_size: usize,
    manifest_sha256: Option<String>,
    end_of_text: Option<u32>,
}

impl fmt::Debug for TokenSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSplit({}, {} tokens in {} shards)", self.split, self.num_tokens, self.shards.len())
    }
}

impl TokenSplit {
    /// Opens a split for a model with `vocab_size` ids. `dir` is a directory that `prepare-data`
    /// wrote, or contains a `train.bin` or `val.bin` in nanoGPT's layout without a manifest.
    ///
    /// # Errors
    /// The directory or a shard does not exist, a shard differs from the manifest, or the
    /// vocabulary of the manifest is larger than the model's. For splits of at most 1 GiB also if
    /// an id is not below `vocab_size`.
    pub fn open(dir: &Path, split: Split, vocab_size: usize) -> Result<Self> {
        ensure!(
            dir.is_dir(),
            "the data directory {} does not exist: create it with `backpack prepare-data --output {0}`",
            dir.display()
        );
        let mut opened = TokenSplit {
            split,
            shards: Vec::new(),
            num_tokens: 0,
            vocab_size,
            manifest_sha256: None,
            end_of_text: None,
        };
        match Manifest::load(dir)? {
            Some((manifest, sha256)) => {
                ensure!(
                    manifest.vocab_size as usize <= vocab_size,
                    "the data in {} has a vocabulary of {}, more than model.vocab_size {vocab_size}",
                    dir.display(),
                    manifest.vocab_size
                );
                let shards = match split {
                    Split::Train => manifest.train.shards,
                    Split::Val => manifest.val.shards,
                };
                let check_hash = shards.iter().map(|s| 2 * s.tokens).sum::<u64>() <= MAX_BYTES_CHECKED_AT_OPEN;
                for shard in &shards {
                    opened.push(MappedShard::open_verified(dir, shard, check_hash)?);
                }
                opened.manifest_sha256 = Some(sha256);
                opened.end_of_text = Some(manifest.end_of_text);
            }
            None => {
                let name = format!("{split}.bin");
                ensure!(
                    dir.join(&name).is_file(),
                    "{} contains neither {MANIFEST_FILE} nor {name}: use a directory that `backpack prepare-data` wrote",
                    dir.display()
                );
                opened.push(MappedShard::open(dir, &name)?);
            }
        }
        if 2 * opened.num_tokens <= MAX_BYTES_CHECKED_AT_OPEN {
            for SplitShard { shard, .. } in &opened.shards {
                for (position, id) in shard.ids(0).enumerate() {
                    opened.check_id(shard, position, id)?;
                }
            }
        }
        Ok(opened)
    }

    fn push(&mut self, shard: MappedShard) {
        let first = self.num_tokens;
        self.num_tokens += shard.num_tokens();
        self.shards.push(SplitShard { first, shard });
    }

    /// Returns the number of tokens.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Returns the number of non-overlapping sequences of `sequence_length` (T) tokens. Sequence i
    /// has the tokens i T to i T + T; the last of them is only a target.
    pub fn num_sequences(&self, sequence_length: usize) -> u64 {
        self.num_tokens.saturating_sub(1) / sequence_length as u64
    }

    /// Checks that the split contains at least one sequence of `sequence_length` tokens.
    ///
    /// # Errors
    /// The split is shorter; the error contains both lengths.
    pub fn require_sequence(&self, sequence_length: usize) -> Result<()> {
        if self.num_sequences(sequence_length) == 0 {
            bail!(
                "the {} split has {} tokens, too few for one sequence of {sequence_length} and its target: prepare more text, a larger --val-fraction, or use a shorter sequence_length",
                self.split,
                self.num_tokens
            );
        }
        Ok(())
    }

    /// Returns the SHA-256 of `manifest.json`, if the directory has one.
    pub fn manifest_sha256(&self) -> Option<&str> {
        self.manifest_sha256.as_deref()
    }

    /// Returns the id between documents, if the directory has a manifest.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Returns whether the directory has a manifest, with which the shards were compared.
    pub fn has_manifest(&self) -> bool {
        self.manifest_sha256.is_some()
    }

    /// Reads `out.len()` ids from position `start`.
    ///
    /// # Errors
    /// The range exceeds the split, or an id is not below `vocab_size`. The error names the shard
    /// and the position.
    pub fn read(&self, start: u64, out: &mut [i64]) -> Result<()> {
        let end = start + out.len() as u64;
        ensure!(
            end <= self.num_tokens,
            "cannot read the tokens {start} to {end}: the {} split has {} tokens",
            self.split,
            self.num_tokens
        );
        // The last shard that starts at or before `start` contains it.
        let mut index = self.shards.partition_point(|s| s.first <= start).saturating_sub(1);
        let mut filled = 0;
        while filled < out.len() {
            let SplitShard { first, shard } = &self.shards[index];
            let from = (start + filled as u64 - first) as usize;
            for (i, (slot, id)) in out[filled..].iter_mut().zip(shard.ids(from)).enumerate() {
                *slot = i64::from(self.check_id(shard, from + i, id)?);
            }
            filled += (out.len() - filled).min(shard.num_tokens() as usize - from);
            index += 1;
        }
        Ok(())
    }

    /// Returns `id`, which is at `position` of `shard`, if it is below the vocabulary size.
    fn check_id(&self, shard: &MappedShard, position: usize, id: u16) -> Result<u16> {
        ensure!(
            usize::from(id) < self.vocab_size,
            "{} contains id {id} at token {position}, which is not below the model's vocabulary of {}",
            shard.name,
            self.vocab_size
        );
        Ok(id)
    }
}

/// Reads blocks of a split as rows of T + 1 ids, one after the other. Block i contains the tokens
/// i T to i T + T; the last of them is only a target.
///
/// # Errors
/// A shard contains an id outside the vocabulary.
pub fn read_rows(split: &TokenSplit, blocks: impl Iterator<Item = u64>, sequence_length: usize) -> Result<Vec<i64>> {
    let mut ids = Vec::new();
    for block in blocks {
        let row = ids.len();
        ids.resize(row + sequence_length + 1, 0);
        split.read(block * sequence_length as u64, &mut ids[row..])?;
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    use sha2::{Digest, Sha256};

    use crate::hash::hex;

    fn bytes(ids: std::ops::Range<u16>) -> Vec<u8> {
        ids.flat_map(u16::to_le_bytes).collect()
    }

    /// Creates a data directory with the ids 0..100 in shards of 40, 40 and 20.
    fn data_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let shards: Vec<_> = [0..40, 40..80, 80..100]
            .into_iter()
            .enumerate()
            .map(|(i, range)| {
                let (name, tokens, bytes) = (format!("train-{i:05}.bin"), range.len(), bytes(range));
                fs::write(dir.path().join(&name), &bytes).unwrap();
                serde_json::json!({ "name": name, "tokens": tokens, "sha256": hex(&Sha256::digest(&bytes)) })
            })
            .collect();
        let manifest = serde_json::json!({
            "format_version": 1, "tokenizer_sha256": "", "vocab_size": 100, "end_of_text": 99, "recipe": "backpack",
            "val_fraction": 0.1, "split_seed": 1, "shard_tokens": 40, "sources": [],
            "train": { "documents": 3, "tokens": 100, "shards": shards },
            "val": { "documents": 0, "tokens": 0, "shards": [] },
        });
        fs::write(dir.path().join(MANIFEST_FILE), manifest.to_string()).unwrap();
        dir
    }

    fn error(dir: &Path, vocab_size: usize) -> String {
        format!("{:#}", TokenSplit::open(dir, Split::Train, vocab_size).unwrap_err())
    }

    #[test]
    fn reads_cross_shards() {
        let dir = data_dir();
        let split = TokenSplit::open(dir.path(), Split::Train, 104).unwrap();
        assert_eq!(
            (split.num_tokens(), split.num_sequences(10), split.num_sequences(33), split.num_sequences(99)),
            (100, 9, 3, 1)
        );
        assert_eq!((split.end_of_text(), split.has_manifest()), (Some(99), true));
        for (start, length) in [(0, 100), (39, 2), (40, 1), (35, 60), (99, 1), (79, 0)] {
            let mut out = vec![0; length];
            split.read(start, &mut out).unwrap();
            let want: Vec<i64> = (start as i64..start as i64 + length as i64).collect();
            assert_eq!(out, want);
        }
        assert!(split.read(99, &mut [0; 2]).unwrap_err().to_string().contains("the train split has 100 tokens"));
        assert!(split.require_sequence(99).is_ok());
        assert!(
            split
                .require_sequence(100)
                .unwrap_err()
                .to_string()
                .contains("100 tokens, too few for one sequence of 100")
        );
    }

    #[test]
    fn directory_that_differs_from_its_manifest_is_refused() {
        let data = data_dir();
        let (path, shard) = (data.path(), data.path().join("train-00001.bin"));
        assert!(error(path, 99).contains("has a vocabulary of 100, more than model.vocab_size 99"));
        let whole = fs::read(&shard).unwrap();
        fs::write(&shard, &whole[..70]).unwrap();
        assert!(error(path, 100).contains("train-00001.bin has 70 bytes"));
        let mut flipped = whole.clone();
        flipped[3] ^= 1;
        fs::write(&shard, flipped).unwrap();
        assert!(error(path, 100).contains("train-00001.bin is damaged"));
        fs::remove_file(&shard).unwrap();
        assert!(error(path, 100).contains("cannot open a shard that manifest.json lists"));
        fs::write(path.join(MANIFEST_FILE), "{").unwrap();
        assert!(error(path, 100).contains("invalid manifest "));
        assert!(error(&path.join("none"), 100).contains("does not exist: create it with `backpack prepare-data"));
    }

    #[test]
    fn inconsistent_manifest_is_refused() {
        let data = data_dir();
        let path = data.path().join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, why) in [
            ("\"tokens\":20", "\"tokens\":21", "shards contain 101 tokens"),
            ("\"format_version\":1", "\"format_version\":7", "format version is 7"),
            ("train-00002.bin", "../x.bin", "is not a file name"),
        ] {
            assert!(text.contains(from));
            fs::write(&path, text.replace(from, to)).unwrap();
            assert!(error(data.path(), 100).contains(why), "{why}");
        }
    }

    #[test]
    fn file_without_manifest_opens_unverified_and_foreign_ids_are_named() {
        let dir = tempfile::tempdir().unwrap();
        assert!(error(dir.path(), 100).contains("contains neither manifest.json nor train.bin"));
        let path = dir.path().join("train.bin");
        fs::write(&path, bytes(0..50)).unwrap();
        let foreign = "train.bin contains id 40 at token 40, which is not below the model's vocabulary of 40";
        assert_eq!(error(dir.path(), 40), foreign);
        let mut split = TokenSplit::open(dir.path(), Split::Train, 50).unwrap();
        assert!(!split.has_manifest() && split.end_of_text().is_none());
        // As for a split that is too large to be checked when it is opened.
        split.vocab_size = 40;
        split.read(0, &mut [0; 40]).unwrap();
        assert_eq!(split.read(35, &mut [0; 10]).unwrap_err().to_string(), foreign);
        fs::write(&path, [0u8; 5]).unwrap();
        assert!(error(dir.path(), 100).contains("5 bytes"));
    }
}
