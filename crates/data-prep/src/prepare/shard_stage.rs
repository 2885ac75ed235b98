//! The second stage: both splits out in their permuted order, cut into shards, hashed on the
//! way. Shards are independent of each other: they are written in parallel, each noted when
//! it is on the disk.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::prepare::journal::{self, Journal};
use crate::prepare::numpy_permutation::split_documents;
use crate::prepare::spool::Spool;
use crate::prepare::staging_dir::SHARDS_FILE;
use crate::prepare::{PrepareEvent, PrepareOptions, PrepareProgress, PrepareStage};
use crate::shards::manifest::{Shard, SplitManifest};
use crate::shards::reader::Split;

/// Documents of a split in the order they are written, and where each starts in it.
struct ShardLayout {
    split: Split,
    documents: Vec<u32>,
    /// In tokens; last the end.
    starts: Vec<u64>,
}

impl ShardLayout {
    fn new(split: Split, documents: Vec<u32>, spool: &Spool) -> Self {
        let mut starts = Vec::with_capacity(documents.len() + 1);
        let mut end = 0;
        starts.push(end);
        for &document in &documents {
            end += spool.tokens(document);
            starts.push(end);
        }
        ShardLayout { split, documents, starts }
    }

    fn tokens(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0)
    }
}

/// Counts over all threads.
struct ShardProgress<'a> {
    report: &'a (dyn Fn(PrepareEvent<'_>) + Sync),
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

/// Writes train and val shards from the finished spool; those that an earlier process
/// finished are left as they are.
///
/// # Errors
/// Naming the file that cannot be written; finished shards stay.
pub(crate) fn place(
    options: &PrepareOptions,
    folder: &Path,
    documents: u64,
    report: &(dyn Fn(PrepareEvent<'_>) + Sync),
) -> Result<(SplitManifest, SplitManifest)> {
    // numpy's permutation is drawn from 32-bit numbers here.
    let documents = u32::try_from(documents).with_context(|| format!("there are more than {} documents", u32::MAX))?;
    let spool = Spool::open(folder)?;
    let (train, val) = split_documents(documents, options.val_fraction, options.split_seed);
    let layouts = [ShardLayout::new(Split::Val, val, &spool), ShardLayout::new(Split::Train, train, &spool)];
    let path = folder.join(SHARDS_FILE);
    let finished: Vec<Shard> = journal::read(&path);
    let journal = Mutex::new(Journal::rewrite(&path, &finished)?);
    let finished: HashMap<&str, &Shard> = finished.iter().map(|s| (s.name.as_str(), s)).collect();
    let progress = ShardProgress {
        report,
        documents: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        total_bytes: 2 * layouts.iter().map(ShardLayout::tokens).sum::<u64>(),
    };
    let write = |layout: &ShardLayout, number: u64| -> Result<Shard> {
        let name = format!("{}-{number:05}.bin", layout.split);
        let first = number * options.shard_tokens;
        let last = layout.tokens().min(first + options.shard_tokens);
        if let Some(shard) = finished.get(name.as_str()) {
            progress.add(0, 2 * (last - first));
            return Ok((*shard).clone());
        }
        let sha256 = write_shard(&folder.join(&name), layout, first, last, &spool, &progress)?;
        let shard = Shard { name, tokens: last - first, sha256 };
        journal.lock().map_err(|_| anyhow!("a writing thread failed"))?.append(&shard)?;
        Ok(shard)
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(options.threads).build()?;
    let manifests = pool.install(|| -> Result<Vec<SplitManifest>> {
        let write_split = |layout: &ShardLayout| -> Result<SplitManifest> {
            let shards = layout.tokens().div_ceil(options.shard_tokens);
            let shards = (0..shards).into_par_iter().map(|number| write(layout, number)).collect::<Result<_>>()?;
            Ok(SplitManifest { documents: layout.documents.len() as u64, tokens: layout.tokens(), shards })
        };
        layouts.par_iter().map(write_split).collect()
    })?;
    let [val, train] = <[SplitManifest; 2]>::try_from(manifests).map_err(|_| anyhow!("there are two splits"))?;
    Ok((train, val))
}

/// Tokens `first .. last` of a split into a file. Gives its SHA-256.
fn write_shard(
    path: &Path,
    layout: &ShardLayout,
    first: u64,
    last: u64,
    spool: &Spool,
    progress: &ShardProgress,
) -> Result<String> {
    let cannot = || format!("{} cannot be written", path.display());
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).with_context(cannot)?);
    let mut hasher = Sha256::new();
    let mut ids = Vec::new();
    let (mut documents, mut bytes) = (0, 0);
    // The document that holds `first`: the last one that begins at or before it. (Empty
    // documents begin where the next one does.)
    let mut place = layout.starts.partition_point(|&start| start <= first).saturating_sub(1);
    let mut at = first;
    while at < last {
        let (start, end) = (layout.starts[place], layout.starts[place + 1]);
        let count = end.min(last) - at;
        spool.read(layout.documents[place], at - start, count, &mut ids)?;
        hasher.update(&ids);
        file.write_all(&ids).with_context(cannot)?;
        at += count;
        place += 1;
        (documents, bytes) = (documents + 1, bytes + 2 * count);
        if bytes >= 16 << 20 {
            progress.add(documents, bytes);
            (documents, bytes) = (0, 0);
        }
    }
    let file = file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(cannot)?;
    file.sync_all().with_context(cannot)?;
    progress.add(documents, bytes);
    Ok(hex(&hasher.finalize()))
}
