//! Which senses of which words speak of a topic, and by what they are multiplied.

use anyhow::{Result, ensure};
use model::{ForwardOptions, LanguageModel};
use tch::{Device, Kind, Tensor};

use crate::senses::inspect::backpack_of;

/// By strength from 0, which changes nothing: what the pairs above the 0.95 quantile of the scores are multiplied by,
/// those above 0.80, those above 0.60, and the others. The paper's.
const MULTIPLIERS: [[f64; 4]; 4] =
    [[1.0, 1.0, 1.0, 1.0], [1.5, 1.5, 1.3, 1.0], [2.2, 2.2, 1.5, 1.0], [3.3, 3.3, 3.0, 1.0]];
const QUANTILES: [f64; 3] = [0.95, 0.80, 0.60];

/// Words whose senses are made at once.
const WORDS: i64 = 128;
/// Rows of the embedding that are held against them at once: with 16 senses 2,048 x 2,048 fp32 are 17 MB, which stays
/// in a CPU's cache between the product and its maximum.
const TILE: i64 = 2_048;

/// How much each sense of each word speaks of a topic.
#[derive(Debug)]
pub struct PairScores {
    /// `[N, L]` fp32 on the CPU; N ids stand for tokens.
    scores: Tensor,
    /// The scores at the quantiles, the highest first.
    thresholds: [f64; 3],
}

/// What the weights of senses are multiplied by, before it is annealed ([`super::Steering`]).
#[derive(Debug)]
pub struct Multipliers {
    /// `[V, L]` fp32 on the model's device.
    table: Tensor,
    largest: f64,
}

