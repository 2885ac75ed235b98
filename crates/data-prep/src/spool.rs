//! Ids in source order, in a temporary file, with the documents' lengths in memory: the
//! permuted order is then a matter of offsets, and the corpus is never in memory.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use memmap2::Mmap;

use crate::mapped::map_read_only;

pub(crate) struct SpoolWriter {
    path: PathBuf,
    file: BufWriter<File>,
    /// Where each document starts, in tokens, and last the end.
    offsets: Vec<u64>,
}

impl SpoolWriter {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(SpoolWriter { path: path.to_owned(), file: BufWriter::with_capacity(1 << 20, file), offsets: vec![0] })
    }

    pub(crate) fn push(&mut self, ids: &[u16]) -> Result<()> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        self.file.write_all(&bytes).with_context(|| format!("{} cannot be written", self.path.display()))?;
        self.offsets.push(self.tokens() + ids.len() as u64);
        // numpy's permutation is drawn from 32-bit numbers here.
        ensure!(self.documents() <= u64::from(u32::MAX), "there are more than {} documents", u32::MAX);
        Ok(())
    }

    pub(crate) fn documents(&self) -> u64 {
        self.offsets.len() as u64 - 1
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    pub(crate) fn finish(self) -> Result<Spool> {
        let cannot = || format!("{} cannot be written", self.path.display());
        let file = self.file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(cannot)?;
        drop(file);
        let file = File::open(&self.path).with_context(cannot)?;
        Ok(Spool { bytes: map_read_only(&file).with_context(cannot)?, offsets: self.offsets })
    }
}

pub(crate) struct Spool {
    bytes: Mmap,
    offsets: Vec<u64>,
}

impl Spool {
    /// Bytes of a document's ids, little-endian.
    pub(crate) fn document(&self, number: u32) -> &[u8] {
        let at = number as usize;
        &self.bytes[2 * self.offsets[at] as usize..2 * self.offsets[at + 1] as usize]
    }
}
