//! Ids in source order in one temporary file, the documents' lengths in another: the
//! permuted order is then a matter of offsets, and the corpus is never in memory.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::tokenizer::Encoded;

const IDS: &str = "spool.bin";
const LENGTHS: &str = "lengths.bin";
/// Documents that were left out, one a line; stays in the output where there are any.
pub(crate) const BAD_FILE: &str = "skipped.jsonl";
/// What the output has no use for.
pub(crate) const FILES: [&str; 2] = [IDS, LENGTHS];

/// How much is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct SpoolRange {
    pub documents: u64,
    pub tokens: u64,
    /// Documents left out.
    pub bad: u64,
}

/// An append-only file that is cut back when it is opened.
struct Appended {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Appended {
    fn open(path: PathBuf, length: u64) -> Result<Self> {
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(length)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Appended { file: BufWriter::with_capacity(1 << 20, file), path })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("{} cannot be written", self.path.display()))
    }

    /// Hands everything to the system. Gives the file, for another thread to wait for the disk.
    fn flush(&mut self) -> Result<File> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().try_clone());
        flushed.with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

pub(crate) struct SpoolWriter {
    ids: Appended,
    lengths: Appended,
    /// A line for each document that was left out.
    bad: Appended,
    pub extent: SpoolRange,
}

impl SpoolWriter {
    /// Opens the spool of a workplace, cut back to `extent`.
    pub(crate) fn open(folder: &Path, extent: SpoolRange) -> Result<Self> {
        let path = folder.join(BAD_FILE);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let kept: usize = text.split_inclusive('\n').take(extent.bad as usize).map(str::len).sum();
        Ok(SpoolWriter {
            ids: Appended::open(folder.join(IDS), 2 * extent.tokens)?,
            lengths: Appended::open(folder.join(LENGTHS), 4 * extent.documents)?,
            bad: Appended::open(path, kept as u64)?,
            extent,
        })
    }

    pub(crate) fn push(&mut self, encoded: &Encoded) -> Result<()> {
        self.ids.write(&encoded.bytes)?;
        for length in &encoded.lengths {
            self.lengths.write(&length.to_le_bytes())?;
        }
        self.extent.tokens += encoded.bytes.len() as u64 / 2;
        self.extent.documents += encoded.lengths.len() as u64;
        Ok(())
    }

    /// Notes why a document was left out.
    pub(crate) fn push_bad(&mut self, why: &str) -> Result<()> {
        self.bad.write((serde_json::json!({ "skipped": why }).to_string() + "\n").as_bytes())?;
        self.extent.bad += 1;
        Ok(())
    }

    /// Hands everything to the system. Gives the files, for another thread to wait for the
    /// disk.
    pub(crate) fn flush(&mut self) -> Result<[File; 3]> {
        Ok([self.ids.flush()?, self.lengths.flush()?, self.bad.flush()?])
    }
}

/// Whether a workplace's spool holds that much.
pub(crate) fn holds(folder: &Path, extent: SpoolRange) -> bool {
    let length = |name: &str| std::fs::metadata(folder.join(name)).map_or(0, |m| m.len());
    length(LENGTHS) >= 4 * extent.documents && length(IDS) >= 2 * extent.tokens
}

/// A finished spool, read at any document.
pub(crate) struct Spool {
    path: PathBuf,
    ids: File,
    /// Where each document starts, in tokens, and last the end.
    offsets: Vec<u64>,
}

impl Spool {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(LENGTHS);
        let lengths = std::fs::read(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let mut offsets = Vec::with_capacity(lengths.len() / 4 + 1);
        let mut end = 0u64;
        offsets.push(end);
        for length in lengths.chunks_exact(4) {
            end += u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
            offsets.push(end);
        }
        let path = folder.join(IDS);
        let ids = File::open(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        Ok(Spool { path, ids, offsets })
    }

    /// Tokens of a document.
    pub(crate) fn tokens(&self, document: u32) -> u64 {
        self.offsets[document as usize + 1] - self.offsets[document as usize]
    }

    /// Bytes of `count` ids of a document, from its id `from` on, into `buffer`.
    pub(crate) fn read(&self, document: u32, from: u64, count: u64, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(2 * count as usize, 0);
        let start = 2 * (self.offsets[document as usize] + from);
        self.ids.read_exact_at(buffer, start).with_context(|| format!("{} cannot be read", self.path.display()))
    }
}
