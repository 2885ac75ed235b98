//! Documents to ids. The `tokenizers` crate is the definition.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::manifest::hex;
use crate::recipe::Recipe;

const END_OF_TEXT: &str = "<|endoftext|>";

/// A tokenizer under a recipe.
pub(crate) struct Encoder {
    tokenizer: Tokenizer,
    recipe: Recipe,
    /// The id between documents.
    pub end_of_text: u32,
    /// Every id is below this.
    pub vocab_size: u32,
    /// Of the tokenizer file.
    pub sha256: String,
}

impl Encoder {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// When it cannot be read, lacks the end-of-text token, or has ids past uint16.
    pub(crate) fn load(path: &Path, recipe: Recipe) -> Result<Self> {
        let broken = || format!("the tokenizer {} is not usable", path.display());
        let bytes = fs::read(path).with_context(|| format!("the tokenizer {} cannot be read", path.display()))?;
        let build = |json: &[u8]| Tokenizer::from_bytes(json).map_err(|e| anyhow!("{e}")).with_context(broken);
        let full = build(&bytes)?;
        let highest = full.get_vocab(true).into_values().max().unwrap_or(0);
        ensure!(highest <= u32::from(u16::MAX), "{}: its ids go up to {highest}, and shards hold uint16", broken());
        let end_of_text =
            full.token_to_id(END_OF_TEXT).with_context(|| format!("{}: it has no {END_OF_TEXT}", broken()))?;
        let tokenizer = match recipe {
            Recipe::Backpack => full,
            Recipe::Nanogpt => {
                // Without the added token a literal one is ordinary text.
                let mut json: Value = serde_json::from_slice(&bytes).with_context(broken)?;
                json["added_tokens"] = Value::Array(Vec::new());
                build(json.to_string().as_bytes())?
            }
        };
        Ok(Encoder { tokenizer, recipe, end_of_text, vocab_size: highest + 1, sha256: hex(&Sha256::digest(&bytes)) })
    }

    /// Ids of one document, its end included.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u16>> {
        let ids = |text: &str| -> Result<Vec<u16>> {
            let encoding =
                self.tokenizer.encode_fast(text, false).map_err(|e| anyhow!("a document cannot be tokenised: {e}"))?;
            // No id is past uint16: `load` refuses such a tokenizer.
            Ok(encoding.get_ids().iter().map(|&id| id as u16).collect())
        };
        match self.recipe {
            Recipe::Backpack if text.is_empty() => Ok(Vec::new()),
            Recipe::Backpack => ids(&[text, END_OF_TEXT].concat()),
            Recipe::Nanogpt => {
                let mut ids = ids(text)?;
                ids.push(self.end_of_text as u16);
                Ok(ids)
            }
        }
    }

    /// Ids of many documents, in their order, on the current rayon pool.
    pub(crate) fn encode_all(&self, texts: &[String]) -> Result<Vec<Vec<u16>>> {
        texts.par_iter().map(|text| self.encode(text)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn encoder(recipe: Recipe) -> Encoder {
        Encoder::load(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/gpt2/tokenizer.json"), recipe)
            .unwrap()
    }

    /// python3 -c "from tokenizers import Tokenizer; t = Tokenizer.from_file('data/gpt2/tokenizer.json');
    /// print(t.encode('Hello  world<|endoftext|>it\'s').ids)"; for nanogpt with added_tokens removed.
    #[test]
    fn recipes_differ_in_the_end_of_text() {
        let text = "Hello  world<|endoftext|>it's";
        let (backpack, nanogpt) = (encoder(Recipe::Backpack), encoder(Recipe::Nanogpt));
        assert_eq!(backpack.encode(text).unwrap(), [15496, 220, 995, 50256, 270, 338, 50256]);
        assert_eq!(nanogpt.encode(text).unwrap(), [15496, 220, 995, 27, 91, 437, 1659, 5239, 91, 29, 270, 338, 50256]);
        assert_eq!((backpack.encode("").unwrap(), nanogpt.encode("").unwrap()), (vec![], vec![50256]));
        assert_eq!((backpack.vocab_size, backpack.end_of_text), (50257, 50256));
    }

    #[test]
    fn an_unusable_tokenizer_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        let error = |path: &Path| Encoder::load(path, Recipe::Backpack).err().map(|e| format!("{e:#}")).unwrap();
        assert!(error(&path).contains("cannot be read"));
        fs::write(&path, "{}").unwrap();
        assert!(error(&path).contains("is not usable"));
    }
}
