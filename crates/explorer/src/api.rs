//! What may be asked, and how much of it.

use hyper::StatusCode;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::ApiError;

/// Bytes of a request: a context of 512 tokens is some 3 kB, an edit by a vector of 768 numbers 10 kB, and
/// `control edit` writes one for each sense of a word.
pub(crate) const MOST_BYTES: usize = 1 << 20;
/// Words of a list.
pub(crate) const MOST_WORDS: usize = 100;
/// Edits at once; each may want the senses of another word.
pub(crate) const MOST_EDITS: usize = 64;
/// New tokens of one request, where the model's context has room for them: nobody else is served while they are made,
/// three quarters of a second of a micro model's.
pub(crate) const MOST_NEW_TOKENS: usize = 64;
/// Weights of one answer, about 1 MB of JSON: one sense of 512 tokens, or 16 of 150.
pub(crate) const MOST_WEIGHTS: usize = 200_000;

/// One question of the API, by its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Model,
    Senses,
    Reading,
    Weights,
    Contributions,
    Next,
    Generate,
}

impl Endpoint {
    pub(crate) fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/api/v1/model" => Endpoint::Model,
            "/api/v1/senses" => Endpoint::Senses,
            "/api/v1/reading" => Endpoint::Reading,
            "/api/v1/weights" => Endpoint::Weights,
            "/api/v1/contributions" => Endpoint::Contributions,
            "/api/v1/next" => Endpoint::Next,
            "/api/v1/generate" => Endpoint::Generate,
            _ => return None,
        })
    }
}

/// The senses of a word.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SensesRequest {
    pub(crate) word: Option<String>,
    pub(crate) token: Option<i64>,
    #[serde(default = "twelve")]
    pub(crate) top: usize,
    pub(crate) edits: Option<Value>,
}

/// One position of a text: what its words and senses count there, or what follows it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PositionRequest {
    pub(crate) text: Option<String>,
    pub(crate) ids: Option<Vec<i64>>,
    pub(crate) position: Option<usize>,
    #[serde(default = "twelve")]
    pub(crate) top: usize,
    pub(crate) edits: Option<Value>,
}

/// The whole contextualization, sense by sense. Edits do not change it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightsRequest {
    pub(crate) text: Option<String>,
    pub(crate) ids: Option<Vec<i64>>,
    pub(crate) senses: Option<Vec<usize>>,
}

/// What made the logit of a word.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContributionsRequest {
    pub(crate) text: Option<String>,
    pub(crate) ids: Option<Vec<i64>>,
    pub(crate) position: Option<usize>,
    pub(crate) word: Option<String>,
    pub(crate) token: Option<i64>,
    pub(crate) edits: Option<Value>,
}

/// A text that goes on.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenerateRequest {
    pub(crate) text: Option<String>,
    pub(crate) ids: Option<Vec<i64>>,
    #[serde(default = "forty")]
    pub(crate) max_new_tokens: usize,
    #[serde(default)]
    pub(crate) greedy: bool,
    pub(crate) temperature: Option<f64>,
    pub(crate) top_k: Option<usize>,
    pub(crate) top_p: Option<f64>,
    #[serde(default)]
    pub(crate) seed: u64,
    pub(crate) edits: Option<Value>,
}

fn twelve() -> usize {
    12
}

fn forty() -> usize {
    40
}

/// Reads a body.
///
/// # Errors
/// 400 for what is no such request.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad(format!("the request is not understood: {error}")))
}

/// Refuses a number that is 0 or too large.
///
/// # Errors
/// 400, naming it.
pub(crate) fn check_number(name: &str, number: usize, most: usize) -> Result<(), ApiError> {
    if (1..=most).contains(&number) {
        return Ok(());
    }
    Err(ApiError::bad(format!("\"{name}\" is {number}: it must be between 1 and {most}")))
}

/// Refuses what is more than one answer holds.
pub(crate) fn too_large(sentence: String) -> ApiError {
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, sentence)
}

/// The limits as the model's description states them.
pub(crate) fn limits() -> Value {
    json!({
        "body_bytes": MOST_BYTES,
        "words": MOST_WORDS,
        "edits": MOST_EDITS,
        "new_tokens": MOST_NEW_TOKENS,
        "weights": MOST_WEIGHTS,
    })
}
