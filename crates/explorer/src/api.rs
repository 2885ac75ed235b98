//! The endpoints of the API, their request bodies, and their limits.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::ApiError;

/// The maximum size of a request body in bytes. A text of 512 tokens has about 3 kB, and an edit
/// with a vector of 768 numbers has 10 kB. `control edit` writes one such edit per sense of a word.
pub(crate) const MAX_BODY_BYTES: usize = 1 << 20;
/// The maximum of `top`, the number of tokens in a list.
pub(crate) const MAX_TOP: usize = 100;
/// The maximum number of edits per request. Each one can require the senses of another word.
pub(crate) const MAX_EDITS: usize = 64;
/// The maximum number of new tokens per request. No other request is processed during generation,
/// which takes 0.75 s with a micro model.
pub(crate) const MAX_NEW_TOKENS: usize = 64;
/// The maximum number of weights per response, about 1 MB of JSON: one sense of a text of 512
/// tokens, or 16 senses of 150 tokens.
pub(crate) const MAX_WEIGHTS: usize = 200_000;

/// An endpoint of the API.
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
    /// Returns the endpoint at a path.
    pub(crate) fn from_path(path: &str) -> Option<Self> {
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

/// The request for the senses of a word.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SensesRequest {
    pub(crate) word: Option<String>,
    pub(crate) token: Option<i64>,
    #[serde(default = "default_top_k")]
    pub(crate) top: usize,
    pub(crate) edits: Option<Value>,
}

/// The request for the weights or the next words at one position of a text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PositionRequest {
    pub(crate) text: Option<String>,
    pub(crate) ids: Option<Vec<i64>>,
    pub(crate) position: Option<usize>,
    #[serde(default = "default_top_k")]
    pub(crate) top: usize,
    pub(crate) edits: Option<Value>,
}

/// The request for the contextualization weights of a text. Edits do not change them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WeightsRequest {
    pub(crate) text: Option<String>,
    pub(crate) ids: Option<Vec<i64>>,
    pub(crate) senses: Option<Vec<usize>>,
}

/// The request for the contributions to the logit of a word.
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

/// The request for the continuation of a text.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GenerateRequest {
    pub(crate) text: Option<String>,
    pub(crate) ids: Option<Vec<i64>>,
    #[serde(default = "default_max_new_tokens")]
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

fn default_top_k() -> usize {
    12
}

fn default_max_new_tokens() -> usize {
    40
}

/// Parses the body of a request.
///
/// # Errors
/// 400 if the body is not a request of this type.
pub(crate) fn parse_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad_request(format!("invalid request: {error}")))
}

/// Checks that a number of the request is between 1 and `max`.
///
/// # Errors
/// 400 if it is not; the message names the number.
pub(crate) fn check_number(name: &str, number: usize, max: usize) -> Result<(), ApiError> {
    if (1..=max).contains(&number) {
        return Ok(());
    }
    Err(ApiError::bad_request(format!("\"{name}\" is {number}: it must be between 1 and {max}")))
}

/// Returns the limits, which are part of the response of [`Endpoint::Model`].
pub(crate) fn limits() -> Value {
    json!({
        "body_bytes": MAX_BODY_BYTES,
        "words": MAX_TOP,
        "edits": MAX_EDITS,
        "new_tokens": MAX_NEW_TOKENS,
        "weights": MAX_WEIGHTS,
    })
}
