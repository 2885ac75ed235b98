//! Recipes: where end-of-text ids are placed between and inside documents.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Placement of the end-of-text id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// Recipe of the published run: a text and `<|endoftext|>` are tokenized as one string, in
    /// which the special token is recognized, also inside the text. An empty document has no ids.
    #[default]
    Backpack,
    /// nanoGPT's recipe: a literal `<|endoftext|>` in a text is ordinary text. The end-of-text id
    /// follows every document, also an empty one.
    Nanogpt,
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Recipe::Backpack => "backpack",
            Recipe::Nanogpt => "nanogpt",
        })
    }
}

impl FromStr for Recipe {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "backpack" => Ok(Recipe::Backpack),
            "nanogpt" => Ok(Recipe::Nanogpt),
            other => Err(format!("unknown recipe {other}: the recipes are backpack and nanogpt")),
        }
    }
}
