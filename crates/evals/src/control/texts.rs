//! Generation of topic-controlled texts, their perplexity, and the words that a text is about.

use anyhow::{Result, ensure};
use model::{LanguageModel, Sampling, generate_scaled};
use tch::{Kind, Tensor};

use super::steering::Steering;
use super::topic::TopicMultipliers;

/// A text to generate.
#[derive(Debug, Clone, Copy)]
pub struct TextRequest<'a> {
    /// The ids that the text starts with.
    pub prompt: &'a [i64],
    /// The number of tokens to generate.
    pub tokens: usize,
    /// The sampling method.
    pub sampling: Sampling,
}

/// Generates a text and returns the new ids. With `multipliers`, the text is steered to their
/// topic.
///
/// # Errors
/// The errors of [`model::generate`]; also, `multipliers` are given for a GPT-2.
pub fn generate_text(
    model: &LanguageModel,
    request: TextRequest<'_>,
    multipliers: Option<&TopicMultipliers>,
) -> Result<Vec<i64>> {
    let TextRequest { prompt, tokens, sampling } = request;
    let mut steering = multipliers.map(|multipliers| Steering::new(model, multipliers)).transpose()?;
    match &mut steering {
        Some(steering) => generate_scaled(model, prompt, tokens, sampling, Some(&mut |ids| steering.factors(ids))),
        None => generate_scaled(model, prompt, tokens, sampling, None),
    }
}

/// Returns the perplexity of texts that continue `prompt`: the exponential of the mean
/// cross-entropy of their tokens. The softmax includes all ids, as in training.
///
/// # Errors
/// There is no token, or a text with its prompt is longer than the context.
pub fn perplexity(model: &LanguageModel, prompt: &[i64], texts: &[Vec<i64>]) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for text in texts {
        let ids = [prompt, text].concat();
        model.check_ids(&ids)?;
        let all = log_probabilities(model, &ids).narrow(0, prompt.len() as i64 - 1, text.len() as i64);
        let targets = Tensor::from_slice(text).to_device(model.device()).unsqueeze(1);
        sum -= all.gather(1, &targets, false).sum(Kind::Double).double_value(&[]);
        count += text.len();
    }
    ensure!(count > 0, "there are no tokens to measure: generate at least one");
    Ok((sum / count as f64).exp())
}

/// The minimum mean probability of a topic word, as a multiple of 1 / V. The estimates of rarer
/// words are too unreliable.
const MIN_RELATIVE_PROBABILITY: f64 = 5.0;

/// Returns the `max_words` words with the highest p / q, where p is the mean probability of a word
/// in `text` and q its mean probability in other texts. `elsewhere` is q, from
/// [`mean_probabilities`]. `is_word` selects the ids that can be topic words.
///
/// # Errors
/// The text is empty or longer than the context, or no word has a higher p than q.
pub fn topic_words(
    model: &LanguageModel,
    text: &[i64],
    elsewhere: &[f64],
    max_words: usize,
    is_word: impl Fn(i64) -> bool,
) -> Result<Vec<i64>> {
    let here = mean_probabilities(model, &[text.to_vec()])?;
    let num_tokens = model.config().tokenizer_vocab_size() as usize;
    let min_probability = MIN_RELATIVE_PROBABILITY / num_tokens as f64;
    let stands_out = |id: &usize| here[*id] >= min_probability && here[*id] > elsewhere[*id] && is_word(*id as i64);
    let mut words: Vec<usize> = (0..num_tokens).filter(stands_out).collect();
    ensure!(
        !words.is_empty(),
        "no word is more probable in the text about the topic than in the model's own texts: give a longer text"
    );
    let ratio = |id: usize| here[id] / elsewhere[id];
    words.sort_by(|&a, &b| ratio(b).total_cmp(&ratio(a)).then(a.cmp(&b)));
    Ok(words.into_iter().take(max_words).map(|id| id as i64).collect())
}

/// Returns the mean probability of each id over all positions of texts, `[V]`.
///
/// # Errors
/// A text is empty or longer than the context.
pub fn mean_probabilities(model: &LanguageModel, texts: &[Vec<i64>]) -> Result<Vec<f64>> {
    let mut sum = Tensor::zeros([model.config().vocab_size], (Kind::Double, model.device()));
    let mut count = 0;
    for text in texts {
        model.check_ids(text)?;
        let probabilities = log_probabilities(model, text).exp();
        sum += probabilities.sum_dim_intlist([0i64].as_slice(), false, Kind::Double);
        count += text.len();
    }
    Ok(Vec::try_from(sum / count as f64)?)
}

