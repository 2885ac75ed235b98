//! The first stage: text in, ids in source order out to the spool. One thread reads, the
//! pool tokenises, one thread writes; every few seconds what is on the disk is noted in the
//! journal.

use std::fs::File;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::prepare::journal::{Commit, Journal, SourcePosition};
use crate::prepare::spool::{SpoolRange, SpoolWriter};
use crate::prepare::staging_dir::COMMITS_FILE;
use crate::prepare::{PrepareEvent, PrepareOptions, PrepareProgress, PrepareStage};
use crate::sources::{Item, SourceFile};
use crate::tokenizer::{Encoded, Encoder};

/// Text in a batch: enough to keep every thread busy, little enough to hold several.
const BATCH_BYTES: usize = 4 << 20;
/// Batches waiting between two threads.
const AHEAD: usize = 3;

/// What the reading thread hands on.
#[derive(Default)]
struct DocumentBatch {
    texts: Vec<String>,
    /// Documents that were left out, as sentences.
    bad: Vec<String>,
    /// The last file that begins in this batch, and how many texts and bad ones precede it.
    begins: Option<(usize, usize, usize)>,
    /// Of the files that end in this batch.
    hashes: Vec<Option<String>>,
    /// File and item up to which it goes.
    end: (usize, u64),
    /// Source bytes read up to its end.
    done_bytes: u64,
}

/// What is written, to be noted when it is on the disk.
struct CommitRequest {
    files: [File; 3],
    commit: Commit,
}

/// A batch as ids, in groups of documents.
struct EncodedBatch {
    groups: Vec<Encoded>,
    text_bytes: u64,
    rest: DocumentBatch,
}

