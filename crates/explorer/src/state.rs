//! The state of the explorer: the model, its tokenizer, and a cache of text contexts. Only the
//! compute thread has access to it.

use std::collections::VecDeque;
use std::rc::Rc;

use anyhow::{Result, ensure};
use evals::{TextContext, Tokenizer};
use hyper::StatusCode;
use model::{LanguageModel, SenseEdit};
use serde_json::{Value, json};

use crate::api::MAX_EDITS;
use crate::error::ApiError;

/// The number of texts whose contextualization weights are cached. Most requests of a page are
/// about the same text, and edits do not change its weights. A text of 512 tokens takes 17 MB.
const MAX_CACHED_CONTEXTS: usize = 8;

/// A model, its tokenizer, and the cached contextualization weights of the last texts.
#[derive(Debug)]
pub struct AppState {
    pub(crate) model: LanguageModel,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) name: String,
    /// Most recently used first.
    contexts: VecDeque<Rc<TextContext>>,
}

impl AppState {
    /// Creates the state for a model. The page shows `name`.
    ///
    /// # Errors
    /// The model is a GPT-2, or the tokenizer has more ids than the model.
    pub fn new(model: LanguageModel, tokenizer: Tokenizer, name: String) -> Result<Self> {
        ensure!(
            model.backpack().is_some(),
            "{name} is a GPT-2, which has no senses to explore: give a Backpack (generate and eval accept both)"
        );
        tokenizer.check_fits(model.config())?;
        Ok(AppState { model, tokenizer, name, contexts: VecDeque::new() })
    }

    /// Returns the JSON of a token: its id, and its text with the leading space.
    pub(crate) fn token_json(&self, id: i64) -> Value {
        // Padding ids of the model have no text.
        json!({ "token": id, "word": self.tokenizer.decode(&[id]).unwrap_or_default() })
    }

    /// Returns the ids of a text, given as text or as ids, and checks that it fits the model.
    pub(crate) fn parse_text(&self, text: Option<String>, ids: Option<Vec<i64>>) -> Result<Vec<i64>, ApiError> {
        let ids = match (text, ids) {
            (Some(text), None) => self.tokenizer.encode(&text)?,
            (None, Some(ids)) => ids,
            _ => return Err(ApiError::bad_request("give either a \"text\" or \"ids\"")),
        };
        if ids.is_empty() {
            return Err(ApiError::bad_request("the text is empty: give at least one word"));
        }
        let (length, context) = (ids.len(), self.model.config().n_positions);
        if length as i64 > context {
            return Err(ApiError::too_large(format!(
                "the text has {length} tokens, more than the model's context of {context}: shorten it"
            )));
        }
        self.model.check_ids(&ids)?;
        Ok(ids)
    }

    /// Returns the token of a request, given as a word or as an id.
    pub(crate) fn parse_token(&self, word: Option<String>, token: Option<i64>) -> Result<i64, ApiError> {
        match (word, token) {
            (None, Some(id)) => {
                self.model.check_ids(&[id])?;
                Ok(id)
            }
            (Some(word), None) => self.tokenizer.word_id(&word).map_err(|error| {
                let pieces = self.tokenizer.encode(&format!(" {}", word.trim())).unwrap_or_default();
                let pieces = pieces.into_iter().map(|id| self.token_json(id)).collect();
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error).with_pieces(pieces)
            }),
            _ => Err(ApiError::bad_request("give either a \"word\" or a \"token\" (an id)")),
        }
    }

    /// Parses edits in the format of `--edit`.
    pub(crate) fn parse_edits(&self, edits: Option<&Value>) -> Result<Vec<SenseEdit>, ApiError> {
        let Some(edits) = edits else { return Ok(Vec::new()) };
        let edits = evals::parse_edits(edits, Some(&self.tokenizer))?;
        if edits.len() > MAX_EDITS {
            let message =
                format!("{} edits are more than the limit of {MAX_EDITS} per request: give fewer", edits.len());
            return Err(ApiError::too_large(message));
        }
        Ok(edits)
    }

    /// Returns the contextualization weights of a text, from the cache or newly computed.
    pub(crate) fn text_context(
        &mut self,
        text: Option<String>,
        ids: Option<Vec<i64>>,
    ) -> Result<Rc<TextContext>, ApiError> {
        let ids = self.parse_text(text, ids)?;
        let cached = self.contexts.iter().position(|context| context.ids == ids);
        let context = match cached.and_then(|index| self.contexts.remove(index)) {
            Some(context) => context,
            None => Rc::new(TextContext::new(&self.model, &ids)?),
        };
        self.contexts.push_front(Rc::clone(&context));
        self.contexts.truncate(MAX_CACHED_CONTEXTS);
        Ok(context)
    }
}
