//! The errors of the API: a status code and a message.

use std::fmt;

use hyper::StatusCode;
use serde_json::{Value, json};

/// The JSON body of a response, or the error that is sent instead.
pub(crate) type ApiResult = Result<Vec<u8>, ApiError>;

/// An error response.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    message: String,
    /// The tokens of a word that is not one token.
    pieces: Option<Value>,
    /// The methods that the path accepts, for the header `Allow`.
    pub(crate) allow: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl fmt::Display) -> Self {
        // `{:#}` includes the causes of an error.
        ApiError { status, message: format!("{message:#}"), pieces: None, allow: None }
    }

    /// Creates the error for an invalid request (400).
    pub(crate) fn bad_request(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// Creates the error for a request that is over a limit (413).
    pub(crate) fn too_large(message: impl fmt::Display) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// Creates the error for a method that the path does not accept (405).
    pub(crate) fn method_not_allowed(message: impl fmt::Display, allow: &'static str) -> Self {
        ApiError { allow: Some(allow), ..Self::new(StatusCode::METHOD_NOT_ALLOWED, message) }
    }

    pub(crate) fn with_pieces(self, pieces: Value) -> Self {
        ApiError { pieces: Some(pieces), ..self }
    }

    /// Returns the JSON body of the error response.
    pub(crate) fn json(&self) -> Vec<u8> {
        let mut body = json!({ "error": self.message });
        if let Some(pieces) = &self.pieces {
            body["pieces"] = pieces.clone();
        }
        body.to_string().into_bytes()
    }
}

/// Errors of the model are caused by the request.
impl From<anyhow::Error> for ApiError {
    fn from(error: anyhow::Error) -> Self {
        Self::bad_request(error)
    }
}
