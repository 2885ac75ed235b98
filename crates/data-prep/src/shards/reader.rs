//! Prepared shards, memory-mapped: one stream of tokens a split.

use std::fmt;
use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::shards::manifest::{MANIFEST_FILE, Manifest, Shard};
use crate::shards::mmap::map_read_only;

/// Which part of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// What is trained on.
    Train,
    /// What is held out.
    Val,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Val => "val",
        })
    }
}

/// Splits up to this many bytes are hashed and their ids checked when they are opened, in
/// about a second; larger ones by `backpack verify-data`, since a run should not wait for a
/// disk to be read through.
const READ_AT_OPEN: u64 = 1 << 30;

struct MappedShard {
    name: String,
    /// Position of its first token in the split.
    first: u64,
    /// uint16 little-endian.
    bytes: Mmap,
}

impl MappedShard {
    fn tokens(&self) -> u64 {
        self.bytes.len() as u64 / 2
    }

    /// The id that stands at a place.
    fn id(&self, place: usize, bytes: [u8; 2], vocab_size: usize) -> Result<u16> {
        let id = u16::from_le_bytes(bytes);
        ensure!(
            usize::from(id) < vocab_size,
            "{} holds id {id} at token {place}, which is not below the model's vocabulary of {vocab_size}",
            self.name
        );
        Ok(id)
    }
}

/// One split, ready to be read at any position. A sequence may cross shards.
pub struct TokenSplit {
    split: Split,
    shards: Vec<MappedShard>,
    tokens: u64,
    vocab_size: usize,
    manifest_sha256: Option<String>,
    end_of_text: Option<u32>,
}

impl fmt::Debug for TokenSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenSplit({}, {} tokens in {} shards)", self.split, self.tokens, self.shards.len())
    }
}

impl TokenSplit {
    /// Opens a split of a folder that `prepare-data` wrote, or a plain `train.bin` /
    /// `val.bin` in nanoGPT's layout, for a model of `vocab_size`.
    ///
    /// # Errors
    /// When the folder or a shard is not there, a shard is not what the manifest says, the
    /// manifest's vocabulary is larger than the model's, or (where the split is small enough
    /// to be read through at once) an id is not below the model's.
    pub fn open(folder: &Path, split: Split, vocab_size: usize) -> Result<Self> {
        ensure!(
            folder.is_dir(),
            "the data folder {} is not there: make it with `backpack prepare-data --output {0}`",
            folder.display()
        );
        let mut opened =
            TokenSplit { split, shards: Vec::new(), tokens: 0, vocab_size, manifest_sha256: None, end_of_text: None };
        match Manifest::load(folder)? {
            Some((manifest, sha256)) => {
                ensure!(
                    manifest.vocab_size as usize <= vocab_size,
                    "the data in {} has a vocabulary of {}, more than model.vocab_size {vocab_size}",
                    folder.display(),
                    manifest.vocab_size
                );
                let shards = match split {
                    Split::Train => manifest.train.shards,
                    Split::Val => manifest.val.shards,
                };
                let hashed = shards.iter().map(|s| 2 * s.tokens).sum::<u64>() <= READ_AT_OPEN;
                for shard in shards {
                    opened.push_checked(folder, shard, hashed)?;
                }
                opened.manifest_sha256 = Some(sha256);
                opened.end_of_text = Some(manifest.end_of_text);
            }
            None => opened.push_plain(folder)?,
        }
        if 2 * opened.tokens <= READ_AT_OPEN {
            for shard in &opened.shards {
                for (place, pair) in shard.bytes.chunks_exact(2).enumerate() {
                    shard.id(place, [pair[0], pair[1]], vocab_size)?;
                }
            }
        }
        Ok(opened)
    }

