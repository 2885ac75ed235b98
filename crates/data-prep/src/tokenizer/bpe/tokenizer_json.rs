//! What is read of a `tokenizer.json`.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Token strings and their ids.
pub(super) type Vocabulary = HashMap<String, u32>;

/// The file.
#[derive(Debug, Deserialize)]
pub(crate) struct TokenizerFile {
    #[serde(default)]
    pub(crate) added_tokens: Vec<AddedToken>,
    pub(super) normalizer: Option<IgnoredAny>,
    pub(super) pre_tokenizer: Option<PreTokenizer>,
    pub(super) model: BpeModel,
}

/// A token that is recognised in the text itself.
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

/// How text is cut into pieces.
#[derive(Debug, Deserialize)]
pub(super) struct PreTokenizer {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) add_prefix_space: Option<bool>,
    pub(super) use_regex: Option<bool>,
}

/// How pieces become ids.
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

/// Two tokens that become one, as older and newer files write it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Merge {
    Line(String),
    Pair(String, String),
}

impl Merge {
    pub(super) fn halves(&self) -> Option<(&str, &str)> {
        match self {
            Merge::Line(line) => line.split_once(' '),
            Merge::Pair(left, right) => Some((left, right)),
        }
    }
}

impl TokenizerFile {
    /// The id of a token, an added one first.
    pub(crate) fn id_of(&self, token: &str) -> Option<u32> {
        let added = self.added_tokens.iter().find(|t| t.content == token).map(|t| t.id);
        added.or_else(|| self.model.vocab.get(token).copied())
    }

    /// The highest id of any token.
    pub(crate) fn highest_id(&self) -> u32 {
        let added = self.added_tokens.iter().map(|t| t.id);
        self.model.vocab.values().copied().chain(added).max().unwrap_or(0)
    }
}
