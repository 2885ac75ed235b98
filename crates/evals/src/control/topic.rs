//! Topic scores of all senses of all words, and the multipliers that follow from them.

use anyhow::{Result, ensure};
use model::{ForwardOptions, LanguageModel};
use tch::{Device, Kind, Tensor};

use crate::senses::inspect::backpack_of;

/// The multipliers at strengths 0 to 3 (from the paper), for pairs of word and sense with a score
/// above the quantile 0.95, above 0.80, above 0.60, and for all other pairs. Strength 0 changes
/// nothing.
const MULTIPLIERS: [[f64; 4]; 4] =
    [[1.0, 1.0, 1.0, 1.0], [1.5, 1.5, 1.3, 1.0], [2.2, 2.2, 1.5, 1.0], [3.3, 3.3, 3.0, 1.0]];
const QUANTILES: [f64; 3] = [0.95, 0.80, 0.60];

/// The number of words whose senses are computed at once.
const WORDS_PER_BATCH: i64 = 128;
/// The number of embeddings that are multiplied with these senses at once. With 16 senses, a tile
/// of 2,048 x 2,048 fp32 numbers is 17 MB and stays in the CPU cache until its maximum is computed.
const EMBEDDINGS_PER_TILE: i64 = 2_048;

/// The score of each pair of word and sense for one topic.
#[derive(Debug)]
pub struct TopicScores {
    /// `[N, L]` fp32 on the CPU, for the N ids of tokens (without padding).
    scores: Tensor,
    /// The scores at the quantiles 0.95, 0.80 and 0.60.
    thresholds: [f64; 3],
}

/// The multipliers of the senses for one topic and strength, before annealing.
#[derive(Debug)]
pub struct TopicMultipliers {
    /// `[V, L]` fp32 on the model's device.
    table: Tensor,
    largest: f64,
}

/// Scores every sense of every word for each topic, which is a set of ids.
///
/// With z = C(w)[l] . E over the vocabulary without padding, the score is the sum of z / max(z)
/// over the topic's words, or 0 if max(z) is not positive. `progress` receives the number of scored
/// words. The work is quadratic in the vocabulary size and hardly depends on the number of topics.
///
/// # Errors
/// The model is a GPT-2, a topic is empty, or an id is not one of the model's tokens.
pub fn score_topics(
    model: &LanguageModel,
    topics: &[Vec<i64>],
    progress: &mut dyn FnMut(i64),
) -> Result<Vec<TopicScores>> {
    let (backpack, num_tokens) = (backpack_of(model)?, model.config().tokenizer_vocab_size());
    for topic in topics {
        ensure!(!topic.is_empty(), "a topic has no words: give at least one word");
        if let Some(id) = topic.iter().find(|id| !(0..num_tokens).contains(*id)) {
            anyhow::bail!("a topic contains token {id}, but the model's tokens are 0 to {}", num_tokens - 1);
        }
    }
    let (num_senses, width) = (model.config().num_senses, model.config().n_embd);
    let embeddings = backpack.body().wte().detach().narrow(0, 0, num_tokens);
    let sum_of = |topic: &Vec<i64>| {
        let ids = Tensor::from_slice(topic).to_device(model.device());
        embeddings.index_select(0, &ids).sum_dim_intlist([0i64].as_slice(), false, Kind::Float)
    };
    let sums = Tensor::stack(&topics.iter().map(sum_of).collect::<Vec<_>>(), 1); // [D, topics]
    let mut chunks = Vec::new();
    for first in (0..num_tokens).step_by(WORDS_PER_BATCH as usize) {
        progress(first);
        let end = (first + WORDS_PER_BATCH).min(num_tokens);
        let words = Tensor::arange_start(first, end, (Kind::Int64, model.device())).unsqueeze(0);
        chunks.push(tch::no_grad(|| {
            let senses = backpack.senses(&words, ForwardOptions::evaluation()).view([-1, width]);
            let highest = highest_logits(&senses, &embeddings).unsqueeze(1);
            let scores = (senses.matmul(&sums) / &highest).masked_fill(&highest.le(0.0), 0.0);
            scores.to_device(Device::Cpu)
        }));
    }
    let all = Tensor::cat(&chunks, 0);
    (0..topics.len() as i64).map(|topic| TopicScores::new(&all.select(1, topic), num_senses)).collect()
}

