//! Texts as what a model is asked, framed as lm-evaluation-harness does it.

use anyhow::{Context, Result, ensure};
use model::{GPT2_END_OF_TEXT, ModelConfig};

use crate::tokenizer::Tokenizer;

/// Tokens of which the last ones are to be predicted, each from all before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ScoringRequest {
    ids: Vec<i64>,
    scored: usize,
    is_truncated: bool,
}

impl ScoringRequest {
    /// `after` behind what of `before` leaves room for it in a model's context.
    ///
    /// # Errors
    /// When `after` alone is longer than the context, or empty.
    pub(crate) fn of(before: Vec<i64>, after: Vec<i64>, context: usize) -> Result<Self> {
        let scored = after.len();
        ensure!(scored > 0, "there is no token to predict");
        ensure!(!before.is_empty(), "its context has no token in this tokenizer");
        ensure!(
            scored <= context,
            "{scored} tokens are to be predicted, more than the model's context of {context} (n_positions): shorten the text"
        );
        let mut ids = [before, after].concat();
        // The last token is predicted, not read.
        let surplus = ids.len().saturating_sub(context + 1);
        ids.drain(..surplus);
        Ok(ScoringRequest { ids, scored, is_truncated: surplus > 0 })
    }

    /// What the model reads: all but the last token.
    pub(crate) fn inputs(&self) -> &[i64] {
        &self.ids[..self.ids.len() - 1]
    }

    /// What it should predict, at the last positions of the inputs.
    pub(crate) fn targets(&self) -> &[i64] {
        &self.ids[self.ids.len() - self.scored..]
    }

    /// Whether the context lost its beginning, because it was longer than the model's.
    pub(crate) fn is_truncated(&self) -> bool {
        self.is_truncated
    }
}

/// How texts are framed for a model: its tokenizer, its context, and the end-of-text id that
/// stands before a text without a context.
#[derive(Debug, Clone, Copy)]
pub struct PromptTokenizer<'a> {
    tokenizer: &'a Tokenizer,
    /// None where the model does not say.
    end_of_text: Option<i64>,
    context: usize,
}

impl<'a> PromptTokenizer<'a> {
    /// For a model of this shape.
    ///
    /// # Errors
    /// When the tokenizer has ids that the model lacks, or the model's end-of-text id is none of its own.
    pub fn new(config: &ModelConfig, tokenizer: &'a Tokenizer) -> Result<Self> {
        tokenizer.check_fits(config)?;
        let vocab_size = config.vocab_size;
        // A config.json without one is of data that does not say; GPT-2's where there is room for it.
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

    /// The tokenizer.
    pub(crate) fn tokenizer(&self) -> &'a Tokenizer {
        self.tokenizer
    }

    /// What stands before a text without a context.
    fn beginning(&self) -> Result<i64> {
        self.end_of_text.context(
            "the model's config.json has no eos_token_id, which stands before a text without a context: add it there",
        )
    }

    /// A continuation after a context, which loses its beginning where both are longer than the
    /// model's. White space at the context's end goes to the continuation, since it is part of
    /// the next word's token.
    ///
    /// # Errors
    /// When the continuation alone is longer than the model's context, or no token.
    pub(crate) fn continuation(&self, context: &str, continuation: &str) -> Result<ScoringRequest> {
        let bare = context.trim_end_matches(is_white_space);
        let continuation = format!("{}{continuation}", &context[bare.len()..]);
        if bare.is_empty() {
            return ScoringRequest::of(vec![self.beginning()?], self.tokenizer.encode(&continuation)?, self.context);
        }
        let before = self.tokenizer.encode(bare)?;
        let mut after = self.tokenizer.encode(&format!("{bare}{continuation}"))?;
        // The tokens past as many as the context has by itself, whether or not these are the same.
        after.drain(..before.len().min(after.len()));
        ScoringRequest::of(before, after, self.context)
    }