/// Reads `files` from `from` on. Gives where it ends, with the hashes of all files.
///
/// # Errors
/// In one sentence with file and place; what was spooled before is noted in the journal.
pub(crate) fn ingest(
    options: &PrepareOptions,
    files: &[SourceFile],
    encoder: &Encoder,
    folder: &Path,
    from: Commit,
    report: &(dyn Fn(PrepareEvent<'_>) + Sync),
) -> Result<Commit> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let known = Some(&from).filter(|c| **c != Commit::default());
    let journal = Journal::rewrite(&folder.join(COMMITS_FILE), known.as_slice())?;
    let (to_encoder, batches) = sync_channel(AHEAD);
    let (to_writer, encoded) = sync_channel(AHEAD);
    let (to_disk, notes) = sync_channel(1);
    let mut writer = OrderedSpooler::open(options, files, folder, from.clone(), to_disk, report)?;
    thread::scope(|scope| {
        let reader = scope.spawn(move || DocumentReader::new(options, files, to_encoder).read(from.position));
        let encoding = scope.spawn(move || encode(&pool, encoder, &batches, &to_writer));
        let committing = scope.spawn(move || commit(&notes, journal));
        let written = writer.take(&encoded);
        // A sender that finds its receiver gone stops; so on an error all end.
        drop(encoded);
        let (read, encoding) = (join(reader), join(encoding));
        // The error that stopped the others, not theirs.
        let result = written.and(encoding).and(read);
        // What was read before an error is good too: worth a note where there is work in it.
        let noted = if result.is_ok() || writer.noted { writer.note(true) } else { Ok(()) };
        let done = writer.done();
        join(committing).and(result)?;
        noted?;
        Ok(done)
    })
}

/// Notes how far the spool is, each time once it is on the disk.
fn commit(notes: &Receiver<CommitRequest>, mut journal: Journal) -> Result<()> {
    for CommitRequest { files, commit } in notes {
        for file in &files {
            file.sync_data().context("the spool cannot be written")?;
        }
        journal.append(&commit)?;
    }
    Ok(())
}

fn join(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn encode(
    pool: &rayon::ThreadPool,
    encoder: &Encoder,
    batches: &Receiver<DocumentBatch>,
    writer: &SyncSender<EncodedBatch>,
) -> Result<()> {
    for mut batch in batches {
        let texts = std::mem::take(&mut batch.texts);
        let text_bytes = texts.iter().map(|t| t.len() as u64).sum();
        let groups = pool.install(|| encoder.encode_all(&texts))?;
        if writer.send(EncodedBatch { groups, text_bytes, rest: batch }).is_err() {
            break; // it has failed and says why
        }
    }
    Ok(())
}

struct DocumentReader<'a> {
    options: &'a PrepareOptions,
    files: &'a [SourceFile],
    sender: SyncSender<DocumentBatch>,
    batch: DocumentBatch,
    size: usize,
}

impl<'a> DocumentReader<'a> {
    fn new(options: &'a PrepareOptions, files: &'a [SourceFile], sender: SyncSender<DocumentBatch>) -> Self {
        DocumentReader { options, files, sender, batch: DocumentBatch::default(), size: 0 }
    }

    fn read(mut self, from: SourcePosition) -> Result<()> {
        self.batch.end = (from.file, from.items);
        let result = self.read_files(from);
        // Also in error: what was read before it is good.
        let sent = self.send();
        result?;
        // The encoder went away: it has failed and says why.
        let _ = sent;
        Ok(())
    }

    fn read_files(&mut self, from: SourcePosition) -> Result<()> {
        let files = self.files;
        let mut before: u64 = files[..from.file].iter().map(|f| f.bytes).sum();
        for (number, file) in files.iter().enumerate().skip(from.file) {
            let skip = if number == from.file { from.items } else { 0 };
            if skip == 0 {
                self.batch.begins = Some((number, self.batch.texts.len(), self.batch.bad.len()));
            }
            self.batch.end = (number, skip);
            if self.read_file(file, skip, before)?.is_break() {
                return Ok(());
            }
            before += file.bytes;
            self.batch.end = (number + 1, 0);
            self.batch.done_bytes = before;
        }
        Ok(())
    }

    fn read_file(&mut self, file: &SourceFile, skip: u64, before: u64) -> Result<ControlFlow<()>> {
        let skip_bad = self.options.skip_bad_documents;
        let mut failure = None;
        let mut gone = false;
        let result = file.read(&self.options.text_column, skip, &mut |item, position| {
            match item {
                Item::Text(text) => {
                    self.size += text.len();
                    self.batch.texts.push(text);
                }
                Item::Bad(why) if skip_bad => self.batch.bad.push(format!("{why:#}")),
                Item::Bad(why) => {
                    failure = Some(why);
                    return ControlFlow::Break(());
                }
            }
            self.batch.end.1 += 1;
            self.batch.done_bytes = before + position;
            if self.size >= BATCH_BYTES && self.send().is_err() {
                gone = true;
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        if let Some(why) = failure {
            return Err(why.context("a document cannot be used (--skip-bad-documents leaves such out)"));
        }
        if gone {
            return Ok(ControlFlow::Break(()));
        }
        let hash = match result {
            Ok(()) if file.is_standard_input() => None,
            Ok(()) => {
                let hash = file.sha256()?;
                file.require_unchanged()?;
                Some(hash)
            }
            Err(why) if skip_bad => {
                self.batch.bad.push(format!("{why:#}; the rest of the file is left out"));
                file.sha256().ok()
            }
            Err(why) => return Err(why),
        };
        self.batch.hashes.push(hash);
        Ok(ControlFlow::Continue(()))
    }

    fn send(&mut self) -> Result<()> {
        self.size = 0;
        let next = DocumentBatch { end: self.batch.end, done_bytes: self.batch.done_bytes, ..DocumentBatch::default() };
        let batch = std::mem::replace(&mut self.batch, next);
        self.sender.send(batch).map_err(|_| anyhow!("the tokenising thread is gone"))
    }
}

/// Writes the spool and says how far it is.
struct OrderedSpooler<'a> {
    options: &'a PrepareOptions,
    report: &'a (dyn Fn(PrepareEvent<'_>) + Sync),
    spool: SpoolWriter,
    to_disk: SyncSender<CommitRequest>,
    /// Up to what is written, with the hashes not yet noted.
    at: Commit,
    /// Hashes that are.
    hashes: Vec<Option<String>>,
    /// Whether there is a note to go on from.
    noted: bool,
    last_note: Instant,
    text_bytes: u64,
    start_bytes: u64,
    total_bytes: u64,
}

impl<'a> OrderedSpooler<'a> {
    fn open(
        options: &'a PrepareOptions,
        files: &[SourceFile],
        folder: &Path,
        from: Commit,
        to_disk: SyncSender<CommitRequest>,
        report: &'a (dyn Fn(PrepareEvent<'_>) + Sync),
    ) -> Result<Self> {
        Ok(OrderedSpooler {
            options,
            report,
            spool: SpoolWriter::open(folder, from.position.spooled)?,
            to_disk,
            noted: from != Commit::default(),
            start_bytes: files[..from.position.file].iter().map(|f| f.bytes).sum(),
            total_bytes: files.iter().map(|f| f.bytes).sum(),
            hashes: from.hashes.clone(),
            at: Commit { hashes: Vec::new(), ..from },
            last_note: Instant::now(),
            text_bytes: 0,
        })
    }

    fn take(&mut self, batches: &Receiver<EncodedBatch>) -> Result<()> {
        for EncodedBatch { groups, text_bytes, rest } in batches {
            if let Some((file, texts, bad)) = rest.begins {
                let before = self.spool.extent;
                // Tokens of the documents before it: groups hold several.
                let lengths = groups.iter().flat_map(|g| &g.lengths).take(texts);
                let spooled = SpoolRange {
                    documents: before.documents + texts as u64,
                    tokens: before.tokens + lengths.map(|&l| u64::from(l)).sum::<u64>(),
                    bad: before.bad + bad as u64,
                };
                self.at.file_start = SourcePosition { file, items: 0, spooled };
            }
            for group in &groups {
                self.spool.push(group)?;
            }
            for why in rest.bad {
                (self.report)(PrepareEvent::Message(&format!("left out: {why}")));
                self.spool.push_bad(&why)?;
            }
            let (file, items) = rest.end;
            self.at.position = SourcePosition { file, items, spooled: self.spool.extent };
            self.at.hashes.extend(rest.hashes);
            self.text_bytes += text_bytes;
            (self.report)(PrepareEvent::Progress(PrepareProgress {
                stage: PrepareStage::Tokenizing,
                documents: self.spool.extent.documents,
                text_bytes: self.text_bytes,
                start_bytes: self.start_bytes,
                done_bytes: rest.done_bytes,
                total_bytes: self.total_bytes,
            }));
            if self.last_note.elapsed() >= self.options.commit_every {
                self.note(false)?;
            }
        }
        Ok(())
    }

    /// Has what is written noted; without `wait` not where the note before is still on its
    /// way to the disk.
    fn note(&mut self, wait: bool) -> Result<()> {
        let note = CommitRequest { files: self.spool.flush()?, commit: self.at.clone() };
        let sent = if wait {
            self.to_disk.send(note).map_err(|e| TrySendError::Disconnected(e.0))
        } else {
            self.to_disk.try_send(note)
        };
        match sent {
            Ok(()) => {
                self.hashes.append(&mut self.at.hashes);
                (self.last_note, self.noted) = (Instant::now(), true);
                Ok(())
            }
            Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Disconnected(_)) => bail!("the progress cannot be noted"),
        }
    }

    /// Where it ended. The committing thread ends too, since no note can follow.
    fn done(self) -> Commit {
        Commit { hashes: [self.hashes, self.at.hashes].concat(), ..self.at }
    }
}