/// Returns max(z) of senses `[P, D]`, `[P]`, without storing all logits `[P, V]`.
fn highest_logits(senses: &Tensor, embeddings: &Tensor) -> Tensor {
    let rows = embeddings.size()[0];
    let tile = |first: i64| {
        let tile = embeddings.narrow(0, first, EMBEDDINGS_PER_TILE.min(rows - first));
        senses.matmul(&tile.tr()).amax([1i64].as_slice(), false)
    };
    (1..)
        .map(|i| i * EMBEDDINGS_PER_TILE)
        .take_while(|first| *first < rows)
        .fold(tile(0), |best, first| best.maximum(&tile(first)))
}

impl TopicScores {
    fn new(scores: &Tensor, num_senses: i64) -> Result<Self> {
        let mut sorted: Vec<f32> = Vec::try_from(scores.contiguous())?;
        sorted.sort_by(f32::total_cmp);
        let thresholds = QUANTILES.map(|q| quantile(&sorted, q));
        Ok(TopicScores { scores: scores.contiguous().view([-1, num_senses]), thresholds })
    }

    /// Returns the score of sense `sense` of word `id`.
    pub fn score(&self, id: i64, sense: i64) -> f64 {
        self.scores.double_value(&[id, sense])
    }

    /// Returns the scores at the quantiles 0.95, 0.80 and 0.60.
    pub fn thresholds(&self) -> [f64; 3] {
        self.thresholds
    }

    /// Returns the `top` pairs of word and sense with the highest scores, in descending order.
    pub fn highest(&self, top: usize) -> Result<Vec<(i64, i64)>> {
        let (flat, num_senses) = (self.scores.view([-1]), self.scores.size()[1]);
        let (_, indices) = flat.topk((top as i64).min(flat.size()[0]), 0, true, true);
        let indices: Vec<i64> = Vec::try_from(indices)?;
        Ok(indices.into_iter().map(|index| (index / num_senses, index % num_senses)).collect())
    }

    /// Returns the multipliers of a strength. `model` is the scored model.
    ///
    /// # Errors
    /// The strength does not exist.
    pub fn multipliers(&self, model: &LanguageModel, strength: usize) -> Result<TopicMultipliers> {
        let Some(&[first, second, third, rest]) = MULTIPLIERS.get(strength) else {
            anyhow::bail!("strength {strength} does not exist: it is 0 to {}", MULTIPLIERS.len() - 1)
        };
        let (size, mut words) = (self.scores.size(), Tensor::full_like(&self.scores, rest));
        for (threshold, multiplier) in self.thresholds.into_iter().zip([first, second, third]).rev() {
            words = words.masked_fill(&self.scores.gt(threshold), multiplier);
        }
        let padding = Tensor::ones([model.config().vocab_size - size[0], size[1]], (Kind::Float, Device::Cpu));
        let table = Tensor::cat(&[words, padding], 0).to_device(model.device());
        Ok(TopicMultipliers { table, largest: first })
    }
}

impl TopicMultipliers {
    /// Returns the multipliers of tokens `[T]`: `[T, L]` fp32.
    pub(super) fn of_tokens(&self, ids: &Tensor) -> Tensor {
        self.table.index_select(0, ids)
    }

    /// Returns the largest multiplier of the strength.
    pub(super) fn largest(&self) -> f64 {
        self.largest
    }

    /// Returns the multiplier of one pair of word and sense.
    #[cfg(test)]
    pub(super) fn of_pair(&self, id: i64, sense: i64) -> f64 {
        self.table.double_value(&[id, sense])
    }
}

