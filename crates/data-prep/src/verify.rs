//! Shards against their manifest.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::manifest::{MANIFEST_FILE, Manifest, SplitManifest, hex};
use crate::mapped::map_read_only;

/// What a folder of shards was found to hold.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// The manifest that holds.
    pub manifest: Manifest,
    /// The training split.
    pub train: SplitReport,
    /// The validation split.
    pub val: SplitReport,
}

/// What a split was found to hold.
#[derive(Debug, Clone)]
pub struct SplitReport {
    /// End-of-text ids.
    pub ends_of_text: u64,
    /// The ten most frequent ids with their counts, most frequent first.
    pub most_frequent: Vec<(u16, u64)>,
}

/// Reads every shard through: sizes, hashes, ids below the vocabulary.
///
/// # Errors
/// Naming the shard and what is wrong with it.
pub fn verify(folder: &Path) -> Result<VerifyReport> {
    ensure!(folder.is_dir(), "the data folder {} is not there", folder.display());
    let (manifest, _) = Manifest::load(folder)?
        .with_context(|| format!("{} has no {MANIFEST_FILE}: nothing can be verified", folder.display()))?;
    let check = |split: &SplitManifest| verify_split(folder, split, &manifest);
    Ok(VerifyReport { train: check(&manifest.train)?, val: check(&manifest.val)?, manifest })
}

fn verify_split(folder: &Path, split: &SplitManifest, manifest: &Manifest) -> Result<SplitReport> {
    let mut counts = vec![0u64; 1 << 16];
    for shard in &split.shards {
        let path = folder.join(&shard.name);
        let bytes = File::open(&path)
            .and_then(|file| map_read_only(&file))
            .with_context(|| format!("{} cannot be read", path.display()))?;
        ensure!(
            bytes.len() as u64 == 2 * shard.tokens,
            "{} has {} bytes, but {MANIFEST_FILE} says {} tokens of 2 bytes",
            path.display(),
            bytes.len(),
            shard.tokens
        );
        ensure!(
            hex(&Sha256::digest(&bytes)) == shard.sha256,
            "{} is damaged: its SHA-256 is not the one in {MANIFEST_FILE}",
            path.display()
        );
        for (place, pair) in bytes.chunks_exact(2).enumerate() {
            let id = u16::from_le_bytes([pair[0], pair[1]]);
            ensure!(
                u32::from(id) < manifest.vocab_size,
                "{} holds id {id} at token {place}, which is not below the vocabulary of {}",
                path.display(),
                manifest.vocab_size
            );
            counts[usize::from(id)] += 1;
        }
    }
    let mut order: Vec<u16> = (0..=u16::MAX).filter(|&id| counts[usize::from(id)] > 0).collect();
    order.sort_by_key(|&id| (std::cmp::Reverse(counts[usize::from(id)]), id));
    Ok(SplitReport {
        ends_of_text: counts[manifest.end_of_text as usize],
        most_frequent: order.iter().take(10).map(|&id| (id, counts[usize::from(id)])).collect(),
    })
}
