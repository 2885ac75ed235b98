//! First stage of a preparation: tokenizes the source files into the spool, in source order.
//!
//! One thread reads, a thread pool tokenizes, one thread writes the spool, and one thread commits
//! what is on disk to the journal.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result};

use crate::prepare::document_reader::{DocumentBatch, DocumentReader};
use crate::prepare::journal::{Commit, Journal};
use crate::prepare::options::PrepareOptions;
use crate::prepare::progress::OnEvent;
use crate::prepare::spooler::{CommitRequest, EncodedBatch, Spooler};
use crate::prepare::staging_dir::COMMITS_FILE;
use crate::sources::SourceFile;
use crate::tokenizer::Encoder;

/// Batches that wait between two threads.
const QUEUE_DEPTH: usize = 3;

/// Tokenizes everything in `files` after the commit `from` into the spool in `dir`. Returns the
/// final position, with the hashes of all files.
///
/// # Errors
/// A file cannot be read, or a document is malformed. The error names the file and the position.
/// Everything before it is committed if there was an earlier commit.
pub(crate) fn tokenize(
    options: &PrepareOptions,
    files: &[SourceFile],
    encoder: &Encoder,
    dir: &Path,
    from: Commit,
    report: &OnEvent<'_>,
) -> Result<Commit> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let resumed = Some(&from).filter(|commit| **commit != Commit::default());
    let journal = Journal::rewrite(&dir.join(COMMITS_FILE), resumed.as_slice())?;
    let (to_encoder, batches) = sync_channel(QUEUE_DEPTH);
    let (to_spooler, encoded) = sync_channel(QUEUE_DEPTH);
    let (to_committer, requests) = sync_channel(1);
    let mut spooler = Spooler::open(options, files, dir, from.clone(), to_committer, report)?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || DocumentReader::new(options, files, to_encoder).read(from.position));
        let encoder = scope.spawn(move || encode(&pool, encoder, &batches, &to_spooler));
        let committer = scope.spawn(move || commit(&requests, journal));
        let written = spooler.write_all(&encoded);
        // A thread ends when its channel is disconnected, so an error ends all threads.
        drop(encoded);
        let (read, encoded) = (join(reader), join(encoder));
        // The last thread in the pipeline that failed has the cause: it disconnected the others.
        let result = written.and(encoded).and(read);
        let committed = spooler.request_final_commit(result.is_ok());
        let end = spooler.finish();
        join(committer).and(result)?;
        committed?;
        Ok(end)
    })
}

/// Tokenizes batches on `pool`.
fn encode(
    pool: &rayon::ThreadPool,
    encoder: &Encoder,
    batches: &Receiver<DocumentBatch>,
    spooler: &SyncSender<EncodedBatch>,
) -> Result<()> {
    for mut batch in batches {
        let texts = std::mem::take(&mut batch.texts);
        let text_bytes = texts.iter().map(|t| t.len() as u64).sum();
        let groups = pool.install(|| encoder.encode_all(&texts))?;
        if spooler.send(EncodedBatch { groups, text_bytes, source: batch }).is_err() {
            break; // the spooler has failed and returns its own error
        }
    }
    Ok(())
}

/// Appends each commit to the journal once its files are on disk.
fn commit(requests: &Receiver<CommitRequest>, mut journal: Journal) -> Result<()> {
    for CommitRequest { files, commit } in requests {
        for file in &files {
            file.sync_data().context("cannot write the spool")?;
        }
        journal.append(&commit)?;
    }
    Ok(())
}

fn join(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
