//! The parts of `tokenizer.json` that the native BPE needs.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Token strings and their ids.
pub(super) type Vocabulary = HashMap<String, u32>;

/// Contents of a `tokenizer.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenizerFile {
    #[serde(default)]
    pub(crate) added_tokens: Vec<AddedToken>,
    pub(super) normalizer: Option<IgnoredAny>,
    pub(super) pre_tokenizer: Option<PreTokenizer>,
    pub(super) model: BpeModel,
}

/// Token that is recognized in the text before pre-tokenization.
#[derive(Debug, Deserialize)]
pub(crate) struct AddedToken {
    pub(crate) id: u32,
    pub(crate) content: String,
    #[serde(default)]
    pub(crate) single_word: bool,
    #[serde(default)]
    pub(crate) lstrip: bool,
    #[serde(default)]
    pub(crate) rstrip: bool,
}

/// Settings of the pre-tokenizer, which splits text into pieces.
#[derive(Debug, Deserialize)]
pub(super) struct PreTokenizer {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) use_regex: Option<bool>,
}

/// Settings of the BPE, which converts pieces to ids.
#[derive(Debug, Deserialize)]
pub(super) struct BpeModel {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) dropout: Option<f64>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    pub(super) ignore_merges: Option<bool>,
    #[serde(default)]
    pub(super) vocab: Vocabulary,
    #[serde(default)]
    pub(super) merges: Vec<Merge>,
}

/// Pair of tokens that is merged into one.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    /// Both tokens in one string, separated by a space: the format of older files.
    Line(String),
    /// Format of newer files.
    Pair(String, String),
}

impl Merge {
    pub(super) fn split_pair(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Line(line) => line.split_once(' '),
            Merge::Pair(left, right) => Some((left, right)),
        }
    }
}

impl TokenizerFile {
    /// Returns the id of a token. Added tokens take precedence.
    pub(crate) fn id(&self, token: &str) -> Option<u32> {
        let added = self.added_tokens.iter().find(|t| t.content == token).map(|t| t.id);
        added.or_else(|| self.model.vocab.get(token).copied())
    }

    /// Returns the largest id of any token.
    pub(crate) fn max_id(&self) -> u32 {
        let added = self.added_tokens.iter().map(|t| t.id);
        self.model.vocab.values().copied().chain(added).max().unwrap_or(0)
    }
}
