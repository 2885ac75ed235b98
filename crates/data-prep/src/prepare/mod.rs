//! From text to a folder of shards.

pub(crate) mod journal;
pub(crate) mod numpy_permutation;
pub(crate) mod shard_stage;
pub(crate) mod spool;
pub(crate) mod staging_dir;
pub(crate) mod throughput;
pub(crate) mod tokenize_stage;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::prepare::journal::Commit;
use crate::prepare::numpy_permutation::validation_documents;
use crate::prepare::shard_stage::place;
use crate::prepare::spool::SpoolRange;
use crate::prepare::staging_dir::{PrepareSettings, PrepareSpec, StagingDir};
use crate::prepare::tokenize_stage::ingest;
use crate::shards::manifest::{FORMAT_VERSION, MANIFEST_FILE, Manifest, SourceFileRecord};
use crate::sources::{self, SourceFile};
use crate::tokenizer::Encoder;
use crate::tokenizer::recipe::Recipe;

/// What to prepare, from what, and how.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// Files, folders and globs, in the documents' order; `-` for standard input.
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
    /// Leave documents out that cannot be used, and the rest of files that cannot be read.
    pub skip_bad_documents: bool,
    /// Threads; 0 for all cores.
    pub threads: usize,
    /// Between notes of how far it is, from which a killed preparation goes on.
    pub commit_every: Duration,
}

/// What is being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrepareStage {
    /// Reading text and making ids of it.
    Tokenizing,
    /// Writing ids in the split's order.
    Writing,
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct PrepareProgress {
    /// What is being done.
    pub stage: PrepareStage,
    /// Documents done in this stage.
    pub documents: u64,
    /// UTF-8 bytes of text tokenised by this process.
    pub text_bytes: u64,
    /// Of `total_bytes`, where this process began.
    pub start_bytes: u64,
    /// Of `total_bytes`.
    pub done_bytes: u64,
    /// Bytes to go through in this stage: of source files, or of ids.
    pub total_bytes: u64,
}

/// What a preparation tells while it runs.
#[derive(Debug, Clone, Copy)]
pub enum PrepareEvent<'a> {
    /// How far it is.
    Progress(PrepareProgress),
    /// Something to be read.
    Message(&'a str),
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Of the finished folder.
    pub manifest: Manifest,
    /// It was there already, made from the same inputs by the same arguments.
    pub already_complete: bool,
}

