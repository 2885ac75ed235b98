//! Requests: texts as the tokens that a model reads and predicts, prepared like in
//! lm-evaluation-harness.

use anyhow::{Context, Result, ensure};
use model::{GPT2_END_OF_TEXT, ModelConfig};

use crate::tokenizer::Tokenizer;

/// A sequence of tokens whose last tokens are scored, each one predicted from all tokens before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScoringRequest {
    ids: Vec<i64>,
    scored: usize,
    is_truncated: bool,
}

impl ScoringRequest {
    /// Creates a request that scores `after`, with as much of the end of `before` as the model's
    /// context of `context` tokens has room for.
    ///
    /// # Errors
    /// `before` or `after` is empty, or `after` alone is longer than the context.
    pub(crate) fn new(before: Vec<i64>, after: Vec<i64>, context: usize) -> Result<Self> {
        let scored = after.len();
        ensure!(scored > 0, "there is no token to predict");
        ensure!(!before.is_empty(), "the text before the scored tokens has no tokens");
        ensure!(
            scored <= context,
            "{scored} tokens must be predicted, more than the model's context of {context} (n_positions): shorten the text"
        );
        let mut ids = [before, after].concat();
        // The last token is only predicted, so the request may be one token longer than the
        // context.
        let surplus = ids.len().saturating_sub(context + 1);
        ids.drain(..surplus);
        Ok(ScoringRequest { ids, scored, is_truncated: surplus > 0 })
    }

    /// Returns the input tokens: all but the last token.
    pub(crate) fn inputs(&self) -> &[i64] {
        &self.ids[..self.ids.len() - 1]
    }

    /// Returns the scored tokens, which are predicted at the last positions of the inputs.
    pub(crate) fn targets(&self) -> &[i64] {
        &self.ids[self.ids.len() - self.scored..]
    }

    /// Reports whether the text was cut at its start, because it was longer than the model's
    /// context.
    pub(crate) fn is_truncated(&self) -> bool {
        self.is_truncated
    }
}

/// Turns texts into requests for a model. It has the model's tokenizer, its context length, and the
/// end-of-text id that precedes a text without context.
#[derive(Debug, Clone, Copy)]
pub struct PromptTokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// `None` if neither the model has one nor its vocabulary contains that of GPT-2.
    end_of_text: Option<i64>,
    context: usize,
}

impl<'a> PromptTokenizer<'a> {
    /// Creates the prompt tokenizer of a model with this shape.
    ///
    /// # Errors
    /// The tokenizer has more ids than the model, or the model's end-of-text id is outside its
    /// vocabulary.
    pub fn new(config: &ModelConfig, tokenizer: &'a Tokenizer) -> Result<Self> {
        tokenizer.check_fits(config)?;
        let vocab_size = config.vocab_size;
        // If config.json has no end-of-text id, assume that of GPT-2.
        let assumed = (vocab_size > GPT2_END_OF_TEXT).then_some(GPT2_END_OF_TEXT);
        let end_of_text = config.end_of_text.or(assumed);
        if let Some(id) = end_of_text {
            ensure!(
                (0..vocab_size).contains(&id),
                "the model's config.json has eos_token_id {id}, which is outside its vocabulary of {vocab_size}"
            );
        }
        Ok(PromptTokenizer { tokenizer, end_of_text, context: config.n_positions as usize })
    }

    /// Returns the tokenizer of the model.
    pub(crate) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// Returns the end-of-text id, which precedes a text without context.
    fn start_id(&self) -> Result<i64> {
        self.end_of_text
            .context("the model's config.json has no eos_token_id, which must precede a text without context: add it")
    }

    /// Returns the request that scores a continuation after a context. If both together are too
    /// long for the model, the start of the context is cut. White space at the end of the context
    /// is moved to the continuation, because it is part of the token of the next word.
    ///
    /// # Errors
    /// The continuation has no token, or it alone is longer than the model's context.
    pub(crate) fn continuation(&self, context: &str, continuation: &str) -> Result<ScoringRequest> {
        let bare = context.trim_end_matches(is_white_space);
        let continuation = format!("{}{continuation}", &context[bare.len()..]);
        if bare.is_empty() {
            return ScoringRequest::new(vec![self.start_id()?], self.tokenizer.encode(&continuation)?, self.context);
        }
        let before = self.tokenizer.encode(bare)?;
        let mut after = self.tokenizer.encode(&format!("{bare}{continuation}"))?;
        // Like the harness, drop as many tokens as the context alone has, even if the tokens
        // differ.
        after.drain(..before.len().min(after.len()));
        ScoringRequest::new(before, after, self.context)
    }

    /// Splits a text of any length into windows in which each token is predicted exactly once. A
    /// full window starts with the last token of the previous one. The last window is extended to
    /// the left to full length, so that its tokens have more context.
    ///
    /// # Errors
    /// The tokenizer fails on the text, or there is no end-of-text id.
    pub(crate) fn windows(&self, text: &str) -> Result<Vec<ScoringRequest>> {
        Ok(windows(&self.tokenizer.encode(text)?, self.start_id()?, self.context))
    }
}

