//! From text to a folder of shards.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::manifest::{FORMAT_VERSION, MANIFEST_FILE, Manifest, Source, SplitManifest};
use crate::permutation::split_documents;
use crate::reader::Split;
use crate::recipe::Recipe;
use crate::shards::ShardWriter;
use crate::sources::{self, SourceFile};
use crate::spool::{Spool, SpoolWriter};
use crate::tokenize::Encoder;

/// What to prepare, from what, and how.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Files, folders and globs, in the documents' order.
    pub inputs: Vec<String>,
    /// The folder to write.
    pub output: PathBuf,
    /// How documents become ids.
    pub recipe: Recipe,
    /// The `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// Key or column of the text.
    pub text_column: String,
    /// Share of the documents in validation, above 0 and below 1.
    pub val_fraction: f64,
    /// Seed of the split and the order.
    pub split_seed: u64,
    /// Tokens of a full shard.
    pub shard_tokens: u64,
    /// Tokenising threads; 0 for all cores.
    pub threads: usize,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading text and making ids of it.
    Tokenising,
    /// Writing ids in the split's order.
    Writing,
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// What is being done.
    pub stage: Stage,
    /// Documents done in this stage.
    pub documents: u64,
    /// UTF-8 bytes of text tokenised.
    pub text_bytes: u64,
    /// Of `total_bytes`.
    pub done_bytes: u64,
    /// Bytes to go through in this stage: of source files, or of ids.
    pub total_bytes: u64,
}

/// Reads, tokenises, splits and writes. `progress` hears of each batch of documents.
///
/// # Errors
/// In one sentence with file and place; nothing is left under the final names then.
pub fn prepare(options: &PrepareOptions, progress: &(dyn Fn(&Snapshot) + Sync)) -> Result<Manifest> {
    validate(options)?;
    let files = sources::expand(&options.inputs)?;
    let encoder = Encoder::load(&options.tokenizer, options.recipe)?;
    let workplace = Workplace::open(&options.output)?;
    let result = (|| {
        let spool = tokenise(options, &files, &encoder, &workplace.folder.join("spool"), progress)?;
        let manifest = write_splits(options, &files, &encoder, &workplace.folder, spool, progress)?;
        workplace.publish(&manifest)?;
        Ok(manifest)
    })();
    if result.is_err() {
        workplace.discard();
    }
    result
}

fn validate(options: &PrepareOptions) -> Result<()> {
    let PrepareOptions { val_fraction, shard_tokens, .. } = *options;
    ensure!(
        val_fraction > 0.0 && val_fraction < 1.0,
        "--val-fraction is {val_fraction}: it must be above 0 and below 1"
    );
    ensure!(shard_tokens > 0, "--shard-tokens is 0: a shard holds at least one token");
    Ok(())
}

/// Documents handed from the reading thread to the tokenising ones.
struct Batch {
    texts: Vec<String>,
    /// Source bytes read up to its end.
    done_bytes: u64,
}

/// Text in a batch: enough to keep every thread busy, little enough to hold several.
const BATCH_BYTES: usize = 4 << 20;
/// Batches read ahead.
const AHEAD: usize = 4;

/// Reads all documents on one thread, makes ids on the pool, and spools them in order.
fn tokenise(
    options: &PrepareOptions,
    files: &[SourceFile],
    encoder: &Encoder,
    path: &Path,
    progress: &(dyn Fn(&Snapshot) + Sync),
) -> Result<SpoolWriter> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let total_bytes = files.iter().map(|f| f.bytes).sum();
    let mut spool = SpoolWriter::create(path)?;
    let mut text_bytes = 0;
    let (sender, receiver): (_, Receiver<Batch>) = sync_channel(AHEAD);
    thread::scope(|scope| {
        let reader = scope.spawn(move || read_all(files, &options.text_column, &sender));
        let encode = || -> Result<()> {
            // The loop ends when the reader drops its sender: done, or in error.
            for batch in receiver {
                for ids in pool.install(|| encoder.encode_all(&batch.texts))? {
                    spool.push(&ids)?;
                }
                text_bytes += batch.texts.iter().map(|t| t.len() as u64).sum::<u64>();
                progress(&Snapshot {
                    stage: Stage::Tokenising,
                    documents: spool.documents(),
                    text_bytes,
                    done_bytes: batch.done_bytes,
                    total_bytes,
                });
            }
            Ok(())
        };
        let encoded = encode();
        let read = match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // Where encoding failed, the reader only saw its channel closed.
        encoded.and(read)
    })?;
    ensure!(spool.tokens() > 0, "the corpus is empty: {} documents and no token in them", spool.documents());
    Ok(spool)
}

