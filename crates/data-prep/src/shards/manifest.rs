//! `manifest.json`: what a folder of shards holds and what it was made from.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::prepare::staging_dir::PrepareSettings;
use crate::tokenizer::recipe::Recipe;

/// Its name in a folder of shards.
pub const MANIFEST_FILE: &str = "manifest.json";

/// Layout of [`Manifest`] and of the shards.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The whole file. What a reader of shards has no need of may be absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Of this layout.
    pub format_version: u32,
    /// Of the tokenizer file.
    pub tokenizer_sha256: String,
    /// Every id is below this.
    pub vocab_size: u32,
    /// The id between documents.
    pub end_of_text: u32,
    /// How documents became ids.
    pub recipe: Recipe,
    /// Key or column that held the text.
    #[serde(default)]
    pub text_column: String,
    /// Share of the documents in validation.
    pub val_fraction: f64,
    /// Seed of the split and the order.
    pub split_seed: u64,
    /// Tokens of a full shard.
    pub shard_tokens: u64,
    /// Whether documents that could not be used were left out.
    #[serde(default)]
    pub skip_bad_documents: bool,
    /// How many were.
    #[serde(default)]
    pub skipped_documents: u64,
    /// The files that were read, in order.
    #[serde(default)]
    pub sources: Vec<SourceFileRecord>,
    /// The training split.
    pub train: SplitManifest,
    /// The validation split.
    pub val: SplitManifest,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFileRecord {
    /// As it was found from the command line.
    pub path: String,
    /// Its size on disk; 0 for standard input.
    pub bytes: u64,
    /// Of its bytes; null for standard input and what could not be read.
    #[serde(default)]
    pub sha256: Option<String>,
}

/// One split.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SplitManifest {
    /// Documents, empty ones included.
    pub documents: u64,
    /// Tokens over all shards.
    pub tokens: u64,
    /// In order.
    pub shards: Vec<Shard>,
}

/// One file of ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// File name in the folder.
    pub name: String,
    /// uint16 ids in it.
    pub tokens: u64,
    /// Of its bytes.
    pub sha256: String,
}

impl Manifest {
    /// The arguments that it was made by.
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

    /// Reads a folder's manifest with the SHA-256 of its bytes; `None` where there is none.
    ///
    /// # Errors
    /// When it is not one of this version or contradicts itself.
    pub fn load(folder: &Path) -> Result<Option<(Manifest, String)>> {
        let path = folder.join(MANIFEST_FILE);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            result => result.with_context(|| format!("{} cannot be read", path.display()))?,
        };
        let parse = || -> Result<Manifest> {
            let manifest: Manifest = serde_json::from_slice(&bytes)?;
            ensure!(
                manifest.format_version == FORMAT_VERSION,
                "its format version is {}, this program reads {FORMAT_VERSION}",
                manifest.format_version
            );
            for (name, split) in [("train", &manifest.train), ("val", &manifest.val)] {
                let sum: u64 = split.shards.iter().map(|s| s.tokens).sum();
                ensure!(sum == split.tokens, "its {name} shards hold {sum} tokens, but it says {}", split.tokens);
                for shard in &split.shards {
                    let plain = Path::new(&shard.name).file_name().is_some_and(|n| n == shard.name.as_str());
                    ensure!(plain, "its shard name {:?} is no plain file name", shard.name);
                }
            }
            Ok(manifest)
        };
        let manifest = parse().with_context(|| format!("{} is not usable", path.display()))?;
        Ok(Some((manifest, hex(&Sha256::digest(&bytes)))))
    }
}
