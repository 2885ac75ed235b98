//! Second stage of a preparation: writes both splits to shards, in permuted order.
//!
//! Shards are written in parallel and hashed while they are written. Each is recorded in the
//! journal once it is on disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::fs::{parent, sync_dir};
use crate::hash::hex;
use crate::prepare::journal::{self, Journal};
use crate::prepare::numpy_permutation::split_documents;
use crate::prepare::options::PrepareOptions;
use crate::prepare::progress::{OnEvent, PrepareEvent, PrepareProgress, PrepareStage};
use crate::prepare::spool::Spool;
use crate::prepare::staging_dir::SHARDS_FILE;
use crate::shards::manifest::{Shard, SplitManifest};
use crate::shards::split::Split;

/// Documents of a split in written order, and the start of each.
struct ShardLayout {
    split: Split,
    documents: Vec<u32>,
    /// First token of each document, followed by the total number of tokens.
    starts: Vec<u64>,
}

impl ShardLayout {
    fn new(split: Split, documents: Vec<u32>, spool: &Spool) -> Self {
        let mut starts = Vec::with_capacity(documents.len() + 1);
        let mut end = 0;
        starts.push(end);
        for &document in &documents {
            end += spool.num_tokens(document);
            starts.push(end);
        }
        ShardLayout { split, documents, starts }
    }

    fn num_tokens(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

/// Progress of all writing threads.
struct ShardProgress<'a> {
    report: &'a OnEvent<'a>,
    documents: AtomicU64,
    bytes: AtomicU64,
    total_bytes: u64,
}

impl ShardProgress<'_> {
    fn add(&self, documents: u64, bytes: u64) {
        let documents = self.documents.fetch_add(documents, Ordering::Relaxed) + documents;
        let done_bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.report)(PrepareEvent::Progress(PrepareProgress {
            stage: PrepareStage::Writing,
            documents,
            text_bytes: 0,
            start_bytes: 0,
            done_bytes,
            total_bytes: self.total_bytes,
        }));
    }
}

/// Writes the shards of the finished spool in the staging directory `dir`. Returns the train and
/// the validation split. Shards that an earlier process finished are not written again.
///
/// # Errors
/// A shard cannot be written; the error names it. Finished shards are kept.
pub(crate) fn write_shards(
    options: &PrepareOptions,
    dir: &Path,
    documents: u64,
    report: &OnEvent<'_>,
) -> Result<(SplitManifest, SplitManifest)> {
    // The permutation implements numpy's algorithm for 32-bit bounds.
    let documents =
        u32::try_from(documents).with_context(|| format!("the corpus has more than {} documents", u32::MAX))?;
    let spool = Spool::open(dir)?;
    let (train, val) = split_documents(documents, options.val_fraction, options.split_seed);
    let layouts = [ShardLayout::new(Split::Val, val, &spool), ShardLayout::new(Split::Train, train, &spool)];
    let path = dir.join(SHARDS_FILE);
    let finished: Vec<Shard> = journal::read(&path);
    let journal = Mutex::new(Journal::rewrite(&path, &finished)?);
    let finished: HashMap<&str, &Shard> = finished.iter().map(|s| (s.name.as_str(), s)).collect();
    let progress = ShardProgress {
        report,
        documents: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        total_bytes: 2 * layouts.iter().map(ShardLayout::num_tokens).sum::<u64>(),
    };
    let write = |layout: &ShardLayout, number: u64| -> Result<Shard> {
        let name = format!("{}-{number:05}.bin", layout.split);
        let first = number * options.shard_tokens;
        let last = layout.num_tokens().min(first + options.shard_tokens);
        if let Some(shard) = finished.get(name.as_str()) {
            progress.add(0, 2 * (last - first));
            return Ok((*shard).clone());
        }
        let sha256 = write_shard(&dir.join(&name), layout, first, last, &spool, &progress)?;
        let shard = Shard { name, tokens: last - first, sha256 };
        journal.lock().map_err(|_| anyhow!("another thread failed to write a shard"))?.append(&shard)?;
        Ok(shard)
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let manifests = pool.install(|| -> Result<Vec<SplitManifest>> {
        let write_split = |layout: &ShardLayout| -> Result<SplitManifest> {
            let shards = layout.num_tokens().div_ceil(options.shard_tokens);
            let shards = (0..shards).into_par_iter().map(|number| write(layout, number)).collect::<Result<_>>()?;
            Ok(SplitManifest { documents: layout.documents.len() as u64, tokens: layout.num_tokens(), shards })
        };
        layouts.par_iter().map(write_split).collect()
    })?;
    let [val, train] = <[SplitManifest; 2]>::try_from(manifests).map_err(|_| anyhow!("expected two splits"))?;
    Ok((train, val))
}

/// Writes the tokens `first..last` of a split to the file `path`. Returns its SHA-256.
fn write_shard(
    path: &Path,
    layout: &ShardLayout,
    first: u64,
    last: u64,
    spool: &Spool,
    progress: &ShardProgress,
) -> Result<String> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(failed)?);
    let mut hasher = Sha256::new();
    let mut ids = Vec::new();
    let (mut documents, mut bytes) = (0, 0);
    // The last document that starts at or before `first` contains it. (An empty document has the
    // same start as the next one.)
    let mut index = layout.starts.partition_point(|&start| start <= first).saturating_sub(1);
    let mut at = first;
    while at < last {
        let (start, end) = (layout.starts[index], layout.starts[index + 1]);
        let count = end.min(last) - at;
        spool.read(layout.documents[index], at - start, count, &mut ids)?;
        hasher.update(&ids);
        file.write_all(&ids).with_context(failed)?;
        at += count;
        index += 1;
        (documents, bytes) = (documents + 1, bytes + 2 * count);
        if bytes >= 16 << 20 {
            progress.add(documents, bytes);
            (documents, bytes) = (0, 0);
        }
    }
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(failed)?;
    file.sync_all().and_then(|()| sync_dir(&parent(path))).with_context(failed)?;
    progress.add(documents, bytes);
    Ok(hex(&hasher.finalize()))
}
