//! Why a request is not answered: a status and a sentence.

use std::fmt;

use hyper::StatusCode;
use serde_json::{Value, json};

/// What is sent instead of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    sentence: String,
    /// Into what a word splits that is not one token.
    pieces: Option<Value>,
    /// The methods there are instead.
    pub(crate) allow: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, sentence: impl fmt::Display) -> Self {
        // Causes are part of an error's sentence: `{:#}` shows them.
        ApiError { status, sentence: format!("{sentence:#}"), pieces: None, allow: None }
    }

    /// The request is not as it must be.
    pub(crate) fn bad(sentence: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    /// The method is none of those that the path takes.
    pub(crate) fn method(sentence: impl fmt::Display, allow: &'static str) -> Self {
        ApiError { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, sentence) }
    }

    pub(crate) fn with_pieces(self, pieces: Value) -> Self {
        ApiError { pieces: Some(pieces), ..self }
    }

    pub(crate) fn json(&self) -> Vec<u8> {
        let mut answer = json!({ "error": self.sentence });
        if let Some(pieces) = &self.pieces {
            answer["pieces"] = pieces.clone();
        }
        answer.to_string().into_bytes()
    }
}

/// An error of the model's about what it was asked.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::bad(error)
    }
}