/// Reads, tokenises, splits and writes; goes on with what a killed process left. `report`
/// hears of each batch of documents.
///
/// # Errors
/// In one sentence with file and place. Nothing stands under the final name then; what was
/// done is kept for the next call with the same arguments.
pub fn prepare(options: &PrepareOptions, report: &(dyn Fn(PrepareEvent<'_>) + Sync)) -> Result<Prepared> {
    validate(options)?;
    let threads = if options.threads == 0 { rayon::current_num_threads() } else { options.threads };
    let options = &PrepareOptions { threads, ..options.clone() };
    let files = sources::expand(&options.inputs, options.skip_bad_documents)?;
    let encoder = Encoder::load(&options.tokenizer, options.recipe, threads)?;
    let settings = PrepareSettings {
        recipe: options.recipe,
        tokenizer_sha256: encoder.sha256.clone(),
        text_column: options.text_column.clone(),
        val_fraction: options.val_fraction,
        split_seed: options.split_seed,
        shard_tokens: options.shard_tokens,
        skip_bad_documents: options.skip_bad_documents,
    };
    if let Some(manifest) = finished(&options.output, &settings, &files)? {
        return Ok(Prepared { manifest, already_complete: true });
    }
    let workplace = StagingDir::open(&options.output)?;
    workplace.publish_if_complete()?;
    if let Some(manifest) = finished(&options.output, &settings, &files)? {
        return Ok(Prepared { manifest, already_complete: true });
    }
    if let Some(why) = &encoder.slow_because {
        report(PrepareEvent::Message(&format!("this tokenizer takes the slow path ({why})")));
    }
    let plan = PrepareSpec { settings, files };
    let from = workplace.take_up(&plan)?.unwrap_or_default();
    if from != Commit::default() {
        report(PrepareEvent::Message(&format!(
            "going on after {} documents, as an earlier call left it",
            from.position.spooled.documents
        )));
    }
    let once = plan.files.iter().any(SourceFile::is_standard_input);
    let read = ingest(options, &plan.files, &encoder, &workplace.folder, from, report);
    let read = read.and_then(|read| match require_output(options, read.position.spooled) {
        Ok(()) => Ok(read),
        Err(why) => {
            // The same again would end the same.
            workplace.discard();
            Err(why)
        }
    });
    match read.and_then(|read| make(options, &plan, &encoder, &workplace, &read, report)) {
        Ok(manifest) => Ok(Prepared { manifest, already_complete: false }),
        // Standard input cannot be read again, and a first mistake leaves nothing to keep.
        Err(why) if once || !workplace.holds_work() => {
            workplace.discard();
            Err(why)
        }
        Err(why) => {
            report(PrepareEvent::Message("what was done is kept: the same command goes on from there"));
            Err(why)
        }
    }
}

/// Largest accepted number of CPU threads: more than any machine has cores.
pub const MAX_THREADS: usize = 4_096;

/// Shards that names of five digits keep in their order.
const MAX_SHARDS: u64 = 100_000;

fn validate(options: &PrepareOptions) -> Result<()> {
    let PrepareOptions { val_fraction, shard_tokens, .. } = *options;
    ensure!(
        val_fraction > 0.0 && val_fraction < 1.0,
        "--val-fraction is {val_fraction}: it must be above 0 and below 1"
    );
    ensure!(shard_tokens > 0, "--shard-tokens is 0: a shard holds at least one token");
    ensure!(
        options.threads <= MAX_THREADS,
        "--threads is {}: at most {MAX_THREADS} are possible, and 0 means all cores",
        options.threads
    );
    Ok(())
}

/// Refuses a corpus of which nothing usable would come.
fn require_output(options: &PrepareOptions, spooled: SpoolRange) -> Result<()> {
    let SpoolRange { documents, tokens, .. } = spooled;
    ensure!(tokens > 0, "the corpus is empty: {documents} documents and no token in them");
    let PrepareOptions { val_fraction, shard_tokens, .. } = *options;
    ensure!(
        validation_documents(documents, val_fraction) < documents,
        "the train split would be empty: all {documents} document(s) go to validation at --val-fraction {val_fraction}; prepare more text or lower it"
    );
    ensure!(
        tokens / shard_tokens < MAX_SHARDS,
        "--shard-tokens {shard_tokens} would make {} shards: at most {MAX_SHARDS} keep their order by name; use larger ones",
        tokens / shard_tokens
    );
    Ok(())
}

fn make(
    options: &PrepareOptions,
    plan: &PrepareSpec,
    encoder: &Encoder,
    workplace: &StagingDir,
    read: &Commit,
    report: &(dyn Fn(PrepareEvent<'_>) + Sync),
) -> Result<Manifest> {
    let (train, val) = place(options, &workplace.folder, read.position.spooled.documents, report)?;
    let source = |(file, hash): (&SourceFile, &Option<String>)| SourceFileRecord {
        path: file.path.display().to_string(),
        bytes: file.bytes,
        sha256: hash.clone(),
    };
    let settings = &plan.settings;
    let manifest = Manifest {
        format_version: FORMAT_VERSION,
        tokenizer_sha256: settings.tokenizer_sha256.clone(),
        vocab_size: encoder.vocab_size,
        end_of_text: encoder.end_of_text,
        recipe: settings.recipe,
        text_column: settings.text_column.clone(),
        val_fraction: settings.val_fraction,
        split_seed: settings.split_seed,
        shard_tokens: settings.shard_tokens,
        skip_bad_documents: settings.skip_bad_documents,
        skipped_documents: read.position.spooled.bad,
        sources: plan.files.iter().zip(&read.hashes).map(source).collect(),
        train,
        val,
    };
    workplace.publish(&manifest)?;
    Ok(manifest)
}

/// The manifest of an output that is there already and is what would come out; `None` where
/// nothing is there.
///
/// # Errors
/// When something else is there.
fn finished(output: &Path, settings: &PrepareSettings, files: &[SourceFile]) -> Result<Option<Manifest>> {
    if !output.is_dir() {
        ensure!(!output.exists(), "the output {} is no folder", output.display());
        return Ok(None);
    }
    let mut entries = std::fs::read_dir(output).with_context(|| format!("{} cannot be read", output.display()))?;
    if entries.next().is_none() {
        return Ok(None);
    }
    let occupied = |why: &str| {
        format!("the output folder {} already holds files ({why}): name another, or remove it first", output.display())
    };
    let Some((manifest, _)) = Manifest::load(output)? else { bail!(occupied(&format!("no {MANIFEST_FILE}"))) };
    if let Some(difference) = settings.difference(&manifest.settings())? {
        bail!(occupied(&difference));
    }
    let same_files = manifest.sources.len() == files.len()
        && manifest.sources.iter().zip(files).all(|(source, file)| {
            !file.is_standard_input()
                && Path::new(&source.path) == file.path
                && source.bytes == file.bytes
                && source.sha256 == file.sha256().ok()
        });
    ensure!(same_files, occupied("shards of other inputs"));
    for shard in manifest.train.shards.iter().chain(&manifest.val.shards) {
        let size = std::fs::metadata(output.join(&shard.name)).map_or(0, |m| m.len());
        ensure!(size == 2 * shard.tokens, occupied(&format!("{} is not what {MANIFEST_FILE} says", shard.name)));
    }
    Ok(Some(manifest))
}
