//! Text to ids and back, for the commands that take a prompt.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use tokenizers::Tokenizer;

/// Where the project keeps GPT-2's, seen from its root.
pub(crate) const DEFAULT: &str = "data/gpt2/tokenizer.json";

/// The tokenizer file of a model: the one given, the model folder's own, or the project's.
pub(crate) fn find(given: Option<&Path>, model: &Path) -> Option<PathBuf> {
    match given {
        Some(path) => Some(path.to_owned()),
        None => [model.join("tokenizer.json"), PathBuf::from(DEFAULT)].into_iter().find(|p| p.is_file()),
    }
}

/// Loads the tokenizer of a model.
///
/// # Errors
/// When there is none, or it cannot be read.
pub(crate) fn load(given: Option<&Path>, model: &Path) -> Result<Tokenizer> {
    let Some(path) = find(given, model) else {
        bail!(
            "no tokenizer found: {} holds none and {DEFAULT} is not below this folder; name one with --tokenizer, or give ids",
            model.display()
        );
    };
    open(&path)
}

/// Reads a `tokenizer.json`.
///
/// # Errors
/// Naming the file.
pub(crate) fn open(path: &Path) -> Result<Tokenizer> {
    Tokenizer::from_file(path).map_err(|e| anyhow!("the tokenizer {} cannot be read: {e}", path.display()))
}

/// Ids of a text, special tokens recognised.
///
/// # Errors
/// When the tokenizer refuses.
pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<i64>> {
    let encoding = tokenizer.encode(text, false).map_err(|e| anyhow!("the text cannot be tokenised: {e}"))?;
    Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
}

/// Text of ids, special tokens shown.
///
/// # Errors
/// When the tokenizer refuses.
pub(crate) fn decode(tokenizer: &Tokenizer, ids: &[i64]) -> Result<String> {
    let ids: Vec<u32> = ids.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>().context("a negative id")?;
    tokenizer.decode(&ids, false).map_err(|e| anyhow!("the ids cannot be decoded: {e}"))
}