    /// Windows over a text of any length in which each token is predicted once: from the
    /// window's beginning, which is the last token of the window before; the last window
    /// is a whole one, too, so that its tokens have more before them.
    ///
    /// # Errors
    /// When the tokenizer refuses, or the model does not say what its end-of-text id is.
    pub(crate) fn windows(&self, text: &str) -> Result<Vec<ScoringRequest>> {
        Ok(windows(&self.tokenizer.encode(text)?, self.beginning()?, self.context))
    }
}

fn windows(ids: &[i64], end_of_text: i64, context: usize) -> Vec<ScoringRequest> {
    let (first, rest) = ids.split_at(ids.len().min(context));
    if first.is_empty() {
        return Vec::new();
    }
    let begin = ScoringRequest { ids: [&[end_of_text], first].concat(), scored: first.len(), is_truncated: false };
    let mut end = first.len();
    let others = rest.chunks(context).map(|predicted| {
        end += predicted.len();
        let ids = ids[end - context - 1..end].to_vec();
        ScoringRequest { ids, scored: predicted.len(), is_truncated: false }
    });
    std::iter::once(begin).chain(others).collect()
}

/// What Python's `str.isspace` and `\s` mean: Unicode's white space and four separators.
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

    /// The tokens of a request's context and of what is scored, as text.
    fn parts(request: &ScoringRequest, tokenizer: &Tokenizer) -> (String, String) {
        let (before, after) = request.ids.split_at(request.ids.len() - request.scored);
        (tokenizer.decode(before).unwrap(), tokenizer.decode(after).unwrap())
    }

    #[test]
    fn white_space_before_a_word_is_the_words() {
        let tokenizer = testing::tokenizer();
        let framing = PromptTokenizer::new(&testing::config(Architecture::Backpack), &tokenizer).unwrap();
        for (context, continuation, want) in [
            ("The cat sat", " down", ("The cat sat", " down")),
            ("The cat \u{a0}\n", " down", ("The cat", " \u{a0}\n down")),
            ("", " down", ("<|endoftext|>", " down")),
            ("", "", ("<|endoftext|>", "")),
            (" \t", " down", ("<|endoftext|>", " \t down")),
            // Of more than nine tokens the first go.
            ("a b c d e f g h i", " down", (" b c d e f g h i", " down")),
        ] {
            let (before, after) = match framing.continuation(context, continuation) {
                Ok(request) => parts(&request, &tokenizer),
                Err(error) => {
                    assert_eq!((error.to_string().as_str(), continuation), ("there is no token to predict", ""));
                    continue;
                }
            };
            assert_eq!((before.as_str(), after.as_str()), want);
        }
        assert!(framing.continuation("a b c d e f g h i", " j").unwrap().is_truncated());
        assert!(!framing.continuation("a b c d e f g h", " i").unwrap().is_truncated());
        let error = framing.continuation("", " a b c d e f g h i").unwrap_err().to_string();
        assert!(error.starts_with("9 tokens are to be predicted, more than the model's context of 8"), "{error}");
    }

    /// `map(make_disjoint_window, get_rolling_token_windows(list(range(n)), 99, 4, 1))` of lm_eval 0.4.9.
    #[test]
    fn windows_are_the_harness_s() {
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
    fn a_tokenizer_that_is_not_the_models_is_refused() {
        let tokenizer = testing::tokenizer();
        let error = |config: ModelConfig| PromptTokenizer::new(&config, &tokenizer).unwrap_err().to_string();
        let config = testing::config(Architecture::Gpt2);
        assert!(error(ModelConfig { vocab_size: 311, ..config.clone() }).contains("50257 ids, more than the model's"));
        assert!(error(ModelConfig { end_of_text: Some(50_264), ..config.clone() }).contains("eos_token_id 50264"));
        let silent = ModelConfig { end_of_text: None, ..config };
        assert_eq!(PromptTokenizer::new(&silent, &tokenizer).unwrap().end_of_text, Some(GPT2_END_OF_TEXT));
    }
}