fn windows(ids: &[i64], end_of_text: i64, context: usize) -> Vec<ScoringRequest> {
    let (first, rest) = ids.split_at(ids.len().min(context));
    if first.is_empty() {
        return Vec::new();
    }
    let initial = ScoringRequest { ids: [&[end_of_text], first].concat(), scored: first.len(), is_truncated: false };
    let mut end = first.len();
    let following = rest.chunks(context).map(|predicted| {
        end += predicted.len();
        let ids = ids[end - context - 1..end].to_vec();
        ScoringRequest { ids, scored: predicted.len(), is_truncated: false }
    });
    std::iter::once(initial).chain(following).collect()
}

/// Reports whether Python's `str.isspace` and `\s` match a character: Unicode's white space and
/// four separators.
pub(crate) fn is_white_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\x1c'..='\x1f')
}

#[cfg(test)]
mod tests {
    use model::Architecture;

    use super::*;
    use crate::testing;

    fn request(ids: &[i64], scored: usize, is_truncated: bool) -> ScoringRequest {
        ScoringRequest { ids: ids.to_vec(), scored, is_truncated }
    }

    /// Returns the text of the unscored and of the scored tokens of a request.
    fn texts(request: &ScoringRequest, tokenizer: &Tokenizer) -> (String, String) {
        let (before, after) = request.ids.split_at(request.ids.len() - request.scored);
        (tokenizer.decode(before).unwrap(), tokenizer.decode(after).unwrap())
    }

    #[test]
    fn white_space_before_a_word_belongs_to_the_word() {
        let tokenizer = testing::tokenizer();
        let prompt_tokenizer = PromptTokenizer::new(&testing::config(Architecture::Backpack), &tokenizer).unwrap();
        for (context, continuation, want) in [
            ("The cat sat", " down", ("The cat sat", " down")),
            ("The cat \u{a0}\n", " down", ("The cat", " \u{a0}\n down")),
            ("", " down", ("<|endoftext|>", " down")),
            ("", "", ("<|endoftext|>", "")),
            (" \t", " down", ("<|endoftext|>", " \t down")),
            // Only the last nine tokens are kept.
            ("a b c d e f g h i", " down", (" b c d e f g h i", " down")),
        ] {
            let (before, after) = match prompt_tokenizer.continuation(context, continuation) {
                Ok(request) => texts(&request, &tokenizer),
                Err(error) => {
                    assert_eq!((error.to_string().as_str(), continuation), ("there is no token to predict", ""));
                    continue;
                }
            };
            assert_eq!((before.as_str(), after.as_str()), want);
        }
        assert!(prompt_tokenizer.continuation("a b c d e f g h i", " j").unwrap().is_truncated());
        assert!(!prompt_tokenizer.continuation("a b c d e f g h", " i").unwrap().is_truncated());
        let error = prompt_tokenizer.continuation("", " a b c d e f g h i").unwrap_err().to_string();
        assert!(error.starts_with("9 tokens must be predicted, more than the model's context of 8"), "{error}");
    }

    /// The expected windows are those of lm_eval 0.4.9:
    /// `map(make_disjoint_window, get_rolling_token_windows(list(range(n)), 99, 4, 1))`.
    #[test]
    fn windows_equal_those_of_the_harness() {
        let window = |ids: &[i64], scored| request(ids, scored, false);
        let first = window(&[99, 0, 1, 2, 3], 4);
        for (n, want) in [
            (0, vec![]),
            (1, vec![window(&[99, 0], 1)]),
            (4, vec![first.clone()]),
            (5, vec![first.clone(), window(&[0, 1, 2, 3, 4], 1)]),
            (11, vec![first, window(&[3, 4, 5, 6, 7], 4), window(&[6, 7, 8, 9, 10], 3)]),
        ] {
            assert_eq!(windows(&(0..n).collect::<Vec<i64>>(), 99, 4), want, "{n}");
        }
    }

    #[test]
    fn tokenizer_of_another_model_is_an_error() {
        let tokenizer = testing::tokenizer();
        let error = |config: ModelConfig| PromptTokenizer::new(&config, &tokenizer).unwrap_err().to_string();
        let config = testing::config(Architecture::Gpt2);
        assert!(error(ModelConfig { vocab_size: 311, ..config.clone() }).contains("50257 ids, more than the model's"));
        assert!(error(ModelConfig { end_of_text: Some(50_264), ..config.clone() }).contains("eos_token_id 50264"));
        let without_end_of_text = ModelConfig { end_of_text: None, ..config };
        assert_eq!(PromptTokenizer::new(&without_end_of_text, &tokenizer).unwrap().end_of_text, Some(GPT2_END_OF_TEXT));
    }
}
