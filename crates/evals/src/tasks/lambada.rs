//! LAMBADA (Paperno et al., ACL 2016) in OpenAI's version: predicting the last word of a passage,
//! which requires the whole passage.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::scoring::Scorer;
use crate::scoring::input_files::{find_one_file, has_suffix, read_jsonl, text_field};
use crate::scoring::requests::{PromptTokenizer, ScoringRequest, is_white_space};

/// One request per passage, which scores its last word.
#[derive(Debug)]
pub(crate) struct Passages(Vec<ScoringRequest>);

/// The result of a model on LAMBADA.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LambadaResult {
    /// The mean over the passages of the negative log-probability of the last word, in nats.
    pub loss: f64,
    /// The exponential of `loss`.
    pub perplexity: f64,
    /// The share of passages in which every token of the last word is the most probable one.
    pub accuracy: f64,
    /// The number of tokens of the last words.
    pub tokens: u64,
    /// The number of passages.
    pub passages: u64,
    /// The number of passages that were cut at their start to fit the model's context.
    pub truncated: u64,
}

impl Passages {
    /// Reads the first `limit` passages of a `.jsonl` file, or of the one in a directory. Each line
    /// is an object with the key `text`.
    ///
    /// # Errors
    /// A line is malformed, or its last word is longer than the model's context; the error names
    /// file and line.
    pub(crate) fn open(path: &Path, limit: usize, prompt_tokenizer: &PromptTokenizer) -> Result<Self> {
        let file = find_one_file(path, &["jsonl"])?;
        ensure!(
            !has_suffix(&file, "txt"),
            "{} is plain text, like the original LAMBADA: give OpenAI's version, a .jsonl file with {{\"text\": ...}} per line",
            file.display()
        );
        let passages = read_jsonl(&file, limit, |object| {
            let text = text_field(object, "text")?;
            ensure!(!text.chars().all(is_white_space), "the text has no word");
            let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
            prompt_tokenizer.continuation(context, &format!(" {word}")).context("the last word cannot be scored")
        });
        Ok(Passages(passages?))
    }

    /// Returns a warning if passages are longer than the model's context.
    pub(crate) fn warning(&self) -> Option<String> {
        let (truncated, all) = (self.truncated(), self.0.len());
        (truncated > 0).then(|| {
            format!(
                "{truncated} of {all} passages are longer than the model's context and are cut at their start, as in lm-evaluation-harness"
            )
        })
    }

    fn truncated(&self) -> u64 {
        self.0.iter().filter(|request| request.is_truncated()).count() as u64
    }

    /// Measures the model of `scorer`.
    ///
    /// # Errors
    /// The model's outputs are not finite.
    pub(crate) fn measure(&self, scorer: &mut Scorer) -> Result<LambadaResult> {
        let scores = scorer.score(&self.0)?;
        let passages = scores.len() as f64;
        let loss = -scores.iter().map(|score| score.log_probability).sum::<f64>() / passages;
        Ok(LambadaResult {
            loss,
            perplexity: loss.exp(),
            accuracy: scores.iter().filter(|score| score.is_greedy).count() as f64 / passages,
            tokens: self.0.iter().map(|request| request.targets().len() as u64).sum(),
            passages: scores.len() as u64,
            truncated: self.truncated(),
        })
    }
}

#[cfg(test)]
mod tests {
    use model::Architecture;

    use super::*;
    use crate::testing;

    #[test]
    fn last_word_follows_the_last_space() {
        let (dir, tokenizer, model) =
            (tempfile::tempdir().unwrap(), testing::tokenizer(), testing::model(Architecture::Gpt2));
        let prompt_tokenizer = PromptTokenizer::new(model.config(), &tokenizer).unwrap();
        let text =
            "{\"text\": \"The cat sat\\n on the mat\"}\n{\"text\": \"one\"}\n{\"text\": \"a b c d e f g h i\"}\n";
        let file = testing::write(dir.path(), "x.jsonl", text);
        let passages = Passages::open(&file, 9, &prompt_tokenizer).unwrap();
        let words: Vec<String> =
            passages.0.iter().map(|request| tokenizer.decode(request.targets()).unwrap()).collect();
        assert_eq!(words, [" mat", " one", " i"]);
        assert_eq!(passages.warning(), None);
        let got = testing::with_scorer(&model, |scorer| passages.measure(scorer)).unwrap();
        assert_eq!((got.passages, got.tokens, got.truncated), (3, 3, 0));
        assert!((got.perplexity.ln() - got.loss).abs() < 1e-9 && got.loss > 0.0);
        let long = testing::write(dir.path(), "x.jsonl", "{\"text\": \"a b c d e f g h i j\"}\n");
        let passages = Passages::open(&long, 9, &prompt_tokenizer).unwrap();
        assert!(passages.warning().is_some_and(|warning| warning.starts_with("1 of 1 passages are longer")));
    }

    #[test]
    fn malformed_passages_are_errors() {
        let (dir, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        let prompt_tokenizer = PromptTokenizer::new(&testing::config(Architecture::Gpt2), &tokenizer).unwrap();
        let error = |name: &str, text: &str| {
            format!("{:#}", Passages::open(&testing::write(dir.path(), name, text), 9, &prompt_tokenizer).unwrap_err())
        };
        assert!(error("x.jsonl", "{\"text\": \" \"}").contains("x.jsonl line 1: the text has no word"));
        let long = error("x.jsonl", "{\"text\": \"to Llanfairpwllgwyngyllgogerych\"}");
        assert!(long.contains("x.jsonl line 1: the last word cannot be scored: "), "{long}");
        assert!(error("x.txt", "once upon a time").contains("x.txt is plain text"));
    }
}
