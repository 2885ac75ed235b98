//! LAMBADA (Paperno et al., ACL 2016) in OpenAI's version: the last word of a passage, which takes
//! the whole passage to guess.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::scoring::Scorer;
use crate::scoring::input_files::{ends_in, read_jsonl, text, the_file};
use crate::scoring::requests::{PromptTokenizer, ScoringRequest, is_white_space};

/// The passages.
#[derive(Debug)]
pub(crate) struct Passages(Vec<ScoringRequest>);

/// How a model does on LAMBADA.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LambadaResult {
    /// Mean over the passages of the negative log-probability of the last word, in nats.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Share of the passages whose last word is the most probable, token by token.
    pub accuracy: f64,
    /// Tokens of the last words.
    pub tokens: u64,
    /// Passages that were read.
    pub passages: u64,
    /// Of these, those that lost their beginning to the model's context.
    pub truncated: u64,
}

impl Passages {
    /// Reads the first `most` passages of a `.jsonl` file, or of the one in a folder: objects with `text`.
    ///
    /// # Errors
    /// Naming the file and the line that is not so, or whose last word is longer than the model's context.
    pub(crate) fn open(path: &Path, most: usize, framing: &PromptTokenizer) -> Result<Self> {
        let file = the_file(path, &["jsonl"])?;
        ensure!(
            !ends_in(&file, "txt"),
            "{} is plain text, as LAMBADA was published first: OpenAI's version is wanted, a .jsonl file with {{\"text\": ...}} a line",
            file.display()
        );
        let passages = read_jsonl(&file, most, |object| {
            let text = text(object, "text")?;
            ensure!(!text.chars().all(is_white_space), "has no word in its text");
            let (context, word) = text.rsplit_once(' ').unwrap_or(("", text));
            framing.continuation(context, &format!(" {word}")).context("has a last word that cannot be measured")
        });
        Ok(Passages(passages?))
    }

    /// That passages are longer than the model's context.
    pub(crate) fn warning(&self) -> Option<String> {
        let (truncated, all) = (self.truncated(), self.0.len());
        (truncated > 0).then(|| {
            format!(
                "{truncated} of {all} passages are longer than the model's context and lose their beginning, as in lm-evaluation-harness"
            )
        })
    }

    fn truncated(&self) -> u64 {
        self.0.iter().filter(|request| request.is_truncated()).count() as u64
    }

    /// # Errors
    /// Those of scoring.
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
    fn the_last_word_is_what_follows_the_last_blank() {
        let (folder, tokenizer, model) =
            (tempfile::tempdir().unwrap(), testing::tokenizer(), testing::model(Architecture::Gpt2));
        let framing = PromptTokenizer::new(model.config(), &tokenizer).unwrap();
        let text =
            "{\"text\": \"The cat sat\\n on the mat\"}\n{\"text\": \"one\"}\n{\"text\": \"a b c d e f g h i\"}\n";
        let file = testing::write(folder.path(), "x.jsonl", text);
        let passages = Passages::open(&file, 9, &framing).unwrap();
        let words: Vec<String> =
            passages.0.iter().map(|request| tokenizer.decode(request.targets()).unwrap()).collect();
        assert_eq!(words, [" mat", " one", " i"]);
        assert_eq!(passages.warning(), None);
        let got = testing::scored(&model, |scorer| passages.measure(scorer)).unwrap();
        assert_eq!((got.passages, got.tokens, got.truncated), (3, 3, 0));
        assert!((got.perplexity.ln() - got.loss).abs() < 1e-9 && got.loss > 0.0);
        let long = testing::write(folder.path(), "x.jsonl", "{\"text\": \"a b c d e f g h i j\"}\n");
        let passages = Passages::open(&long, 9, &framing).unwrap();
        assert!(passages.warning().is_some_and(|warning| warning.starts_with("1 of 1 passages are longer")));
    }

    #[test]
    fn what_is_no_passage_is_refused() {
        let (folder, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        let framing = PromptTokenizer::new(&testing::config(Architecture::Gpt2), &tokenizer).unwrap();
        let error = |name: &str, text: &str| {
            format!("{:#}", Passages::open(&testing::write(folder.path(), name, text), 9, &framing).unwrap_err())
        };
        assert!(error("x.jsonl", "{\"text\": \" \"}").contains("x.jsonl line 1: has no word in its text"));
        let long = error("x.jsonl", "{\"text\": \"to Llanfairpwllgwyngyllgogerych\"}");
        assert!(long.contains("x.jsonl line 1: has a last word that cannot be measured: "), "{long}");
        assert!(error("x.txt", "once upon a time").contains("x.txt is plain text"));
    }
}
