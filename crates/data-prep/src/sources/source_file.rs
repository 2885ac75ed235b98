//! One source file: its size and time, its hash, and reading its items.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::format::{Compression, CorpusFormat};
use super::item::{Sink, SourceItem};
use super::jsonl::STANDARD_INPUT;
use super::{arrow, jsonl, openwebtext_tar, parquet, text};
use crate::hash::sha256_file;

/// Source file, or standard input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceFile {
    pub path: PathBuf,
    /// Size in bytes; 0 for standard input.
    pub bytes: u64,
    /// Modification time in nanoseconds since 1970.
    pub modified: u64,
    format: CorpusFormat,
}

impl SourceFile {
    /// Records the current size and time of a file. With `skip_bad`, a file whose size cannot be
    /// read has size 0.
    pub(super) fn new(path: PathBuf, format: CorpusFormat, skip_bad: bool) -> Result<Self> {
        let (bytes, modified) = match size_and_time(&path) {
            Err(_) if skip_bad => (0, 0),
            result => result?,
        };
        Ok(SourceFile { path, bytes, modified, format })
    }

    pub(super) fn standard_input() -> Self {
        let format = CorpusFormat::Jsonl(Compression::None);
        SourceFile { path: PathBuf::from(STANDARD_INPUT), bytes: 0, modified: 0, format }
    }

    pub(crate) fn is_standard_input(&self) -> bool {
        self.path == Path::new(STANDARD_INPUT)
    }

    /// Passes every item after the first `skip` items to `sink`, in order. The items of a file are
    /// the same in every call.
    ///
    /// # Errors
    /// The file cannot be read. The error names the file and the line, row, member or byte.
    pub(crate) fn read(&self, text_column: &str, skip: u64, sink: &mut Sink) -> Result<()> {
        let mut left = skip;
        let mut after_skipped = |item: SourceItem, position: u64| {
            if left > 0 {
                left -= 1;
                return ControlFlow::Continue(());
            }
            sink(item, position)
        };
        match self.format {
            CorpusFormat::Jsonl(compression) => jsonl::read(&self.path, compression, text_column, &mut after_skipped),
            // Skips rows without decoding them.
            CorpusFormat::Parquet => parquet::read(&self.path, self.bytes, text_column, skip, sink),
            CorpusFormat::Arrow => arrow::read(&self.path, text_column, &mut after_skipped),
            CorpusFormat::TarXz => openwebtext_tar::read(&self.path, &mut after_skipped),
            CorpusFormat::Text => text::read(&self.path, &mut after_skipped),
        }
    }

    /// Returns the SHA-256 of the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn sha256(&self) -> Result<String> {
        sha256_file(&self.path).with_context(|| format!("cannot read {}", self.path.display()))
    }

    /// Checks that the file has the recorded size and time.
    ///
    /// # Errors
    /// The size or the time differs.
    pub(crate) fn require_unchanged(&self) -> Result<()> {
        if self.is_standard_input() {
            return Ok(());
        }
        let (bytes, modified) = size_and_time(&self.path)?;
        ensure!(
            (bytes, modified) == (self.bytes, self.modified),
            "{} changed while it was read (its size from {} to {bytes} bytes, or its modification time): stop changing it and run this again",
            self.path.display(),
            self.bytes
        );
        Ok(())
    }
}

fn size_and_time(path: &Path) -> Result<(u64, u64)> {
    let metadata = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    let since_1970 = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok((metadata.len(), since_1970.as_nanos() as u64))
}
