//! `manifest.json`: the contents of a data directory and the settings that produced it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::tokenizer::recipe::Recipe;

/// File name of the manifest in a data directory.
pub(crate) const MANIFEST_FILE: &str = "manifest.json";

/// Version of the layout of [`Manifest`] and of the shards.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// Contents of `manifest.json`. Fields that reading the shards does not need are optional.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of this layout.
    pub format_version: u32,
    /// SHA-256 of the tokenizer file.
    pub tokenizer_sha256: String,
    /// Upper bound of the ids: every id is below it.
    pub vocab_size: u32,
    /// Id between documents.
    pub end_of_text: u32,
    /// Placement of the end-of-text id.
    pub recipe: Recipe,
    /// Key or column that contained the text.
    #[serde(default)]
    pub text_column: String,
    /// Fraction of the documents in the validation split.
    pub val_fraction: f64,
    /// Seed of the split and of the order of documents.
    pub split_seed: u64,
    /// Tokens per full shard.
    pub shard_tokens: u64,
    /// Whether unusable documents were skipped.
    #[serde(default)]
    pub skip_bad_documents: bool,
    /// Number of skipped documents.
    #[serde(default)]
    pub skipped_documents: u64,
    /// Source files, in order.
    #[serde(default)]
    pub sources: Vec<SourceFileRecord>,
    /// Training split.
    pub train: SplitManifest,
    /// Validation split.
    pub val: SplitManifest,
}

/// Source file of a data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFileRecord {
    /// Path, as expanded from the command line.
    pub path: String,
    /// Size in bytes; 0 for standard input.
    pub bytes: u64,
    /// SHA-256 of the file; null for standard input and for files that could not be read.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// Contents of one split.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Number of documents, empty ones included.
    pub documents: u64,
    /// Number of tokens in all shards.
    pub tokens: u64,
    /// Shards, in order.
    pub shards: Vec<Shard>,
}

/// File of token ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// File name in the data directory.
    pub name: String,
    /// Number of ids, each a little-endian uint16.
    pub tokens: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// Settings of a preparation that determine its output. The inputs are not included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PrepareSettings {
    pub recipe: Recipe,
    pub tokenizer_sha256: String,
    pub text_column: String,
    pub val_fraction: f64,
    pub split_seed: u64,
    pub shard_tokens: u64,
    pub skip_bad_documents: bool,
}

impl PrepareSettings {
    /// Describes the first setting that differs from the setting `before`, if one differs.
    pub(crate) fn difference(&self, before: &PrepareSettings) -> Result<Option<String>> {
        let (now, before) = (serde_json::to_value(self)?, serde_json::to_value(before)?);
        let differing = now.as_object().into_iter().flatten().find(|(key, value)| before.get(key) != Some(value));
        Ok(differing.map(|(key, value)| format!("{key} is {value} now and was {}", before[key])))
    }
}

impl Manifest {
    /// Returns the settings that produced the data.
    pub(crate) fn settings(&self) -> PrepareSettings {
        PrepareSettings {
            recipe: self.recipe,
            tokenizer_sha256: self.tokenizer_sha256.clone(),
            text_column: self.text_column.clone(),
            val_fraction: self.val_fraction,
            split_seed: self.split_seed,
            shard_tokens: self.shard_tokens,
            skip_bad_documents: self.skip_bad_documents,
        }
    }

    /// Reads the manifest of a data directory. Returns it with the SHA-256 of its bytes, or `None`
    /// if the directory has no manifest.
    ///
    /// # Errors
    /// The manifest has another format version, or contradicts itself.
    pub fn load(dir: &Path) -> Result<Option<(Manifest, String)>> {
        let path = dir.join(MANIFEST_FILE);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let parse = || -> Result<Manifest> {
            let manifest: Manifest = serde_json::from_slice(&bytes)?;
            ensure!(
                manifest.format_version == FORMAT_VERSION,
                "the format version is {}, but this program reads version {FORMAT_VERSION}",
                manifest.format_version
            );
            for (name, split) in [("train", &manifest.train), ("val", &manifest.val)] {
                let sum: u64 = split.shards.iter().map(|s| s.tokens).sum();
                ensure!(
                    sum == split.tokens,
                    "the {name} split lists {} tokens, but its shards contain {sum} tokens",
                    split.tokens
                );
                for shard in &split.shards {
                    let is_file_name = Path::new(&shard.name).file_name().is_some_and(|n| n == shard.name.as_str());
                    ensure!(is_file_name, "the shard name {:?} is not a file name", shard.name);
                }
            }
            Ok(manifest)
        };
        let manifest = parse().with_context(|| format!("invalid manifest {}", path.display()))?;
        Ok(Some((manifest, hex(&Sha256::digest(&bytes)))))
    }
}
