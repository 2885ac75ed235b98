//! Text to ids and back.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

/// A `tokenizer.json`, read.
#[derive(Debug)]
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Where the project keeps GPT-2's, seen from its root.
    pub const DEFAULT: &str = "data/gpt2/tokenizer.json";

    /// The tokenizer file of a model: the one given, the model folder's own, or the project's.
    pub fn find(given: Option<&Path>, model: &Path) -> Option<PathBuf> {
        match given {
            Some(path) => Some(path.to_owned()),
            None => [model.join("tokenizer.json"), PathBuf::from(Self::DEFAULT)].into_iter().find(|p| p.is_file()),
        }
    }

    /// Loads the tokenizer of a model.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn of_model(given: Option<&Path>, model: &Path) -> Result<Self> {
        let Some(path) = Self::find(given, model) else {
            bail!(
                "no tokenizer found: {} holds none and {} is not below this folder; name one with --tokenizer, or give ids",
                model.display(),
                Self::DEFAULT
            );
        };
        Self::open(&path)
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// Naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        tokenizers::Tokenizer::from_file(path)
            .map(Tokenizer)
            .map_err(|e| anyhow!("the tokenizer {} cannot be read: {e}", path.display()))
    }

    /// Ids that it has, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// Ids of a text, special tokens recognised.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.0.encode(text, false).map_err(|e| anyhow!("the text cannot be tokenised: {e}"))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Text of ids, special tokens shown.
    ///
    /// # Errors
    /// When the tokenizer refuses.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> =
            ids.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>().context("a negative id")?;
        self.0.decode(&ids, false).map_err(|e| anyhow!("the ids cannot be decoded: {e}"))
    }

    /// The id of a word as it stands inside a text, with a space before it: the paper's words are
    /// those of one token.
    ///
    /// # Errors
    /// When it is several tokens, saying into what it splits.
    pub fn word(&self, word: &str) -> Result<i64> {
        let bare = word.trim();
        let ids = self.encode(&format!(" {bare}"))?;
        match ids[..] {
            [id] => Ok(id),
            [] => bail!("the word is empty: give one"),
            _ => {
                let parts: Vec<String> =
                    ids.iter().map(|&id| Ok(format!("\"{}\"", self.decode(&[id])?))).collect::<Result<_>>()?;
                bail!(
                    "\"{bare}\" is not one token: it splits into {}; senses belong to tokens, so give a word that is one",
                    parts.join(", ")
                )
            }
        }
    }
}
