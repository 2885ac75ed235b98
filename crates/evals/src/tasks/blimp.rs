//! BLiMP (Warstadt et al., TACL 2020): pairs of sentences that differ in one point of grammar. The
//! acceptable sentence should be more probable than the unacceptable one.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::scoring::Scorer;
use crate::scoring::input_files::{find_files, read_jsonl, text_field};
use crate::scoring::requests::{PromptTokenizer, ScoringRequest};

/// The sentence pairs of all paradigms.
#[derive(Debug)]
pub(crate) struct MinimalPairs {
    /// The paradigm of each pair.
    paradigms: Vec<String>,
    /// Two requests per pair: the acceptable sentence, then the unacceptable one.
    requests: Vec<ScoringRequest>,
}

/// The result of a model on BLiMP.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BlimpResult {
    /// The mean cross-entropy of the acceptable sentences, in nats per token.
    pub loss: f64,
    /// The exponential of `loss`.
    pub perplexity: f64,
    /// The mean of the accuracies of the paradigms.
    pub accuracy: f64,
    /// The number of tokens of the acceptable sentences.
    pub tokens: u64,
    /// The number of pairs.
    pub pairs: u64,
    /// By paradigm, the share of pairs whose acceptable sentence has a higher or equal
    /// log-probability.
    pub paradigms: BTreeMap<String, f64>,
}

impl MinimalPairs {
    /// Reads the first `limit` pairs of each `.jsonl` file of a directory, or of one file. A line
    /// is an object with `sentence_good`, `sentence_bad` and optionally `UID`, the paradigm.
    /// Without `UID`, the file name is the paradigm.
    ///
    /// # Errors
    /// A line is malformed, or a sentence is longer than the model's context; the error names file
    /// and line.
    pub(crate) fn open(path: &Path, limit: usize, prompt_tokenizer: &PromptTokenizer) -> Result<Self> {
        let mut pairs = MinimalPairs { paradigms: Vec::new(), requests: Vec::new() };
        for file in find_files(path, &["jsonl"])? {
            let name = file.file_stem().unwrap_or_default().to_string_lossy();
            let read = read_jsonl(&file, limit, |object| {
                let paradigm = object.get("UID").and_then(Value::as_str).unwrap_or(&name);
                let request = |key: &str| {
                    let sentence = text_field(object, key)?;
                    prompt_tokenizer.continuation("", &format!(" {sentence}")).with_context(|| format!("the {key}"))
                };
                Ok((paradigm.to_owned(), [request("sentence_good")?, request("sentence_bad")?]))
            })?;
            for (paradigm, requests) in read {
                pairs.paradigms.push(paradigm);
                pairs.requests.extend(requests);
            }
        }
        Ok(pairs)
    }

    /// Measures the model of `scorer`.
    ///
    /// # Errors
    /// The model's outputs are not finite.
    pub(crate) fn measure(&self, scorer: &mut Scorer) -> Result<BlimpResult> {
        let scores = scorer.score(&self.requests)?;
        let mut counts: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        let (mut sum, mut tokens) = (0.0, 0);
        for ((paradigm, pair), requests) in
            self.paradigms.iter().zip(scores.chunks_exact(2)).zip(self.requests.chunks_exact(2))
        {
            let (correct, total) = counts.entry(paradigm).or_default();
            // A pair of equal sentences counts as correct, as in lm-evaluation-harness. BLiMP has a
            // few.
            *correct += u64::from(pair[0].log_probability >= pair[1].log_probability);
            *total += 1;
            sum -= pair[0].log_probability;
            tokens += requests[0].targets().len() as u64;
        }
        let paradigms: BTreeMap<String, f64> = counts
            .into_iter()
            .map(|(paradigm, (correct, total))| (paradigm.to_owned(), correct as f64 / total as f64))
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
    fn accuracy_is_the_mean_over_paradigms() {
        let (dir, tokenizer, model) =
            (tempfile::tempdir().unwrap(), testing::tokenizer(), testing::model(Architecture::Backpack));
        let prompt_tokenizer = PromptTokenizer::new(model.config(), &tokenizer).unwrap();
        // Exactly one order of these two sentences is correct, whichever the model prefers. Equal
        // sentences are correct, too.
        let (a, b) = ("The cats sleep.", "The cats sleeps.");
        let both = line(a, b, Some("agreement")) + &line(b, a, Some("agreement"));
        testing::write(dir.path(), "one.jsonl", &both);
        testing::write(dir.path(), "two.jsonl", &line(a, a, None));
        let open = |most| MinimalPairs::open(dir.path(), most, &prompt_tokenizer).unwrap();
        let got = testing::with_scorer(&model, |scorer| open(9).measure(scorer)).unwrap();
        let paradigms: Vec<_> = got.paradigms.iter().map(|(name, accuracy)| (name.as_str(), *accuracy)).collect();
        assert_eq!(paradigms, [("agreement", 0.5), ("two", 1.0)]);
        assert_eq!((got.accuracy, got.pairs), (0.75, 3));
        // The acceptable sentences are a, b and a.
        assert_eq!(got.tokens, tokenizer.encode(&format!(" {a} {b} {a}")).unwrap().len() as u64);
        assert_eq!(testing::with_scorer(&model, |scorer| open(1).measure(scorer)).unwrap().pairs, 2);
    }

    #[test]
    fn malformed_pairs_are_errors() {
        let (dir, tokenizer) = (tempfile::tempdir().unwrap(), testing::tokenizer());
        let prompt_tokenizer = PromptTokenizer::new(&testing::config(Architecture::Gpt2), &tokenizer).unwrap();
        let error = |text: &str| {
            let file = testing::write(dir.path(), "x.jsonl", text);
            format!("{:#}", MinimalPairs::open(&file, 9, &prompt_tokenizer).unwrap_err())
        };
        let good = line("a", "b", None);
        let missing = error(&format!("{good}{{\"sentence_good\": \"a\"}}"));
        assert!(missing.contains("x.jsonl line 2: has no key \"sentence_bad\" (it has sentence_good)"), "{missing}");
        let long = error(&(good + &line("a", "a b c d e f g h i", None)));
        assert!(long.contains("x.jsonl line 2: the sentence_bad: 9 tokens must be predicted"), "{long}");
    }
}