    fn push_checked(&mut self, folder: &Path, shard: Shard, hashed: bool) -> Result<()> {
        let path = folder.join(&shard.name);
        let bytes = map(&path).with_context(|| format!("{MANIFEST_FILE} names the shard"))?;
        ensure!(
            bytes.len() as u64 == 2 * shard.tokens,
            "{} has {} bytes, but {MANIFEST_FILE} says {} tokens of 2 bytes: it was cut short or replaced; prepare the data again",
            path.display(),
            bytes.len(),
            shard.tokens
        );
        ensure!(
            !hashed || hex(&Sha256::digest(&bytes)) == shard.sha256,
            "{} is damaged: its SHA-256 is not the one in {MANIFEST_FILE}; prepare the data again",
            path.display()
        );
        self.push(shard.name, bytes);
        Ok(())
    }

    fn push_plain(&mut self, folder: &Path) -> Result<()> {
        let name = format!("{}.bin", self.split);
        let path = folder.join(&name);
        ensure!(
            path.is_file(),
            "{} holds neither {MANIFEST_FILE} nor a plain {name}: name a folder that `backpack prepare-data` wrote",
            folder.display()
        );
        let bytes = map(&path)?;
        ensure!(
            bytes.len().is_multiple_of(2),
            "{} has {} bytes: uint16 ids take an even number",
            path.display(),
            bytes.len()
        );
        self.push(name, bytes);
        Ok(())
    }

    fn push(&mut self, name: String, bytes: Mmap) {
        let shard = MappedShard { name, first: self.tokens, bytes };
        self.tokens += shard.tokens();
        self.shards.push(shard);
    }

    /// Tokens of the split.
    pub fn num_tokens(&self) -> u64 {
        self.tokens
    }

    /// Non-overlapping sequences of `sequence_length`: block i is tokens i T to i T + T, its
    /// last token only predicted.
    pub fn num_sequences(&self, sequence_length: usize) -> u64 {
        self.tokens.saturating_sub(1) / sequence_length as u64
    }

    /// Refuses a split that holds no sequence.
    ///
    /// # Errors
    /// With both lengths.
    pub fn require_sequence(&self, sequence_length: usize) -> Result<()> {
        if self.num_sequences(sequence_length) == 0 {
            bail!(
                "the {} split has {} tokens, too few for one sequence of {sequence_length} and its target: prepare more text, a larger --val-fraction, or use a shorter sequence_length",
                self.split,
                self.tokens
            );
        }
        Ok(())
    }

    /// Of the bytes of `manifest.json`, where there is one.
    pub fn manifest_sha256(&self) -> Option<&str> {
        self.manifest_sha256.as_deref()
    }

    /// The id between documents, where the manifest says it.
    pub fn end_of_text(&self) -> Option<u32> {
        self.end_of_text
    }

    /// Whether a manifest vouches for the data.
    pub fn has_manifest(&self) -> bool {
        self.manifest_sha256.is_some()
    }

    /// Copies `out.len()` ids from position `start`.
    ///
    /// # Errors
    /// When the range runs past the end, or an id is not below the vocabulary's size, with
    /// its shard and position.
    pub fn read(&self, start: u64, out: &mut [i64]) -> Result<()> {
        let end = start + out.len() as u64;
        ensure!(
            end <= self.tokens,
            "the {} split has {} tokens: {start} to {end} are past its end",
            self.split,
            self.tokens
        );
        // The shard that holds `start`: the last one that begins at or before it.
        let mut shard = self.shards.partition_point(|s| s.first <= start).saturating_sub(1);
        let mut filled = 0;
        while filled < out.len() {
            let current = &self.shards[shard];
            let from = (start + filled as u64 - current.first) as usize;
            let ids = current.bytes[2 * from..].chunks_exact(2);
            for (place, (slot, pair)) in out[filled..].iter_mut().zip(ids).enumerate() {
                *slot = i64::from(current.id(from + place, [pair[0], pair[1]], self.vocab_size)?);
            }
            filled += (out.len() - filled).min(current.tokens() as usize - from);
            shard += 1;
        }
        Ok(())
    }
}

fn map(path: &Path) -> Result<Mmap> {
    File::open(path).and_then(|file| map_read_only(&file)).with_context(|| format!("{} cannot be read", path.display()))
}