fn read_all(files: &[SourceFile], text_column: &str, sender: &SyncSender<Batch>) -> Result<()> {
    let (mut texts, mut size, mut before) = (Vec::new(), 0, 0);
    let send = |texts: &mut Vec<String>, done_bytes| {
        sender
            .send(Batch { texts: std::mem::take(texts), done_bytes })
            .map_err(|_| anyhow::anyhow!("the tokenising threads are gone"))
    };
    for file in files {
        file.read(text_column, &mut |text, position| {
            size += text.len();
            texts.push(text);
            if size >= BATCH_BYTES {
                size = 0;
                send(&mut texts, before + position)?;
            }
            Ok(())
        })?;
        before += file.bytes;
    }
    send(&mut texts, before)
}

/// Writes both splits in their permuted order.
fn write_splits(
    options: &PrepareOptions,
    files: &[SourceFile],
    encoder: &Encoder,
    folder: &Path,
    spool: SpoolWriter,
    progress: &(dyn Fn(&Snapshot) + Sync),
) -> Result<Manifest> {
    let (documents, total_bytes) = (spool.documents(), 2 * spool.tokens());
    let spool = spool.finish()?;
    let (train, val) = split_documents(documents as u32, options.val_fraction, options.split_seed);
    let (mut done, mut done_bytes) = (0u64, 0u64);
    let mut write = |split: Split, order: &[u32], spool: &Spool| -> Result<SplitManifest> {
        let mut writer = ShardWriter::new(folder, split, options.shard_tokens);
        for &number in order {
            let ids = spool.document(number);
            writer.push(ids)?;
            (done, done_bytes) = (done + 1, done_bytes + ids.len() as u64);
            if done.is_multiple_of(1024) {
                progress(&Snapshot { stage: Stage::Writing, documents: done, text_bytes: 0, done_bytes, total_bytes });
            }
        }
        writer.finish()
    };
    let val = write(Split::Val, &val, &spool)?;
    let train = write(Split::Train, &train, &spool)?;
    Ok(Manifest {
        format_version: FORMAT_VERSION,
        tokenizer_sha256: encoder.sha256.clone(),
        vocab_size: encoder.vocab_size,
        end_of_text: encoder.end_of_text,
        recipe: options.recipe,
        val_fraction: options.val_fraction,
        split_seed: options.split_seed,
        shard_tokens: options.shard_tokens,
        sources: files.iter().map(|f| Source { path: f.path.display().to_string(), bytes: f.bytes }).collect(),
        train,
        val,
    })
}

/// A hidden folder beside the output's final place, which it takes in one move.
struct Workplace {
    folder: PathBuf,
    output: PathBuf,
    /// On the folder itself; the kernel drops it with the process.
    _lock: File,
}

impl Workplace {
    fn open(output: &Path) -> Result<Self> {
        let cannot = || format!("the output folder {} cannot be made", output.display());
        let name =
            output.file_name().with_context(|| format!("the output {} has no name of its own", output.display()))?;
        if let Ok(mut entries) = fs::read_dir(output) {
            if entries.next().is_some() {
                bail!("the output folder {} already holds files: name another, or remove it first", output.display());
            }
        } else {
            ensure!(!output.exists(), "the output {} is no folder", output.display());
        }
        let folder = output.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        fs::create_dir_all(&folder).with_context(cannot)?;
        let lock = File::open(&folder).with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another process is preparing {} at this moment: wait for it", output.display())
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(cannot),
        }
        // What a killed run left: it is incomplete.
        for entry in fs::read_dir(&folder).with_context(cannot)? {
            fs::remove_file(entry.with_context(cannot)?.path()).with_context(cannot)?;
        }
        Ok(Workplace { folder, output: output.to_owned(), _lock: lock })
    }

    /// Makes the folder complete and gives it its name.
    fn publish(&self, manifest: &Manifest) -> Result<()> {
        let publish = || -> Result<()> {
            fs::remove_file(self.folder.join("spool"))?;
            let path = self.folder.join(MANIFEST_FILE);
            fs::write(&path, serde_json::to_string_pretty(manifest)? + "\n")?;
            File::open(&path)?.sync_all()?;
            File::open(&self.folder)?.sync_all()?;
            fs::rename(&self.folder, &self.output)?;
            let parent = self.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(File::open(parent)?.sync_all()?)
        };
        publish().with_context(|| format!("{} cannot be written", self.output.display()))
    }

    /// Nothing in it can be used.
    fn discard(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