/// Returns the log-probabilities of the next token after each of `ids [T]`: `[T, V]` fp32.
fn log_probabilities(model: &LanguageModel, ids: &[i64]) -> Tensor {
    let input = Tensor::from_slice(ids).unsqueeze(0).to_device(model.device());
    tch::no_grad(|| model.logits(&input, model.evaluation_options()).get(0).log_softmax(-1, Kind::Float))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::score_topics;
    use crate::testing::fixture;

    fn request(prompt: &[i64], tokens: usize) -> TextRequest<'_> {
        let sampling = Sampling::Random { temperature: 1.0, top_k: None, top_p: None, seed: 3 };
        TextRequest { prompt, tokens, sampling }
    }

    #[test]
    fn strength_0_changes_nothing_and_strength_3_does() {
        let model = fixture("inv_scale");
        let scores = &score_topics(&model, &[vec![5, 90, 17]], &mut |_| ()).unwrap()[0];
        let unsteered = model::generate(&model, &[1, 2], 40, request(&[], 0).sampling).unwrap();
        let text =
            |multipliers: Option<&TopicMultipliers>| generate_text(&model, request(&[1, 2], 40), multipliers).unwrap();
        assert_eq!(text(None), unsteered);
        assert_eq!(text(Some(&scores.multipliers(&model, 0).unwrap())), unsteered);
        let steered = text(Some(&scores.multipliers(&model, 3).unwrap()));
        assert!(steered != unsteered);
        // The text is longer than the context of 32 tokens, and generation is deterministic.
        assert_eq!(text(Some(&scores.multipliers(&model, 3).unwrap())), steered);
    }

    #[test]
    fn perplexity_covers_the_new_tokens_only() {
        let model = fixture("inv_scale");
        let (prompt, texts) = ([4i64, 9], [vec![7i64, 7, 30], vec![2]]);
        let mut losses = Vec::new();
        for text in &texts {
            let mut ids = prompt.to_vec();
            for &id in text {
                let input = Tensor::from_slice(&ids).unsqueeze(0);
                let logits = tch::no_grad(|| model.logits(&input, model.evaluation_options())).get(0).get(-1);
                losses.push(-logits.log_softmax(-1, Kind::Double).double_value(&[id]));
                ids.push(id);
            }
        }
        let want = (losses.iter().sum::<f64>() / 4.0).exp();
        let got = perplexity(&model, &prompt, &texts).unwrap();
        assert!((got / want - 1.0).abs() < 1e-5, "{got}, not {want}");
        assert!(perplexity(&model, &prompt, &[]).unwrap_err().to_string().starts_with("there are no tokens"));
        assert!(perplexity(&model, &prompt, &[vec![1; 31]]).is_err());
    }

    #[test]
    fn topic_words_have_the_highest_probability_ratio() {
        let model = fixture("inv_scale");
        let (text, rest) = (vec![7, 5, 90], vec![vec![1, 2, 3], vec![4, 5]]);
        let is_word = |id: i64| id % 7 != 0;
        let usual = mean_probabilities(&model, &rest).unwrap();
        let words = topic_words(&model, &text, &usual, 3, is_word).unwrap();
        // The same mean, one position at a time.
        let mean = |texts: &[Vec<i64>]| {
            let starts = texts.iter().flat_map(|text| (1..=text.len()).map(|end| text[..end].to_vec()));
            let each: Vec<Tensor> = starts.map(|ids| log_probabilities(&model, &ids).get(-1).exp()).collect();
            Tensor::stack(&each, 0).mean_dim([0i64].as_slice(), false, Kind::Double)
        };
        let (p, q) = (mean(std::slice::from_ref(&text)), mean(&rest));
        let ratio: Vec<f64> = Vec::try_from(&p / &q).unwrap();
        let mut want: Vec<i64> = (0..311).filter(|id| is_word(*id) && p.double_value(&[*id]) >= 5.0 / 311.0).collect();
        want.sort_by(|&a, &b| ratio[b as usize].total_cmp(&ratio[a as usize]));
        assert_eq!(words, want[..3]);
        assert!(topic_words(&model, &text, &usual, 5, |_| false).is_err());
    }
}
