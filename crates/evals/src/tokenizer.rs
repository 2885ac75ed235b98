//! The tokenizer of a model: text to token ids and back.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use model::ModelConfig;

/// A tokenizer loaded from a `tokenizer.json`.
#[derive(Debug)]
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// The path of GPT-2's tokenizer, relative to the root of the repository.
    pub const DEFAULT: &str = "data/gpt2/tokenizer.json";

    /// Returns the tokenizer file that belongs to a model: the given one, or else the one in the
    /// model directory.
    pub fn path_in_model(given: Option<&Path>, model: &Path) -> Option<PathBuf> {
        given.map(PathBuf::from).or_else(|| Some(model.join("tokenizer.json")).filter(|path| path.is_file()))
    }

    /// Returns the tokenizer file for a model: that of [`Self::path_in_model`], or else
    /// [`Self::DEFAULT`].
    pub fn find_path(given: Option<&Path>, model: &Path) -> Option<PathBuf> {
        Self::path_in_model(given, model).or_else(|| Some(PathBuf::from(Self::DEFAULT)).filter(|path| path.is_file()))
    }

    /// Loads the tokenizer for the model in a directory. [`Self::DEFAULT`] is checked against the
    /// model's vocabulary.
    ///
    /// # Errors
    /// There is no tokenizer, it cannot be read, or the default one has more ids than the model.
    pub fn for_model(given: Option<&Path>, model: &Path, config: &ModelConfig) -> Result<Self> {
        let Some(path) = Self::find_path(given, model) else {
            bail!(
                "no tokenizer found in {}, and {} does not exist: set --tokenizer, or give token ids",
                model.display(),
                Self::DEFAULT
            );
        };
        let tokenizer = Self::open(&path)?;
        if Self::path_in_model(given, model).is_none() {
            tokenizer.check_fits(config).with_context(|| format!("there is no tokenizer in {}", model.display()))?;
        }
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json`. Truncation and padding settings in the file are ignored, because
    /// they belong to the batches of another program.
    ///
    /// # Errors
    /// The file cannot be read; the error names it.
    pub fn open(path: &Path) -> Result<Self> {
        let read = || {
            let mut tokenizer = tokenizers::Tokenizer::from_file(path)?;
            tokenizer.with_truncation(None)?.with_padding(None);
            Ok(Tokenizer(tokenizer))
        };
        read().map_err(|e: tokenizers::Error| anyhow!("the tokenizer {} cannot be read: {e}", path.display()))
    }

    /// Checks that the model's vocabulary contains every id of the tokenizer.
    ///
    /// # Errors
    /// The tokenizer has more ids than the model.
    pub fn check_fits(&self, config: &ModelConfig) -> Result<()> {
        let (ids, vocab_size) = (self.vocab_size() as i64, config.vocab_size);
        ensure!(
            ids <= vocab_size,
            "the tokenizer has {ids} ids, more than the model's vocabulary of {vocab_size}: set --tokenizer to the one that the model was trained with, or give token ids"
        );
        Ok(())
    }

    /// Returns the number of ids, including special tokens.
    pub fn vocab_size(&self) -> usize {
        self.0.get_vocab_size(true)
    }

    /// Converts a text to ids. The text of a special token becomes that token.
    ///
    /// # Errors
    /// The tokenizer fails on the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self.0.encode(text, false).map_err(|e| anyhow!("the text cannot be tokenized: {e}"))?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Converts ids to text, including the text of special tokens.
    ///
    /// # Errors
    /// An id is negative, or the tokenizer fails on the ids.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> =
            ids.iter().map(|&id| u32::try_from(id)).collect::<Result<_, _>>().context("there is a negative id")?;
        self.0.decode(&ids, false).map_err(|e| anyhow!("the ids cannot be decoded: {e}"))
    }

    /// Returns the text of one token, with its spaces, or its id if it cannot be decoded.
    pub fn token_text(&self, id: i64) -> String {
        self.decode(&[id]).unwrap_or_else(|_| id.to_string())
    }

    /// Returns the id of a word with a leading space. Only words of one token have senses.
    ///
    /// # Errors
    /// The word is empty or has several tokens; the error lists them.
    pub fn word_id(&self, word: &str) -> Result<i64> {
        let word = word.trim();
        ensure!(!word.is_empty(), "the word is empty: give a word");
        let ids = self.encode(&format!(" {word}"))?;
        match ids[..] {
            [id] => Ok(id),
            [] => bail!("the tokenizer has no token for \"{word}\""),
            _ => {
                let pieces: Vec<String> =
                    ids.iter().map(|&id| Ok(format!("\"{}\"", self.decode(&[id])?))).collect::<Result<_>>()?;
                bail!(
                    "\"{word}\" is not one token: it splits into {}; give a word that is a single token",
                    pieces.join(", ")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing;

    #[test]
    fn truncation_and_padding_of_the_file_are_ignored() {
        let default = testing::tokenizer_path();
        let mut file: serde_json::Value = serde_json::from_slice(&fs::read(default).unwrap()).unwrap();
        file["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
        });
        file["padding"] = serde_json::json!({
            "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 50256, "pad_type_id": 0, "pad_token": "<|endoftext|>"
        });
        let dir = tempfile::tempdir().unwrap();
        let path = testing::write(dir.path(), "tokenizer.json", &file.to_string());
        let tokenizer = Tokenizer::open(&path).unwrap();
        assert_eq!(tokenizer.encode(" a b c d").unwrap(), testing::tokenizer().encode(" a b c d").unwrap());
        assert_eq!(tokenizer.word_id("time").unwrap(), testing::tokenizer().word_id(" time ").unwrap());
        assert_eq!(tokenizer.word_id(" ").unwrap_err().to_string(), "the word is empty: give a word");
    }
}
