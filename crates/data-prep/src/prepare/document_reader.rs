//! Reading thread of the first stage: groups documents of the source files into batches.

use std::ops::ControlFlow;
use std::sync::mpsc::SyncSender;

use anyhow::{Result, anyhow};

use crate::prepare::journal::SourcePosition;
use crate::prepare::options::PrepareOptions;
use crate::sources::{SourceFile, SourceItem};

/// Bytes of text per batch: enough to keep every thread busy, and few enough to hold several
/// batches in memory.
const BATCH_BYTES: usize = 4 << 20;

/// Consecutive documents of one or more files.
#[derive(Default)]
pub(crate) struct DocumentBatch {
    pub texts: Vec<String>,
    /// Reason for each skipped document.
    pub skipped: Vec<String>,
    /// Start of the last file that starts in this batch.
    pub file_start: Option<FileStart>,
    /// SHA-256 of the files that end in this batch; `None` for a file that cannot be read.
    pub hashes: Vec<Option<String>>,
    /// Index of the file in which the batch ends, and the number of its items read so far.
    pub end: (usize, u64),
    /// Bytes of all source files read up to the end of the batch.
    pub done_bytes: u64,
}

/// Start of a file within a batch.
#[derive(Clone, Copy)]
pub(crate) struct FileStart {
    /// Index of the file.
    pub file: usize,
    /// Number of texts of the batch before the file.
    pub texts: usize,
    /// Number of skipped documents of the batch before the file.
    pub skipped: usize,
}

/// Reads source files and sends their documents in batches.
pub(crate) struct DocumentReader<'a> {
    options: &'a PrepareOptions,
    files: &'a [SourceFile],
    sender: SyncSender<DocumentBatch>,
    batch: DocumentBatch,
    /// Bytes of text in `batch`.
    batch_bytes: usize,
}

impl<'a> DocumentReader<'a> {
    pub(crate) fn new(options: &'a PrepareOptions, files: &'a [SourceFile], sender: SyncSender<DocumentBatch>) -> Self {
        DocumentReader { options, files, sender, batch: DocumentBatch::default(), batch_bytes: 0 }
    }

    /// Reads everything after `from`.
    pub(crate) fn read(mut self, from: SourcePosition) -> Result<()> {
        self.batch.end = (from.file, from.items);
        let result = self.read_files(from);
        // Documents before an error are valid and are sent too. If sending fails, the encoding
        // thread has failed and returns its own error.
        let _ = self.send();
        result
    }

    fn read_files(&mut self, from: SourcePosition) -> Result<()> {
        let files = self.files;
        let mut before: u64 = files[..from.file].iter().map(|f| f.bytes).sum();
        for (index, file) in files.iter().enumerate().skip(from.file) {
            let skip = if index == from.file { from.items } else { 0 };
            if skip == 0 {
                let DocumentBatch { texts, skipped, .. } = &self.batch;
                self.batch.file_start = Some(FileStart { file: index, texts: texts.len(), skipped: skipped.len() });
            }
            self.batch.end = (index, skip);
            if self.read_file(file, skip, before)?.is_break() {
                return Ok(());
            }
            before += file.bytes;
            self.batch.end = (index + 1, 0);
            self.batch.done_bytes = before;
        }
        Ok(())
    }

    /// Reads the items of `file` after the first `skip`. `before` is the size of all earlier files.
    /// Breaks if the receiver has disconnected.
    fn read_file(&mut self, file: &SourceFile, skip: u64, before: u64) -> Result<ControlFlow<()>> {
        let skip_bad = self.options.skip_bad_documents;
        let mut failure = None;
        let mut disconnected = false;
        let result = file.read(&self.options.text_column, skip, &mut |item, position| {
            match item {
                SourceItem::Text(text) => {
                    self.batch_bytes += text.len();
                    self.batch.texts.push(text);
                }
                SourceItem::Malformed(error) if skip_bad => self.batch.skipped.push(format!("{error:#}")),
                SourceItem::Malformed(error) => {
                    failure = Some(error);
                    return ControlFlow::Break(());
                }
            }
            self.batch.end.1 += 1;
            self.batch.done_bytes = before + position;
            if self.batch_bytes >= BATCH_BYTES && self.send().is_err() {
                disconnected = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        if let Some(error) = failure {
            return Err(error.context("unusable document (--skip-bad-documents skips such documents)"));
        }
        if disconnected {
            return Ok(ControlFlow::Break(()));
        }
        let hash = match result {
            Ok(()) if file.is_standard_input() => None,
            Ok(()) => {
                let hash = file.sha256()?;
                file.require_unchanged()?;
                Some(hash)
            }
            Err(error) if skip_bad => {
                self.batch.skipped.push(format!("{error:#}; the rest of the file is skipped"));
                file.sha256().ok()
            }
            Err(error) => return Err(error),
        };
        self.batch.hashes.push(hash);
        Ok(ControlFlow::Continue(()))
    }

    fn send(&mut self) -> Result<()> {
        self.batch_bytes = 0;
        let next = DocumentBatch { end: self.batch.end, done_bytes: self.batch.done_bytes, ..DocumentBatch::default() };
        let batch = std::mem::replace(&mut self.batch, next);
        self.sender.send(batch).map_err(|_| anyhow!("the encoding thread has ended"))
    }
}
