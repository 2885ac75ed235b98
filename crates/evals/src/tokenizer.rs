//! Text to ids and back.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use model::ModelConfig;

/// A `tokenizer.json`, read.
#[derive(Debug)]
pub struct Tokenizer(tokenizers::Tokenizer);

impl Tokenizer {
    /// Where the project keeps GPT-2's, seen from its root.
    pub const DEFAULT: &str = "data/gpt2/tokenizer.json";

    /// The tokenizer file that is surely a model's: the one given, or the model folder's own.
    pub fn path_in_model(given: Option<&Path>, model: &Path) -> Option<PathBuf> {
        given.map(PathBuf::from).or_else(|| Some(model.join("tokenizer.json")).filter(|path| path.is_file()))
    }

    /// The tokenizer file of a model: its own, or the project's.
    pub fn find_path(given: Option<&Path>, model: &Path) -> Option<PathBuf> {
        Self::path_in_model(given, model).or_else(|| Some(PathBuf::from(Self::DEFAULT)).filter(|path| path.is_file()))
    }

    /// Loads the tokenizer of a model of this shape.
    ///
    /// # Errors
    /// When there is none, it cannot be read, or it is the project's and has ids that the model lacks.
    pub fn for_model(given: Option<&Path>, model: &Path, config: &ModelConfig) -> Result<Self> {
        let Some(path) = Self::find_path(given, model) else {
            bail!(
                "no tokenizer found: {} holds none and {} is not below this folder; name one with --tokenizer, or give ids",
                model.display(),
                Self::DEFAULT
            );
        };
        let tokenizer = Self::open(&path)?;
        if Self::path_in_model(given, model).is_none() {
            tokenizer.check_fits(config).with_context(|| format!("{} holds no tokenizer", model.display()))?;
        }
        Ok(tokenizer)
    }

    /// Reads a `tokenizer.json`. What it says of cutting and padding is of some batch before, not of these texts.
    ///
    /// # Errors
    /// Naming the file.
    pub fn open(path: &Path) -> Result<Self> {
        let read = || {
            let mut tokenizer = tokenizers::Tokenizer::from_file(path)?;
            tokenizer.with_truncation(None)?.with_padding(None);
            Ok(Tokenizer(tokenizer))
        };
        read().map_err(|e: tokenizers::Error| anyhow!("the tokenizer {} cannot be read: {e}", path.display()))
    }

    /// Checks that a model of this shape has all its ids.
    ///
    /// # Errors
    /// When it lacks some.
    pub fn check_fits(&self, config: &ModelConfig) -> Result<()> {
        let (ids, vocab_size) = (self.vocab_size() as i64, config.vocab_size);
        ensure!(
            ids <= vocab_size,
            "the tokenizer has {ids} ids, more than the model's vocabulary of {vocab_size}: name the one that the model was trained with (--tokenizer), or give ids"
        );
        Ok(())
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
    pub fn word_id(&self, word: &str) -> Result<i64> {
        let bare = word.trim();
        ensure!(!bare.is_empty(), "the word is empty: give one");
        let ids = self.encode(&format!(" {bare}"))?;
        match ids[..] {
            [id] => Ok(id),
            [] => bail!("\"{bare}\" has no token in this tokenizer"),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::testing;

    #[test]
    fn a_file_that_cuts_and_pads_gives_the_whole_text_and_no_more() {
        let whole = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(Tokenizer::DEFAULT);
        let mut file: serde_json::Value = serde_json::from_slice(&fs::read(whole).unwrap()).unwrap();
        file["truncation"] = serde_json::json!({
            "direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0
        });
        file["padding"] = serde_json::json!({
            "strategy": { "Fixed": 8 }, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 50256, "pad_type_id": 0, "pad_token": "<|endoftext|>"
        });
        let folder = tempfile::tempdir().unwrap();
        let path = testing::write(folder.path(), "tokenizer.json", &file.to_string());
        let tokenizer = Tokenizer::open(&path).unwrap();
        assert_eq!(tokenizer.encode(" a b c d").unwrap(), testing::tokenizer().encode(" a b c d").unwrap());
        assert_eq!(tokenizer.word_id("time").unwrap(), testing::tokenizer().word_id(" time ").unwrap());
        assert_eq!(tokenizer.word_id(" ").unwrap_err().to_string(), "the word is empty: give one");
    }
}
