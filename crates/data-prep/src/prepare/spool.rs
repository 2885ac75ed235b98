//! Spool: temporary files with the ids of all documents in source order.
//!
//! One file contains the ids, another the length of each document. Writing the permuted order then
//! only needs offsets, and the corpus is never in memory.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::tokenizer::EncodedDocuments;

const IDS_FILE: &str = "spool.bin";
const LENGTHS_FILE: &str = "lengths.bin";
/// Skipped documents, one JSON line per document. The output contains this file unless it is empty.
pub(crate) const SKIPPED_FILE: &str = "skipped.jsonl";
/// Files of the spool that are not part of the output.
pub(crate) const TEMPORARY_FILES: [&str; 2] = [IDS_FILE, LENGTHS_FILE];

/// Amount of spooled data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct SpoolRange {
    pub documents: u64,
    pub tokens: u64,
    /// Skipped documents.
    pub bad: u64,
}

/// Append-only file that is truncated to a given length when it is opened.
struct AppendFile {
    path: PathBuf,
    file: BufWriter<File>,
}

impl AppendFile {
    fn open(path: PathBuf, length: u64) -> Result<Self> {
        let open = || -> std::io::Result<File> {
            let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(length)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(AppendFile { file: BufWriter::with_capacity(1 << 20, file), path })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Writes out the buffer. Returns the file, so that another thread can wait for the disk.
    fn flush(&mut self) -> Result<File> {
        let flushed = self.file.flush().and_then(|()| self.file.get_ref().try_clone());
        flushed.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Appends documents to the spool.
pub(crate) struct SpoolWriter {
    ids: AppendFile,
    lengths: AppendFile,
    /// One line per skipped document.
    skipped: AppendFile,
    /// Everything written so far.
    pub range: SpoolRange,
}

impl SpoolWriter {
    /// Opens the spool in the staging directory `dir`, truncated to `range`.
    pub(crate) fn open(dir: &Path, range: SpoolRange) -> Result<Self> {
        let path = dir.join(SKIPPED_FILE);
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let kept: usize = text.split_inclusive('\n').take(range.bad as usize).map(str::len).sum();
        Ok(SpoolWriter {
            ids: AppendFile::open(dir.join(IDS_FILE), 2 * range.tokens)?,
            lengths: AppendFile::open(dir.join(LENGTHS_FILE), 4 * range.documents)?,
            skipped: AppendFile::open(path, kept as u64)?,
            range,
        })
    }

    pub(crate) fn push(&mut self, encoded: &EncodedDocuments) -> Result<()> {
        self.ids.write(&encoded.bytes)?;
        for length in &encoded.lengths {
            self.lengths.write(&length.to_le_bytes())?;
        }
        self.range.tokens += encoded.bytes.len() as u64 / 2;
        self.range.documents += encoded.lengths.len() as u64;
        Ok(())
    }

    /// Records why a document was skipped.
    pub(crate) fn push_skipped(&mut self, reason: &str) -> Result<()> {
        self.skipped.write((serde_json::json!({ "skipped": reason }).to_string() + "\n").as_bytes())?;
        self.range.bad += 1;
        Ok(())
    }

    /// Writes out all buffers. Returns the files, so that another thread can wait for the disk.
    pub(crate) fn flush(&mut self) -> Result<[File; 3]> {
        Ok([self.ids.flush()?, self.lengths.flush()?, self.skipped.flush()?])
    }
}

/// Returns whether the spool in `dir` contains at least `range`.
pub(crate) fn contains(dir: &Path, range: SpoolRange) -> bool {
    let length = |name: &str| std::fs::metadata(dir.join(name)).map_or(0, |m| m.len());
    length(LENGTHS_FILE) >= 4 * range.documents && length(IDS_FILE) >= 2 * range.tokens
}

/// Finished spool with random access to documents.
pub(crate) struct Spool {
    path: PathBuf,
    ids: File,
    /// First token of each document, followed by the total number of tokens.
    offsets: Vec<u64>,
}

impl Spool {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(LENGTHS_FILE);
        let lengths = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut offsets = Vec::with_capacity(lengths.len() / 4 + 1);
        let mut end = 0u64;
        offsets.push(end);
        for length in lengths.chunks_exact(4) {
            end += u64::from(u32::from_le_bytes([length[0], length[1], length[2], length[3]]));
            offsets.push(end);
        }
        let path = dir.join(IDS_FILE);
        let ids = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Spool { path, ids, offsets })
    }

    /// Returns the number of tokens of a document.
    pub(crate) fn num_tokens(&self, document: u32) -> u64 {
        self.offsets[document as usize + 1] - self.offsets[document as usize]
    }

    /// Reads `count` ids of a document, starting at its id `from`, as bytes into `buffer`.
    pub(crate) fn read(&self, document: u32, from: u64, count: u64, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(2 * count as usize, 0);
        let start = 2 * (self.offsets[document as usize] + from);
        self.ids.read_exact_at(buffer, start).with_context(|| format!("cannot read {}", self.path.display()))
    }
}
