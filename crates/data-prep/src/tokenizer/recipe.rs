//! How documents become one stream of ids (reference point 24).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where the end-of-text id comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Recipe {
    /// The authors': text and `<|endoftext|>` are tokenised as one string with the special
    /// token recognised, one inside the text included; an empty document gives no ids.
    #[default]
    Backpack,
    /// nanoGPT's: ordinary ids, a literal `<|endoftext|>` included, then the end-of-text id
    /// after every document, empty ones included.
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
            other => Err(format!("{other} is no recipe: there are backpack and nanogpt")),
        }
    }
}