/// Scores every sense of every word for each topic, a set of ids: with z = C(w)[l] . E over the vocabulary, the sum
/// over the topic's words of z / max(z); 0 for a sense that raises no word. Padding ids count for nothing. `progress`
/// hears how many words are done; the work grows with the square of the vocabulary and hardly with the topics.
///
/// # Errors
/// When the model is a GPT-2, a topic is empty, or an id stands for no token.
pub fn score_pairs(
    model: &LanguageModel,
    topics: &[Vec<i64>],
    progress: &mut dyn FnMut(i64),
) -> Result<Vec<PairScores>> {
    let (backpack, num_tokens) = (backpack_of(model)?, model.config().tokenizer_vocab_size());
    for topic in topics {
        ensure!(!topic.is_empty(), "a topic has no words: give at least one");
        if let Some(id) = topic.iter().find(|id| !(0..num_tokens).contains(*id)) {
            anyhow::bail!("a topic names token {id}, but the model's tokens are 0 to {}", num_tokens - 1);
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
    for first in (0..num_tokens).step_by(WORDS as usize) {
        progress(first);
        let end = (first + WORDS).min(num_tokens);
        let words = Tensor::arange_start(first, end, (Kind::Int64, model.device())).unsqueeze(0);
        chunks.push(tch::no_grad(|| {
            let senses = backpack.senses(&words, ForwardOptions::evaluation()).view([-1, width]);
            let highest = highest_logits(&senses, &embeddings).unsqueeze(1);
            let scores = (senses.matmul(&sums) / &highest).masked_fill(&highest.le(0.0), 0.0);
            scores.to_device(Device::Cpu)
        }));
    }
    let all = Tensor::cat(&chunks, 0);
    (0..topics.len() as i64).map(|topic| PairScores::new(&all.select(1, topic), num_senses)).collect()
}

/// max(z) of senses `[P, D]`: `[P]`. The logits `[P, V]` never exist whole.
fn highest_logits(senses: &Tensor, embeddings: &Tensor) -> Tensor {
    let rows = embeddings.size()[0];
    let tile = |first: i64| {
        let tile = embeddings.narrow(0, first, TILE.min(rows - first));
        senses.matmul(&tile.tr()).amax([1i64].as_slice(), false)
    };
    (1..).map(|i| i * TILE).take_while(|first| *first < rows).fold(tile(0), |best, first| best.maximum(&tile(first)))
}

impl PairScores {
    fn new(scores: &Tensor, num_senses: i64) -> Result<Self> {
        let mut sorted: Vec<f32> = Vec::try_from(scores.contiguous())?;
        sorted.sort_by(f32::total_cmp);
        let thresholds = QUANTILES.map(|q| quantile(&sorted, q));
        Ok(PairScores { scores: scores.contiguous().view([-1, num_senses]), thresholds })
    }

    /// The score of sense `sense` of word `id`.
    pub fn score(&self, id: i64, sense: i64) -> f64 {
        self.scores.double_value(&[id, sense])
    }

    /// The scores at the quantiles 0.95, 0.80 and 0.60.
    pub fn thresholds(&self) -> [f64; 3] {
        self.thresholds
    }

    /// The `top` pairs of word and sense with the highest scores, the highest first.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn highest(&self, top: usize) -> Result<Vec<(i64, i64)>> {
        let (flat, num_senses) = (self.scores.view([-1]), self.scores.size()[1]);
        let (_, places) = flat.topk((top as i64).min(flat.size()[0]), 0, true, true);
        let places: Vec<i64> = Vec::try_from(places)?;
        Ok(places.into_iter().map(|place| (place / num_senses, place % num_senses)).collect())
    }

    /// The multipliers of a strength, for `model`, whose scores these are.
    ///
    /// # Errors
    /// When there is no such strength.
    pub fn multipliers(&self, model: &LanguageModel, strength: usize) -> Result<Multipliers> {
        let Some(&[first, second, third, rest]) = MULTIPLIERS.get(strength) else {
            anyhow::bail!("strength {strength} is none: it is 0 to {}", MULTIPLIERS.len() - 1)
        };
        let (size, mut words) = (self.scores.size(), Tensor::full_like(&self.scores, rest));
        for (threshold, multiplier) in self.thresholds.into_iter().zip([first, second, third]).rev() {
            words = words.masked_fill(&self.scores.gt(threshold), multiplier);
        }
        let padding = Tensor::ones([model.config().vocab_size - size[0], size[1]], (Kind::Float, Device::Cpu));
        let table = Tensor::cat(&[words, padding], 0).to_device(model.device());
        Ok(Multipliers { table, largest: first })
    }
}

impl Multipliers {
    /// Those of ids `[T]`: `[T, L]` fp32.
    pub(super) fn of(&self, ids: &Tensor) -> Tensor {
        self.table.index_select(0, ids)
    }

    /// The largest one.
    pub(super) fn largest(&self) -> f64 {
        self.largest
    }

    /// That of one pair.
    #[cfg(test)]
    pub(super) fn of_pair(&self, id: i64, sense: i64) -> f64 {
        self.table.double_value(&[id, sense])
    }
}

/// Between the two values around it, in proportion: numpy's default.
fn quantile(sorted: &[f32], q: f64) -> f64 {
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    f64::from(low) + place.fract() * (f64::from(high) - f64::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::{fixture, senses_and_embedding};

    #[test]
    fn scores_are_those_of_explicit_loops() {
        for set in ["inv_scale", "one_sense"] {
            let model = fixture(set);
            let topics = [vec![5, 90, 17], vec![200]];
            let mut heard = Vec::new();
            let scored = score_pairs(&model, &topics, &mut |done| heard.push(done)).unwrap();
            assert_eq!(heard[..3], [0, 128, 256]);
            let words: Vec<i64> = (0..model.config().vocab_size).step_by(7).collect();
            let (senses, embedding) = senses_and_embedding(&model, &words);
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
    fn a_sense_that_raises_nothing_speaks_of_nothing() {
        let mut model = fixture("inv_scale");
        let edit = model::SenseEdit { token: 3, sense: model::SenseChoice::One(2), op: model::SenseOp::Scale(0.0) };
        model.edit(&[edit]).unwrap();
        let scores = &score_pairs(&model, &[vec![5]], &mut |_| ()).unwrap()[0];
        assert_eq!(scores.score(3, 2), 0.0);
        assert!(scores.score(3, 1) != 0.0);
    }

    #[test]
    fn multipliers_follow_the_quantiles() {
        let model = fixture("inv_scale");
        // 311 x 4 scores: each its own place.
        let ramp = Tensor::arange(1_244, (Kind::Float, Device::Cpu));
        let scores = PairScores::new(&ramp, 4).unwrap();
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
        assert_eq!(error, "strength 4 is none: it is 0 to 3");
    }

    #[test]
    fn topics_that_are_none_are_refused() {
        let model = fixture("inv_scale");
        let error = |topic: Vec<i64>| score_pairs(&model, &[topic], &mut |_| ()).unwrap_err().to_string();
        assert!(error(Vec::new()).starts_with("a topic has no words"));
        assert_eq!(error(vec![311]), "a topic names token 311, but the model's tokens are 0 to 310");
    }

    #[test]
    fn quantiles_lie_between_values_in_proportion() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.75), 3.0);
        assert_eq!(quantile(&[7.0], 0.95), 7.0);
    }
}
