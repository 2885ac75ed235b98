//! Shards against their manifest.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::shards::manifest::{MANIFEST_FILE, Manifest, SplitManifest};
use crate::shards::mmap::map_read_only;
use crate::tokenizer::recipe::Recipe;

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
    /// The first ids.
    pub sample: Vec<u16>,
}

/// What is known of the whole of OpenWebText, from the published counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenWebTextRevision {
    /// The first revision of the public dataset.
    First,
    /// A later one, whose validation split is a little shorter.
    Later,
    /// As many documents, other tokens.
    Neither,
}

impl OpenWebTextRevision {
    const DOCUMENTS: u64 = 8_013_769;
    const TRAIN_TOKENS: u64 = 9_035_582_198;
    const VAL_TOKENS: u64 = 4_434_897;
    /// Its count of training tokens was not seen.
    const LATER_VAL_TOKENS: u64 = 4_434_606;

    /// `None` for a corpus of another number of documents.
    pub fn recognize(manifest: &Manifest) -> Option<Self> {
        let (train, val) = (&manifest.train, &manifest.val);
        (train.documents + val.documents == Self::DOCUMENTS).then_some(match (train.tokens, val.tokens) {
            (Self::TRAIN_TOKENS, Self::VAL_TOKENS) => OpenWebTextRevision::First,
            (_, Self::LATER_VAL_TOKENS) => OpenWebTextRevision::Later,
            _ => OpenWebTextRevision::Neither,
        })
    }
}

/// Reads every shard through: sizes, hashes, ids below the vocabulary.
///
/// # Errors
/// Naming the shard and what is wrong with it.
pub fn verify(folder: &Path) -> Result<VerifyReport> {
    ensure!(folder.is_dir(), "the data folder {} is not there", folder.display());
    let (manifest, _) = Manifest::load(folder)?
        .with_context(|| format!("{} has no {MANIFEST_FILE}: nothing can be verified", folder.display()))?;
    let known: Vec<&str> = manifest.train.shards.iter().chain(&manifest.val.shards).map(|s| s.name.as_str()).collect();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{} cannot be read", folder.display()))? {
        let name = entry.with_context(|| format!("{} cannot be read", folder.display()))?.file_name();
        let name = name.to_string_lossy();
        let shard = name.ends_with(".bin") && (name.starts_with("train-") || name.starts_with("val-"));
        ensure!(
            !shard || known.contains(&name.as_ref()),
            "{} is a shard that {MANIFEST_FILE} does not name: remove it",
            folder.join(name.as_ref()).display()
        );
    }
    let check = |split: &SplitManifest| verify_split(folder, split, &manifest);
    Ok(VerifyReport { train: check(&manifest.train)?, val: check(&manifest.val)?, manifest })
}

/// Ids of a split that are shown.
const SAMPLE: usize = 40;

fn verify_split(folder: &Path, split: &SplitManifest, manifest: &Manifest) -> Result<SplitReport> {
    let mut counts = vec![0u64; 1 << 16];
    let mut sample = Vec::new();
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
            if sample.len() < SAMPLE {
                sample.push(id);
            }
        }
    }
    let ends_of_text = counts[manifest.end_of_text as usize];
    // Under the other recipe empty documents have none, and a literal one in a text counts.
    ensure!(
        manifest.recipe != Recipe::Nanogpt || ends_of_text == split.documents,
        "{} holds {ends_of_text} ends of text, but {MANIFEST_FILE} says {} documents",
        folder.display(),
        split.documents
    );
    let mut order: Vec<u16> = (0..=u16::MAX).filter(|&id| counts[usize::from(id)] > 0).collect();
    order.sort_by_key(|&id| (std::cmp::Reverse(counts[usize::from(id)]), id));
    Ok(SplitReport {
        ends_of_text,
        sample,
        most_frequent: order.iter().take(10).map(|&id| (id, counts[usize::from(id)])).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openwebtext_is_recognised_by_its_counts() {
        let manifest = |train_tokens, val_tokens| {
            let split = |documents, tokens| SplitManifest { documents, tokens, shards: Vec::new() };
            Manifest {
                format_version: 1,
                tokenizer_sha256: String::new(),
                vocab_size: 50_257,
                end_of_text: 50_256,
                recipe: Recipe::Backpack,
                text_column: "text".to_owned(),
                val_fraction: 0.0005,
                split_seed: 2357,
                shard_tokens: 100_000_000,
                skip_bad_documents: false,
                skipped_documents: 0,
                sources: Vec::new(),
                train: split(8_009_762, train_tokens),
                val: split(4_007, val_tokens),
            }
        };
        let recognize = |train, val| OpenWebTextRevision::recognize(&manifest(train, val));
        assert_eq!(recognize(9_035_582_198, 4_434_897), Some(OpenWebTextRevision::First));
        assert_eq!(recognize(9_035_000_000, 4_434_606), Some(OpenWebTextRevision::Later));
        assert_eq!(recognize(9_035_582_198, 4_434_898), Some(OpenWebTextRevision::Neither));
        let mut other = manifest(9_035_582_198, 4_434_897);
        other.val.documents += 1;
        assert_eq!(OpenWebTextRevision::recognize(&other), None);
    }
}
