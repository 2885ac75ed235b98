//! Preparation of token shards from text: options, progress, the two stages, and what makes them
//! resumable (spool, journal, staging directory).

mod document_reader;
mod existing_output;
mod journal;
mod numpy_permutation;
pub(crate) mod options;
pub(crate) mod progress;
mod shard_stage;
mod spool;
mod spooler;
mod staging_dir;
pub(crate) mod throughput;
mod tokenize_stage;

use anyhow::{Result, ensure};

use crate::prepare::existing_output::find_complete_output;
use crate::prepare::journal::Commit;
use crate::prepare::numpy_permutation::num_val_documents;
use crate::prepare::options::PrepareOptions;
use crate::prepare::progress::{OnEvent, PrepareEvent};
use crate::prepare::shard_stage::write_shards;
use crate::prepare::spool::SpoolRange;
use crate::prepare::staging_dir::{PrepareSpec, StagingDir};
use crate::prepare::tokenize_stage::tokenize;
use crate::shards::manifest::{FORMAT_VERSION, Manifest, PrepareSettings, SourceFileRecord};
use crate::sources::{self, SourceFile};
use crate::tokenizer::Encoder;

/// Maximum number of shards. Their names have five digits, so that names sort in shard order.
const MAX_SHARDS: u64 = 100_000;

/// Result of a preparation.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Manifest of the output.
    pub manifest: Manifest,
    /// Whether the output already existed, with the same inputs and settings.
    pub already_complete: bool,
}

/// Reads, tokenizes and splits text, and writes it to shards. Resumes the work of a killed process.
/// Calls `report` after each batch of documents in the first stage, and after each 16 MiB and at
/// the end of each shard in the second.
///
/// # Errors
/// An input is unusable (the error names the file and the position), or the output cannot be
/// written. The output directory then does not exist or is unchanged. Finished work is kept for the
/// next call with the same options, except from standard input and if the whole corpus is unusable.
pub fn prepare(options: &PrepareOptions, report: &OnEvent<'_>) -> Result<Prepared> {
    options.validate()?;
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
    if let Some(manifest) = find_complete_output(&options.output, &settings, &files)? {
        return Ok(Prepared { manifest, already_complete: true });
    }
    let staging = StagingDir::open(&options.output)?;
    staging.publish_if_complete()?;
    if let Some(manifest) = find_complete_output(&options.output, &settings, &files)? {
        return Ok(Prepared { manifest, already_complete: true });
    }
    if let Some(reason) = &encoder.fallback_reason {
        report(PrepareEvent::Message(&format!("using the slower tokenizers crate for this tokenizer: {reason}")));
    }
    let spec = PrepareSpec { settings, files };
    let from = staging.resume_or_create(&spec)?.unwrap_or_default();
    if from != Commit::default() {
        let documents = from.position.spooled.documents;
        report(PrepareEvent::Message(&format!("resuming after {documents} documents of an earlier call")));
    }
    match run_stages(options, &spec, &encoder, &staging, from, report) {
        Ok(manifest) => Ok(Prepared { manifest, already_complete: false }),
        // Standard input cannot be read again, and without progress there is nothing to keep.
        Err(error) if spec.files.iter().any(SourceFile::is_standard_input) || !staging.has_progress() => {
            staging.discard();
            Err(error)
        }
        Err(error) => {
            report(PrepareEvent::Message("finished work is kept: the same command resumes from it"));
            Err(error)
        }
    }
}

/// Runs both stages after the commit `from`, and publishes the output.
fn run_stages(
    options: &PrepareOptions,
    spec: &PrepareSpec,
    encoder: &Encoder,
    staging: &StagingDir,
    from: Commit,
    report: &OnEvent<'_>,
) -> Result<Manifest> {
    let end = tokenize(options, &spec.files, encoder, &staging.dir, from, report)?;
    let spooled = end.position.spooled;
    if let Err(error) = require_usable(options, spooled) {
        // The same call would fail again, so there is nothing to resume.
        staging.discard();
        return Err(error);
    }
    let (train, val) = write_shards(options, &staging.dir, spooled.documents, report)?;
    let record = |(file, hash): (&SourceFile, &Option<String>)| SourceFileRecord {
        path: file.path.display().to_string(),
        bytes: file.bytes,
        sha256: hash.clone(),
    };
    let settings = &spec.settings;
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
        skipped_documents: spooled.bad,
        sources: spec.files.iter().zip(&end.hashes).map(record).collect(),
        train,
        val,
    };
    staging.publish(&manifest)?;
    Ok(manifest)
}

/// Checks that the corpus is not empty, that the train split is not empty, and that there are not
/// too many shards.
fn require_usable(options: &PrepareOptions, spooled: SpoolRange) -> Result<()> {
    let SpoolRange { documents, tokens, .. } = spooled;
    ensure!(tokens > 0, "the corpus is empty: {documents} documents without tokens");
    let PrepareOptions { val_fraction, shard_tokens, .. } = *options;
    ensure!(
        num_val_documents(documents, val_fraction) < documents,
        "the train split would be empty: --val-fraction {val_fraction} puts all {documents} document(s) into validation; use a smaller fraction, or more text"
    );
    let shards = tokens / shard_tokens;
    ensure!(
        shards < MAX_SHARDS,
        "--shard-tokens {shard_tokens} would give {shards} shards: the maximum is {MAX_SHARDS}; use larger shards"
    );
    Ok(())
}