/// Returns a quantile of sorted values by linear interpolation, like the default of
/// `numpy.quantile`.
fn quantile(sorted: &[f32], q: f64) -> f64 {
    let index = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[index.floor() as usize], sorted[index.ceil() as usize]);
    f64::from(low) + index.fract() * (f64::from(high) - f64::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fixture, senses_and_embeddings};

    #[test]
    fn scores_equal_explicit_loops() {
        for set in ["inv_scale", "one_sense"] {
            let model = fixture(set);
            let topics = [vec![5, 90, 17], vec![200]];
            let mut progress = Vec::new();
            let scored = score_topics(&model, &topics, &mut |done| progress.push(done)).unwrap();
            assert_eq!(progress[..3], [0, 128, 256]);
            let words: Vec<i64> = (0..model.config().vocab_size).step_by(7).collect();
            let (senses, embedding) = senses_and_embeddings(&model, &words);
            for (topic, scores) in topics.iter().zip(&scored) {
                for (word, senses) in words.iter().zip(&senses) {
                    for (sense, vector) in senses.iter().enumerate() {
                        let z: Vec<f64> =
                            embedding.iter().map(|e| vector.iter().zip(e).map(|(c, e)| c * e).sum()).collect();
                        let highest = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                        let want: f64 = topic.iter().map(|&t| z[t as usize] / highest).sum();
                        let got = scores.score(*word, sense as i64);
                        assert!((got - want).abs() < 1e-4, "{set} {word} {sense}: {got}, not {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn score_of_a_zero_sense_is_0() {
        let mut model = fixture("inv_scale");
        let edit = model::SenseEdit { token: 3, sense: model::SenseChoice::One(2), op: model::SenseOp::Scale(0.0) };
        model.edit(&[edit]).unwrap();
        let scores = &score_topics(&model, &[vec![5]], &mut |_| ()).unwrap()[0];
        assert_eq!(scores.score(3, 2), 0.0);
        assert!(scores.score(3, 1) != 0.0);
    }

    #[test]
    fn multipliers_follow_the_quantiles() {
        let model = fixture("inv_scale");
        // 311 x 4 scores; each score is its own index.
        let ramp = Tensor::arange(1_244, (Kind::Float, Device::Cpu));
        let scores = TopicScores::new(&ramp, 4).unwrap();
        for (got, want) in scores.thresholds().into_iter().zip([1_180.85, 994.4, 745.8]) {
            assert!((got - want).abs() < 1e-9, "{got}, not {want}");
        }
        assert_eq!(scores.highest(2).unwrap(), [(310, 3), (310, 2)]);
        for (strength, want) in MULTIPLIERS.iter().enumerate() {
            let multipliers = scores.multipliers(&model, strength).unwrap();
            let at = |score: i64| multipliers.of_pair(score / 4, score % 4) as f32;
            for (score, level) in [(1_243, 0), (1_181, 0), (1_180, 1), (995, 1), (994, 2), (746, 2), (745, 3), (0, 3)] {
                assert_eq!(at(score), want[level] as f32, "strength {strength}, score {score}");
            }
            assert_eq!(multipliers.largest(), want[0]);
        }
        let error = scores.multipliers(&model, 4).unwrap_err().to_string();
        assert_eq!(error, "strength 4 does not exist: it is 0 to 3");
    }

    #[test]
    fn invalid_topics_are_errors() {
        let model = fixture("inv_scale");
        let error = |topic: Vec<i64>| score_topics(&model, &[topic], &mut |_| ()).unwrap_err().to_string();
        assert!(error(Vec::new()).starts_with("a topic has no words"));
        assert_eq!(error(vec![311]), "a topic contains token 311, but the model's tokens are 0 to 310");
    }

    #[test]
    fn quantiles_are_interpolated_linearly() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[7.0], 0.95), 7.0);
    }
}
