//! Memory-mapped shards.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::shards::manifest::{MANIFEST_FILE, Shard};
use crate::shards::mmap::map_read_only;

/// Memory-mapped file of little-endian uint16 ids.
pub(crate) struct MappedShard {
    /// File name in the data directory.
    pub name: String,
    bytes: Mmap,
}

impl MappedShard {
    /// Maps a file that no manifest describes.
    ///
    /// # Errors
    /// The file cannot be read, or its size is odd.
    pub(crate) fn open(dir: &Path, name: &str) -> Result<Self> {
        let shard = MappedShard::map(dir, name)?;
        let length = shard.bytes.len();
        ensure!(
            length.is_multiple_of(2),
            "{} has {length} bytes, but uint16 ids need an even number",
            dir.join(name).display()
        );
        Ok(shard)
    }

    /// Maps a shard and compares it with its manifest entry: its size and, with `check_hash`, its
    /// SHA-256.
    ///
    /// # Errors
    /// The shard cannot be read, or it differs from its manifest entry.
    pub(crate) fn open_verified(dir: &Path, shard: &Shard, check_hash: bool) -> Result<Self> {
        let path = dir.join(&shard.name);
        let mapped = MappedShard::map(dir, &shard.name)
            .with_context(|| format!("cannot open a shard that {MANIFEST_FILE} lists"))?;
        let length = mapped.bytes.len();
        ensure!(
            length as u64 == 2 * shard.tokens,
            "{} has {length} bytes, but {MANIFEST_FILE} lists {} tokens of 2 bytes: it was truncated or replaced; prepare the data again",
            path.display(),
            shard.tokens
        );
        ensure!(
            !check_hash || hex(&Sha256::digest(&mapped.bytes)) == shard.sha256,
            "{} is damaged: its SHA-256 differs from {MANIFEST_FILE}; prepare the data again",
            path.display()
        );
        Ok(mapped)
    }

    fn map(dir: &Path, name: &str) -> Result<Self> {
        let path = dir.join(name);
        let bytes = File::open(&path)
            .and_then(|file| map_read_only(&file))
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(MappedShard { name: name.to_owned(), bytes })
    }

    /// Returns the number of ids.
    pub(crate) fn num_tokens(&self) -> u64 {
        self.bytes.len() as u64 / 2
    }

    /// Returns the ids from position `start` to the end. `start` is at most the number of ids.
    pub(crate) fn ids(&self, start: usize) -> impl Iterator<Item = u16> {
        self.bytes[2 * start..].chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]))
    }
}
