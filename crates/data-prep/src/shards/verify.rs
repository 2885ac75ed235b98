//! Verification of shards against their manifest.

use std::cmp::Reverse;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::shards::manifest::{MANIFEST_FILE, Manifest, SplitManifest};
use crate::shards::mapped_shard::MappedShard;
use crate::tokenizer::recipe::Recipe;

/// Verified contents of a data directory.
#[derive(Debug, Clone)]
pub struct VerifyReport {
    /// Manifest of the directory.
    pub manifest: Manifest,
    /// Contents of the training split.
    pub train: SplitReport,
    /// Contents of the validation split.
    pub val: SplitReport,
}

/// Verified contents of a split.
#[derive(Debug, Clone)]
pub struct SplitReport {
    /// Number of end-of-text ids.
    pub ends_of_text: u64,
    /// The ten most frequent ids with their counts, most frequent first.
    pub most_frequent: Vec<(u16, u64)>,
    /// The first ids of the split.
    pub sample: Vec<u16>,
}

/// Revision of OpenWebText, recognized by its published counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenWebTextRevision {
    /// First revision of the public dataset.
    First,
    /// Later revision, whose validation split is slightly shorter.
    Later,
    /// Same number of documents, but other numbers of tokens than both revisions.
    Neither,
}

impl OpenWebTextRevision {
    const DOCUMENTS: u64 = 8_013_769;
    const TRAIN_TOKENS: u64 = 9_035_582_198;
    const VAL_TOKENS: u64 = 4_434_897;
    /// Validation tokens of the later revision. Its number of training tokens is not known.
    const LATER_VAL_TOKENS: u64 = 4_434_606;

    /// Returns the revision, or `None` if the number of documents is not OpenWebText's.
    pub fn recognize(manifest: &Manifest) -> Option<Self> {
        let (train, val) = (&manifest.train, &manifest.val);
        (train.documents + val.documents == Self::DOCUMENTS).then_some(match (train.tokens, val.tokens) {
            (Self::TRAIN_TOKENS, Self::VAL_TOKENS) => OpenWebTextRevision::First,
            (_, Self::LATER_VAL_TOKENS) => OpenWebTextRevision::Later,
            _ => OpenWebTextRevision::Neither,
        })
    }
}

/// Reads all shards, and checks their sizes, their hashes, and that ids are below the vocabulary
/// size.
///
/// # Errors
/// A shard is missing, damaged, or not listed in the manifest. The error names it.
pub fn verify(dir: &Path) -> Result<VerifyReport> {
    ensure!(dir.is_dir(), "the data directory {} does not exist", dir.display());
    let (manifest, _) =
        Manifest::load(dir)?.with_context(|| format!("cannot verify {}: it has no {MANIFEST_FILE}", dir.display()))?;
    let listed: Vec<&str> = manifest.train.shards.iter().chain(&manifest.val.shards).map(|s| s.name.as_str()).collect();
    for entry in std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let name = entry.with_context(|| format!("cannot read {}", dir.display()))?.file_name();
        let name = name.to_string_lossy();
        let is_shard = name.ends_with(".bin") && (name.starts_with("train-") || name.starts_with("val-"));
        ensure!(
            !is_shard || listed.contains(&name.as_ref()),
            "{} is a shard that is not listed in {MANIFEST_FILE}: delete it",
            dir.join(name.as_ref()).display()
        );
    }
    let check = |split: &SplitManifest| verify_split(dir, split, &manifest);
    Ok(VerifyReport { train: check(&manifest.train)?, val: check(&manifest.val)?, manifest })
}

/// Number of ids in [`SplitReport::sample`].
const SAMPLE_TOKENS: usize = 40;

/// Number of ids in [`SplitReport::most_frequent`].
const NUM_MOST_FREQUENT: usize = 10;

fn verify_split(dir: &Path, split: &SplitManifest, manifest: &Manifest) -> Result<SplitReport> {
    let mut counts = vec![0u64; 1 << 16];
    let mut sample = Vec::new();
    for shard in &split.shards {
        let mapped = MappedShard::open_verified(dir, shard, true)?;
        for (position, id) in mapped.ids(0).enumerate() {
            ensure!(
                u32::from(id) < manifest.vocab_size,
                "{} contains id {id} at token {position}, which is not below the vocabulary of {}",
                dir.join(&shard.name).display(),
                manifest.vocab_size
            );
            counts[usize::from(id)] += 1;
            if sample.len() < SAMPLE_TOKENS {
                sample.push(id);
            }
        }
    }
    let ends_of_text = counts[manifest.end_of_text as usize];
    // With the other recipe, empty documents have no end of text, and a literal one in a text
    // counts.
    ensure!(
        manifest.recipe != Recipe::Nanogpt || ends_of_text == split.documents,
        "{} contains {ends_of_text} ends of text, but {MANIFEST_FILE} lists {} documents",
        dir.display(),
        split.documents
    );
    let mut ids: Vec<u16> = (0..=u16::MAX).filter(|&id| counts[usize::from(id)] > 0).collect();
    ids.sort_by_key(|&id| (Reverse(counts[usize::from(id)]), id));
    Ok(SplitReport {
        ends_of_text,
        sample,
        most_frequent: ids.iter().take(NUM_MOST_FREQUENT).map(|&id| (id, counts[usize::from(id)])).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn openwebtext_is_recognized_by_its_counts() {
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
