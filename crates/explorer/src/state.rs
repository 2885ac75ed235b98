//! The model and what is asked of it. One thread owns it: nothing here is shared.

use std::collections::VecDeque;
use std::rc::Rc;

use anyhow::{Result, ensure};
use evals::{TextContext, Tokenizer, parse_edits};
use hyper::StatusCode;
use model::{LanguageModel, SenseEdit};
use serde_json::{Value, json};

use crate::api::{self, Endpoint, MOST_EDITS};
use crate::error::ApiError;
use crate::handlers;
use crate::worker::ApiResponse;

/// Texts whose contextualization is kept: what a page asks next is mostly about the same text, and a slider
/// changes nothing of it. One of 512 tokens is 17 MB.
const KEPT_CONTEXTS: usize = 8;

/// A model, its words, and what was made of the last texts.
#[derive(Debug)]
pub struct AppState {
    pub(crate) model: LanguageModel,
    pub(crate) tokenizer: Tokenizer,
    name: String,
    contexts: VecDeque<Rc<TextContext>>,
}

impl AppState {
    /// A model under the name that the page shows.
    ///
    /// # Errors
    /// When it is a GPT-2, or its vocabulary is smaller than the tokenizer's.
    pub fn new(model: LanguageModel, tokenizer: Tokenizer, name: String) -> Result<Self> {
        ensure!(
            model.backpack().is_some(),
            "{name} is a GPT-2, which has no senses to explore: give a Backpack (generate and eval take both)"
        );
        tokenizer.check_fits(model.config())?;
        Ok(AppState { model, tokenizer, name, contexts: VecDeque::new() })
    }

    /// The answer to a question of this kind.
    pub(crate) fn answer(&mut self, kind: Endpoint, body: &[u8]) -> ApiResponse {
        let answer = match kind {
            Endpoint::Model => Ok(self.describe()),
            Endpoint::Senses => handlers::senses(self, api::parse(body)?),
            Endpoint::Reading => handlers::reading(self, api::parse(body)?),
            Endpoint::Weights => handlers::weights(self, api::parse(body)?),
            Endpoint::Contributions => handlers::contributions(self, api::parse(body)?),
            Endpoint::Next => handlers::next(self, api::parse(body)?),
            Endpoint::Generate => handlers::generate(self, api::parse(body)?),
        }?;
        Ok(answer.to_string().into_bytes())
    }

    fn describe(&self) -> Value {
        let config = self.model.config();
        let edited = self.model.backpack().and_then(|backpack| backpack.edited());
        let edited: Vec<i64> = edited.map(|edited| edited.parts().0.to_vec()).unwrap_or_default();
        let parameters: i64 = self.model.parameters().iter().map(|(_, tensor)| tensor.numel() as i64).sum();
        json!({
            "name": self.name,
            "parameters": parameters,
            "num_senses": config.num_senses,
            "n_embd": config.n_embd,
            "n_layer": config.n_layer,
            "n_head": config.n_head,
            "n_positions": config.n_positions,
            "vocab_size": config.vocab_size,
            "edited": edited.iter().map(|&id| self.word(id)).collect::<Vec<_>>(),
            "limits": api::limits(),
        })
    }

    /// A token as every answer shows it: its id, and its text with the space that belongs to it.
    pub(crate) fn word(&self, id: i64) -> Value {
        // The model's ids past the tokenizer's have no text.
        json!({ "token": id, "word": self.tokenizer.decode(&[id]).unwrap_or_default() })
    }

    /// The ids of a text that fits the model.
    pub(crate) fn ids(&self, text: Option<String>, ids: Option<Vec<i64>>) -> Result<Vec<i64>, ApiError> {
        let ids = match (text, ids) {
            (Some(text), None) => self.tokenizer.encode(&text)?,
            (None, Some(ids)) => ids,
            _ => return Err(ApiError::bad("the request names either a \"text\" or \"ids\": give one of them")),
        };
        if ids.is_empty() {
            return Err(ApiError::bad("the text is empty: give at least one word"));
        }
        let (length, context) = (ids.len(), self.model.config().n_positions);
        if length as i64 > context {
            return Err(api::too_large(format!(
                "the text has {length} tokens, more than the model's context of {context}: shorten it"
            )));
        }
        self.model.check_ids(&ids)?;
        Ok(ids)
    }

    /// The token that a word is, or that an id names.
    pub(crate) fn token(&self, word: Option<String>, token: Option<i64>) -> Result<i64, ApiError> {
        match (word, token) {
            (None, Some(id)) => {
                self.model.check_ids(&[id])?;
                Ok(id)
            }
            (Some(word), None) => self.tokenizer.word_id(&word).map_err(|error| {
                let pieces = self.tokenizer.encode(&format!(" {}", word.trim())).unwrap_or_default();
                let pieces = pieces.into_iter().map(|id| self.word(id)).collect();
                ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, error).with_pieces(pieces)
            }),
            _ => Err(ApiError::bad("the request names either a \"word\" or a \"token\" (an id): give one of them")),
        }
    }

    /// Edits in the form of `--edit`.
    pub(crate) fn edits(&self, given: Option<&Value>) -> Result<Vec<SenseEdit>, ApiError> {
        let Some(given) = given else { return Ok(Vec::new()) };
        let edits = parse_edits(given, Some(&self.tokenizer))?;
        if edits.len() > MOST_EDITS {
            let sentence = format!("{} edits are more than the {MOST_EDITS} of one request: give fewer", edits.len());
            return Err(api::too_large(sentence));
        }
        Ok(edits)
    }

    /// The contextualization of a text that fits the model, kept or made.
    pub(crate) fn context(&mut self, text: Option<String>, ids: Option<Vec<i64>>) -> Result<Rc<TextContext>, ApiError> {
        let ids = self.ids(text, ids)?;
        let kept = self.contexts.iter().position(|context| context.ids == ids);
        let context = match kept.and_then(|place| self.contexts.remove(place)) {
            Some(context) => context,
            None => Rc::new(TextContext::new(&self.model, &ids)?),
        };
        self.contexts.push_front(Rc::clone(&context));
        self.contexts.truncate(KEPT_CONTEXTS);
        Ok(context)
    }
}
