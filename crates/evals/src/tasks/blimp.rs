//! BLiMP (Warstadt et al., TACL 2020): of two sentences that differ in one point of grammar, the
//! acceptable one should be the more probable.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::scoring::Scorer;
use crate::scoring::input_files::{files, read_jsonl, text};
use crate::scoring::requests::{PromptTokenizer, ScoringRequest};

/// The pairs of all paradigms.
#[derive(Debug)]
pub(crate) struct MinimalPairs {
    /// Of each pair.
    paradigms: Vec<String>,
    /// Of each pair the acceptable sentence, then the other.
    requests: Vec<ScoringRequest>,
}

/// How a model does on BLiMP.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlimpResult {
    /// Mean cross-entropy of the acceptable sentences, in nats per token.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Mean of the paradigms' accuracies.
    pub accuracy: f64,
    /// Tokens of the acceptable sentences.
    pub tokens: u64,
    /// Pairs that were compared.
    pub pairs: u64,
    /// Share of the pairs whose acceptable sentence has the higher log-probability, or the same, by paradigm.
    pub paradigms: BTreeMap<String, f64>,
}

impl MinimalPairs {
    /// Reads the first `most` pairs of each `.jsonl` file of a folder, or of one file: objects
    /// with `sentence_good`, `sentence_bad` and `UID`, the paradigm (else the file's name is).
    ///
    /// # Errors
    /// Naming the file and the line that is not so, or that holds a sentence longer than the model's context.
    pub(crate) fn open(path: &Path, most: usize, framing: &PromptTokenizer) -> Result<Self> {
        let mut pairs = MinimalPairs { paradigms: Vec::new(), requests: Vec::new() };
        for file in files(path, &["jsonl"])? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let read = read_jsonl(&file, most, |object| {
                let paradigm = object.get("UID").and_then(Value::as_str).unwrap_or(&name);
                let of = |key: &str| {
                    let sentence = text(object, key)?;
                    framing.continuation("", &format!(" {sentence}")).with_context(|| format!("the {key}"))
                };
                Ok((paradigm.to_owned(), [of("sentence_good")?, of("sentence_bad")?]))
            })?;
            for (paradigm, requests) in read {
                pairs.paradigms.push(paradigm);
                pairs.requests.extend(requests);
            }
        }
        Ok(pairs)
    }

    /// # Errors
    /// Those of scoring.
    pub(crate) fn measure(&self, scorer: &mut Scorer) -> Result<BlimpResult> {
        let scores = scorer.score(&self.requests)?;
        let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let (mut sum, mut tokens) = (0.0, 0);
        for ((paradigm, pair), requests) in
            self.paradigms.iter().zip(scores.chunks_exact(2)).zip(self.requests.chunks_exact(2))
        {
            let (right, all) = counts.entry(paradigm).or_default();
            // Equal sentences, of which BLiMP has a few, count as right, as in lm-evaluation-harness.
            *right += u64::from(pair[0].log_probability >= pair[1].log_probability);
            *all += 1;
            sum -= pair[0].log_probability;
            tokens += requests[0].targets().len() as u64;
        }
        let paradigms: BTreeMap<String, f64> = counts
            .into_iter()
            .map(|(paradigm, (right, all))| (paradigm.to_owned(), right as f64 / all as f64))
            .collect();
        let loss = sum / tokens as f64;
        Ok(BlimpResult {
            loss,
            perplexity: loss.exp(),
            accuracy: paradigms.values().sum::<f64>() / paradigms.len() as f64,
            tokens,
            pairs: self.paradigms.len() as u64,
            paradigms,
        })
    }
}

#[cfg(test)]
mod tests {
    use model::Architecture;

    use super::*;
    use crate::testing;

    fn line(good: &str, bad: &str, uid: Option<&str>) -> String {
        let uid = uid.map_or(String::new(), |uid| format!(", \"UID\": \"{uid}\""));
        format!("{{\"sentence_good\": \"{good}\", \"sentence_bad\": \"{bad}\"{uid}}}\n")
    }

    #[test]
    fn accuracy_is_by_paradigm_and_its_mean() {
        let (folder, tokenizer, model) =
            (tempfile::tempdir().unwrap(), testing::tokenizer(), testing::model(Architecture::Backpack));
        let framing = PromptTokenizer::new(model.config(), &tokenizer).unwrap();
        // One order of these two is right, whichever the model prefers; equal sentences are.
        let (a, b) = ("The cats sleep.", "The cats sleeps.");
        let both = line(a, b, Some("agreement")) + &line(b, a, Some("agreement"));
        testing::write(folder.path(), "one.jsonl", &both);
        testing::write(folder.path(), "two.jsonl", &line(a, a, None));
        let open = |most| MinimalPairs::open(folder.path(), most, &framing).unwrap();
        let got = testing::scored(&model, |scorer| open(9).measure(scorer)).unwrap();
        let paradigms: Vec<_> = got.paradigms.iter().map(|(name, accuracy)| (name.as_str(), *accuracy)).collect();
        assert_eq!(paradigms, [("agreement", 0.5), ("two", 1.0)]);
        assert_eq!((got.accuracy, got.pairs), (0.75, 3));
        // 4 and 5 tokens: the acceptable ones are a, b, a.
        assert_eq!(got.tokens, tokenizer.encode(&format!(" {a} {b} {a}")).unwrap().len() as u64);
        assert_eq!(testing::scored(&model, |scorer| open(1).measure(scorer)).unwrap().pairs, 2);
    }

    #[test]
    fn a_line_that_is_no_pair_is_named() {
        let (folder, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        let framing = PromptTokenizer::new(&testing::config(Architecture::Gpt2), &tokenizer).unwrap();
        let error = |text: &str| {
            let file = testing::write(folder.path(), "x.jsonl", text);
            format!("{:#}", MinimalPairs::open(&file, 9, &framing).unwrap_err())
        };
        let good = line("a", "b", None);
        let missing = error(&format!("{good}{{\"sentence_good\": \"a\"}}"));
        assert!(missing.contains("x.jsonl line 2: has no key \"sentence_bad\" (it has sentence_good)"), "{missing}");
        let long = error(&(good + &line("a", "a b c d e f g h i", None)));
        assert!(long.contains("x.jsonl line 2: the sentence_bad: 9 tokens are to be predicted"), "{long}");
    }
}
