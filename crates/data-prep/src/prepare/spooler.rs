//! Writing side of the first stage: appends encoded batches to the spool, reports progress, and
//! requests commits.

use std::fs::File;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::Instant;

use anyhow::{Result, bail};

use crate::prepare::document_reader::{DocumentBatch, FileStart};
use crate::prepare::journal::{Commit, SourcePosition};
use crate::prepare::options::PrepareOptions;
use crate::prepare::progress::{OnEvent, PrepareEvent, PrepareProgress, PrepareStage};
use crate::prepare::spool::{SpoolRange, SpoolWriter};
use crate::sources::SourceFile;
use crate::tokenizer::EncodedDocuments;

/// Ids of a batch of documents.
pub(crate) struct EncodedBatch {
    pub groups: Vec<EncodedDocuments>,
    /// UTF-8 bytes of the texts.
    pub text_bytes: u64,
    /// The batch without its texts.
    pub source: DocumentBatch,
}

/// Commit, and the files that must be on disk before it is written to the journal.
pub(crate) struct CommitRequest {
    pub files: [File; 3],
    pub commit: Commit,
}

/// Appends batches to the spool, in source order.
pub(crate) struct Spooler<'a> {
    options: &'a PrepareOptions,
    report: &'a OnEvent<'a>,
    spool: SpoolWriter,
    requests: SyncSender<CommitRequest>,
    /// Position after the last written batch, with the hashes that no commit contains yet.
    current: Commit,
    /// Hashes that earlier commits contain.
    committed_hashes: Vec<Option<String>>,
    /// Whether the journal contains a commit to resume from.
    has_commit: bool,
    last_commit: Instant,
    text_bytes: u64,
    start_bytes: u64,
    total_bytes: u64,
}

impl<'a> Spooler<'a> {
    /// Opens the spool in the staging directory `dir`, truncated to the commit `from`.
    pub(crate) fn open(
        options: &'a PrepareOptions,
        files: &[SourceFile],
        dir: &Path,
        from: Commit,
        requests: SyncSender<CommitRequest>,
        report: &'a OnEvent<'a>,
    ) -> Result<Self> {
        Ok(Spooler {
            options,
            report,
            spool: SpoolWriter::open(dir, from.position.spooled)?,
            requests,
            has_commit: from != Commit::default(),
            start_bytes: files[..from.position.file].iter().map(|f| f.bytes).sum(),
            total_bytes: files.iter().map(|f| f.bytes).sum(),
            committed_hashes: from.hashes.clone(),
            current: Commit { hashes: Vec::new(), ..from },
            last_commit: Instant::now(),
            text_bytes: 0,
        })
    }

    /// Writes all batches, and requests a commit at every interval of the options.
    pub(crate) fn write_all(&mut self, batches: &Receiver<EncodedBatch>) -> Result<()> {
        for batch in batches {
            self.write(batch)?;
            if self.last_commit.elapsed() >= self.options.commit_every {
                self.request_commit(false)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, batch: EncodedBatch) -> Result<()> {
        let EncodedBatch { groups, text_bytes, source } = batch;
        if let Some(FileStart { file, texts, skipped }) = source.file_start {
            let before = self.spool.range;
            // Tokens of the documents of this batch that precede the file.
            let lengths = groups.iter().flat_map(|g| &g.lengths).take(texts);
            let spooled = SpoolRange {
                documents: before.documents + texts as u64,
                tokens: before.tokens + lengths.map(|&l| u64::from(l)).sum::<u64>(),
                bad: before.bad + skipped as u64,
            };
            self.current.file_start = SourcePosition { file, items: 0, spooled };
        }
        for group in &groups {
            self.spool.push(group)?;
        }
        for reason in source.skipped {
            (self.report)(PrepareEvent::Message(&format!("skipped: {reason}")));
            self.spool.push_skipped(&reason)?;
        }
        let (file, items) = source.end;
        self.current.position = SourcePosition { file, items, spooled: self.spool.range };
        self.current.hashes.extend(source.hashes);
        self.text_bytes += text_bytes;
        (self.report)(PrepareEvent::Progress(PrepareProgress {
            stage: PrepareStage::Tokenizing,
            documents: self.spool.range.documents,
            text_bytes: self.text_bytes,
            start_bytes: self.start_bytes,
            done_bytes: source.done_bytes,
            total_bytes: self.total_bytes,
        }));
        Ok(())
    }

    /// Requests the final commit, and waits until the request is accepted. After a failure
    /// (`succeeded` is false) it only does so if there is an earlier commit.
    pub(crate) fn request_final_commit(&mut self, succeeded: bool) -> Result<()> {
        if succeeded || self.has_commit { self.request_commit(true) } else { Ok(()) }
    }

    /// Requests a commit of everything written. Without `wait`, the request is dropped if an
    /// earlier one is still pending.
    fn request_commit(&mut self, wait: bool) -> Result<()> {
        let request = CommitRequest { files: self.spool.flush()?, commit: self.current.clone() };
        let sent = if wait {
            self.requests.send(request).map_err(|e| TrySendError::Disconnected(e.0))
        } else {
            self.requests.try_send(request)
        };
        match sent {
            Ok(()) => {
                self.committed_hashes.append(&mut self.current.hashes);
                (self.last_commit, self.has_commit) = (Instant::now(), true);
                Ok(())
            }
            Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => bail!("cannot commit: the commit thread has ended"),
        }
    }

    /// Returns the final position with the hashes of all files. Also disconnects the commit thread,
    /// which then ends.
    pub(crate) fn finish(self) -> Commit {
        Commit { hashes: [self.committed_hashes, self.current.hashes].concat(), ..self.current }
    }
}