/// Reads blocks of a split as rows of T + 1 ids, one after the other. Block i holds tokens i T to
/// i T + T; the last of them is only a target.
///
/// # Errors
/// A shard holds an id outside the vocabulary.
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

    fn bytes(ids: std::ops::Range<u16>) -> Vec<u8> {
        ids.flat_map(u16::to_le_bytes).collect()
    }

    /// Ids 0..100 in shards of 40, 40 and 20.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let shards: Vec<_> = [0..40, 40..80, 80..100]
            .into_iter()
            .enumerate()
            .map(|(i, range)| {
                let (name, tokens, bytes) = (format!("train-{i:05}.bin"), range.len(), bytes(range));
                fs::write(folder.path().join(&name), &bytes).unwrap();
                serde_json::json!({ "name": name, "tokens": tokens, "sha256": hex(&Sha256::digest(&bytes)) })
            })
            .collect();
        let manifest = serde_json::json!({
            "format_version": 1, "tokenizer_sha256": "", "vocab_size": 100, "end_of_text": 99, "recipe": "backpack",
            "val_fraction": 0.1, "split_seed": 1, "shard_tokens": 40, "sources": [],
            "train": { "documents": 3, "tokens": 100, "shards": shards },
            "val": { "documents": 0, "tokens": 0, "shards": [] },
        });
        fs::write(folder.path().join(MANIFEST_FILE), manifest.to_string()).unwrap();
        folder
    }

    fn error(folder: &Path, vocab_size: usize) -> String {
        format!("{:#}", TokenSplit::open(folder, Split::Train, vocab_size).unwrap_err())
    }

    #[test]
    fn ranges_cross_shards() {
        let folder = folder();
        let split = TokenSplit::open(folder.path(), Split::Train, 104).unwrap();
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
        assert!(split.read(99, &mut [0; 2]).unwrap_err().to_string().contains("past its end"));
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
    fn a_folder_that_is_not_what_its_manifest_says_is_refused() {
        let data = folder();
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
        assert!(error(path, 100).contains("manifest.json names the shard"));
        fs::write(path.join(MANIFEST_FILE), "{").unwrap();
        assert!(error(path, 100).contains("manifest.json is not usable"));
        assert!(error(&path.join("none"), 100).contains("is not there: make it with `backpack prepare-data"));
    }

    #[test]
    fn a_manifest_that_contradicts_itself_is_refused() {
        let data = folder();
        let path = data.path().join(MANIFEST_FILE);
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, why) in [
            ("\"tokens\":20", "\"tokens\":21", "shards hold 101 tokens"),
            ("\"format_version\":1", "\"format_version\":7", "format version is 7"),
            ("train-00002.bin", "../x.bin", "no plain file name"),
        ] {
            assert!(text.contains(from));
            fs::write(&path, text.replace(from, to)).unwrap();
            assert!(error(data.path(), 100).contains(why), "{why}");
        }
    }

    #[test]
    fn a_plain_file_is_taken_unchecked_and_foreign_ids_are_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(error(folder.path(), 100).contains("holds neither manifest.json nor a plain train.bin"));
        let path = folder.path().join("train.bin");
        fs::write(&path, bytes(0..50)).unwrap();
        let foreign = "train.bin holds id 40 at token 40, which is not below the model's vocabulary of 40";
        assert_eq!(error(folder.path(), 40), foreign);
        let mut split = TokenSplit::open(folder.path(), Split::Train, 50).unwrap();
        assert!(!split.has_manifest() && split.end_of_text().is_none());
        // As for a split too large to be read through when it is opened.
        split.vocab_size = 40;
        split.read(0, &mut [0; 40]).unwrap();
        assert_eq!(split.read(35, &mut [0; 10]).unwrap_err().to_string(), foreign);
        fs::write(&path, [0u8; 5]).unwrap();
        assert!(error(folder.path(), 100).contains("5 bytes"));
    }
}
