//! Documents in, whatever they are kept in.
//!
//! Documents number from 0 over the inputs in their order; a folder or a glob stands for
//! its files by byte order of their paths, and a file's documents come in its own order.

pub(crate) mod arrow;
mod expand;
mod format;
mod jsonl;
pub(crate) mod openwebtext_tar;
pub(crate) mod parquet;
mod text;

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

pub(crate) use expand::expand;
use format::{Compression, CorpusFormat};
pub use jsonl::json_object;

use crate::hash::sha256_file;

/// What names standard input.
pub(crate) const STANDARD_INPUT: &str = "-";

/// One file to read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SourceFile {
    pub path: PathBuf,
    /// Its size on disk; 0 for standard input.
    pub bytes: u64,
    /// Nanoseconds of its last change since 1970.
    pub modified: u64,
    format: CorpusFormat,
}

/// What a reader hands over.
pub(crate) enum Item {
    /// A document.
    Text(String),
    /// One that cannot be used, and why, with its place.
    Bad(anyhow::Error),
}

/// Takes each item with the bytes of the file read so far, and says whether to go on. So
/// what a reader returns in error is always about its file.
pub(crate) type Sink<'a> = dyn FnMut(Item, u64) -> ControlFlow<()> + 'a;

impl SourceFile {
    /// A file as it is now; of size 0 where that cannot be told and `skip_bad` allows it.
    fn new(path: PathBuf, format: CorpusFormat, skip_bad: bool) -> Result<Self> {
        let (bytes, modified) = match size_and_time(&path) {
            Err(_) if skip_bad => (0, 0),
            result => result?,
        };
        Ok(SourceFile { path, bytes, modified, format })
    }

    fn standard_input() -> Self {
        let format = CorpusFormat::Jsonl(Compression::None);
        SourceFile { path: PathBuf::from(STANDARD_INPUT), bytes: 0, modified: 0, format }
    }

    pub(crate) fn is_standard_input(&self) -> bool {
        self.path == Path::new(STANDARD_INPUT)
    }

    /// Hands every item from the one numbered `skip` on to `sink`, in order. Reading and
    /// skipping see the same items every time.
    ///
    /// # Errors
    /// Naming the file and the line, row, member or byte from where it cannot be read.
    pub(crate) fn read(&self, text_column: &str, skip: u64, sink: &mut Sink) -> Result<()> {
        let mut left = skip;
        let mut after_skipped = |item: Item, position: u64| {
            if left > 0 {
                left -= 1;
                return ControlFlow::Continue(());
            }
            sink(item, position)
        };
        match self.format {
            CorpusFormat::Jsonl(compression) => jsonl::read(&self.path, compression, text_column, &mut after_skipped),
            // Rows are skipped without being decoded.
            CorpusFormat::Parquet => parquet::read(&self.path, self.bytes, text_column, skip, sink),
            CorpusFormat::Arrow => arrow::read(&self.path, text_column, &mut after_skipped),
            CorpusFormat::TarXz => openwebtext_tar::read(&self.path, &mut after_skipped),
            CorpusFormat::Text => text::read(&self.path, &mut after_skipped),
        }
    }

    /// SHA-256 of the whole file.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) fn sha256(&self) -> Result<String> {
        sha256_file(&self.path).with_context(|| format!("{} cannot be read", self.path.display()))
    }

    /// Refuses a file that is no longer what it was.
    ///
    /// # Errors
    /// With both sizes or times.
    pub(crate) fn require_unchanged(&self) -> Result<()> {
        if self.is_standard_input() {
            return Ok(());
        }
        let (bytes, modified) = size_and_time(&self.path)?;
        ensure!(
            (bytes, modified) == (self.bytes, self.modified),
            "{} changed while it was read (from {} bytes to {bytes}, or its time of change): leave it alone and run this again",
            self.path.display(),
            self.bytes
        );
        Ok(())
    }
}

fn size_and_time(path: &Path) -> Result<(u64, u64)> {
    let metadata = fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let since_1970 = metadata.modified().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    Ok((metadata.len(), since_1970.as_nanos() as u64))
}

/// Documents of one reader, for its tests: texts, and what is wrong with the bad ones.
#[cfg(test)]
fn collect(read: impl FnOnce(&mut Sink) -> Result<()>) -> (Vec<String>, Vec<String>, Option<String>) {
    let (mut texts, mut bad) = (Vec::new(), Vec::new());
    let result = read(&mut |item, _| {
        match item {
            Item::Text(text) => texts.push(text),
            Item::Bad(why) => bad.push(format!("{why:#}")),
        }
        ControlFlow::Continue(())
    });
    (texts, bad, result.err().map(|e| format!("{e:#}")))
}
