//! One split out: documents in their permuted order, cut into shards, hashed on the way.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::manifest::{Shard, SplitManifest, hex};
use crate::reader::Split;

struct OpenShard {
    name: String,
    path: PathBuf,
    file: BufWriter<File>,
    hasher: Sha256,
    tokens: u64,
}

/// Writes the shards of one split into a folder.
pub(crate) struct ShardWriter<'a> {
    folder: &'a Path,
    split: Split,
    shard_tokens: u64,
    open: Option<OpenShard>,
    written: SplitManifest,
}

impl<'a> ShardWriter<'a> {
    pub(crate) fn new(folder: &'a Path, split: Split, shard_tokens: u64) -> Self {
        ShardWriter { folder, split, shard_tokens, open: None, written: SplitManifest::default() }
    }

    /// Appends one document's ids; it may cross shards.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.written.documents += 1;
        while !bytes.is_empty() {
            let shard = match &mut self.open {
                Some(shard) => shard,
                closed => closed.insert(OpenShard::create(self.folder, self.split, self.written.shards.len())?),
            };
            let room = 2 * (self.shard_tokens - shard.tokens);
            let (now, later) = bytes.split_at(room.min(bytes.len() as u64) as usize);
            shard.push(now)?;
            bytes = later;
            if shard.tokens == self.shard_tokens {
                self.close()?;
            }
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        if let Some(shard) = self.open.take() {
            let shard = shard.close()?;
            self.written.tokens += shard.tokens;
            self.written.shards.push(shard);
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<SplitManifest> {
        self.close()?;
        Ok(self.written)
    }
}

impl OpenShard {
    fn create(folder: &Path, split: Split, number: usize) -> Result<Self> {
        let name = format!("{split}-{number:05}.bin");
        let path = folder.join(&name);
        let file = File::create(&path).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(OpenShard { name, path, file: BufWriter::with_capacity(1 << 20, file), hasher: Sha256::new(), tokens: 0 })
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("{} cannot be written", self.path.display()))?;
        self.hasher.update(bytes);
        self.tokens += bytes.len() as u64 / 2;
        Ok(())
    }

    fn close(self) -> Result<Shard> {
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error);
        file.and_then(|f| f.sync_all()).with_context(|| format!("{} cannot be written", self.path.display()))?;
        Ok(Shard { name: self.name, tokens: self.tokens, sha256: hex(&self.hasher.finalize()) })
    }
}
