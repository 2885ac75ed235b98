//! The factors of the senses while a text is generated: a topic's multipliers, larger near the end
//! of the text, and annealed to 1 once the words that a sense predicts have appeared.

use anyhow::Result;
use model::{Backpack, ForwardOptions, Kernels, LanguageModel};
use tch::{Kind, Tensor};

use super::topic::TopicMultipliers;
use crate::senses::inspect::backpack_of;

/// The state of one steered text. It computes the factor of each sense of each word before the next
/// word is predicted. The sums S are updated incrementally, so the cost of one more word is
/// proportional to the length of the text.
#[derive(Debug)]
pub(super) struct Steering<'m> {
    backpack: &'m Backpack,
    multipliers: &'m TopicMultipliers,
    /// The text so far.
    ids: Vec<i64>,
    /// The senses of the words of the text, `[T, L, D]` fp32.
    senses: Tensor,
    /// The embeddings of the words of the text, `[T, D]` fp32.
    embeddings: Tensor,
    /// S, `[T, L]` fp64: the sum over the words x of the text of relu(C(x_s)[l] . E[x]).
    realized: Tensor,
}

/// The coefficient c of S is the largest multiplier divided by this number (from the paper).
const ANNEALING_DIVISOR: f64 = 7.5;

impl<'m> Steering<'m> {
    /// Creates the state of an empty text.
    ///
    /// # Errors
    /// The model is a GPT-2.
    pub(super) fn new(model: &'m LanguageModel, multipliers: &'m TopicMultipliers) -> Result<Self> {
        let (backpack, config, device) = (backpack_of(model)?, model.config(), model.device());
        let empty = |shape: &[i64], kind| Tensor::zeros(shape, (kind, device));
        Ok(Steering {
            backpack,
            multipliers,
            ids: Vec::new(),
            senses: empty(&[0, config.num_senses, config.n_embd], Kind::Float),
            embeddings: empty(&[0, config.n_embd], Kind::Float),
            realized: empty(&[0, config.num_senses], Kind::Double),
        })
    }

    /// Returns the factors `[T, L]` fp32 of the senses of the text `ids`.
    ///
    /// For the multiplier m of word and sense and the position s, the factor is m a + (1 - a),
    /// where a = sigmoid(6 - c S) (1 + s / 100) and c = the largest multiplier / 7.5. `ids` is
    /// usually the text of the previous call with a few words appended and, if it has outgrown the
    /// context, with its first words removed. Only the difference is computed.
    pub(super) fn factors(&mut self, ids: &[i64]) -> Tensor {
        tch::no_grad(|| {
            // If no suffix of the old text is a prefix of the new one, all words are dropped.
            let dropped = (0..self.ids.len()).find(|&n| ids.starts_with(&self.ids[n..])).unwrap_or(self.ids.len());
            self.drop_oldest(dropped as i64);
            self.append(&ids[self.ids.len() - dropped..]);
            self.ids = ids.to_vec();
            let device = self.senses.device();
            let positions = Tensor::arange(ids.len() as i64, (Kind::Double, device)).unsqueeze(1);
            let realized: Tensor = &self.realized * (self.multipliers.largest() / ANNEALING_DIVISOR);
            let annealing: Tensor = (-realized + 6.0).sigmoid() * (positions / 100.0 + 1.0);
            let multipliers =
                self.multipliers.of_tokens(&Tensor::from_slice(ids).to_device(device)).to_kind(Kind::Double);
            (multipliers * &annealing + 1.0 - annealing).to_kind(Kind::Float)
        })
    }

    /// Removes the first `count` words of the text.
    fn drop_oldest(&mut self, count: i64) {
        if count == 0 {
            return;
        }
        let left = self.ids.len() as i64 - count;
        let rest = |tensor: &Tensor| tensor.narrow(0, count, left);
        self.realized = rest(&self.realized) - realized(&rest(&self.senses), &self.embeddings.narrow(0, 0, count));
        self.senses = rest(&self.senses);
        self.embeddings = rest(&self.embeddings);
    }

    /// Adds words to the end of the text.
    fn append(&mut self, new: &[i64]) {
        if new.is_empty() {
            return;
        }
        let ids = Tensor::from_slice(new).to_device(self.senses.device());
        // The fused kernels compute the senses of 64 words at a time, more than are needed here.
        let reference = ForwardOptions { kernels: Kernels::Reference, ..ForwardOptions::evaluation() };
        let senses = self.backpack.senses(&ids.unsqueeze(0), reference).squeeze_dim(0);
        let embeddings = self.backpack.body().wte().index_select(0, &ids);
        let of_old_words = &self.realized + realized(&self.senses, &embeddings);
        self.embeddings = Tensor::cat(&[&self.embeddings, &embeddings], 0);
        self.realized = Tensor::cat(&[of_old_words, realized(&senses, &self.embeddings)], 0);
        self.senses = Tensor::cat(&[&self.senses, &senses], 0);
    }
}

/// Returns the sum over `words [N, D]` of relu(`senses [T, L, D]` . word): `[T, L]` fp64.
fn realized(senses: &Tensor, words: &Tensor) -> Tensor {
    senses.matmul(&words.tr()).relu().sum_dim_intlist([2i64].as_slice(), false, Kind::Double)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::score_topics;
    use crate::testing::{fixture, senses_and_embeddings};

    /// Computes the factors with explicit loops over the whole text.
    fn expected_factors(model: &LanguageModel, multipliers: &TopicMultipliers, ids: &[i64]) -> Vec<Vec<f64>> {
        let (senses, embedding) = senses_and_embeddings(model, ids);
        let c = multipliers.largest() / 7.5;
        let factor = |s: usize, l: usize| {
            let dot = |id: i64| -> f64 { senses[s][l].iter().zip(&embedding[id as usize]).map(|(c, e)| c * e).sum() };
            let sum: f64 = ids.iter().map(|&id| dot(id).max(0.0)).sum();
            let a = 1.0 / (1.0 + (-(6.0 - c * sum)).exp()) * (1.0 + s as f64 / 100.0);
            multipliers.of_pair(ids[s], l as i64) * a + (1.0 - a)
        };
        (0..ids.len()).map(|s| (0..senses[s].len()).map(|l| factor(s, l)).collect()).collect()
    }

    #[track_caller]
    fn assert_same(got: &Tensor, want: &[Vec<f64>]) {
        assert_eq!(got.size(), [want.len() as i64, want[0].len() as i64]);
        for (s, row) in want.iter().enumerate() {
            for (l, want) in row.iter().enumerate() {
                let got = got.double_value(&[s as i64, l as i64]);
                assert!((got - want).abs() < 1e-4, "position {s}, sense {l}: {got}, not {want}");
            }
        }
    }

    /// Appends a prompt, then single words, one of them twice; then moves the window by one word,
    /// by several, and back to the start.
    #[test]
    fn incremental_factors_equal_explicit_loops() {
        for set in ["inv_scale", "one_sense"] {
            let model = fixture(set);
            let scores = &score_topics(&model, &[vec![5, 90, 17]], &mut |_| ()).unwrap()[0];
            let multipliers = scores.multipliers(&model, 3).unwrap();
            let mut steering = Steering::new(&model, &multipliers).unwrap();
            let text = [7, 5, 90, 17, 5, 200, 31, 90, 12];
            for window in
                [&text[..3], &text[..4], &text[..5], &text[..7], &text[1..8], &text[3..9], &text[..2], &text[..2]]
            {
                assert_same(&steering.factors(window), &expected_factors(&model, &multipliers, window));
            }
        }
    }

    /// Compares the first and the last factor of a text that repeats one word with the formula.
    #[test]
    fn realized_senses_are_annealed() {
        let model = fixture("inv_scale");
        let scores = &score_topics(&model, &[vec![5]], &mut |_| ()).unwrap()[0];
        let multipliers = scores.multipliers(&model, 2).unwrap();
        let mut steering = Steering::new(&model, &multipliers).unwrap();
        let ids = [8i64; 12];
        let first = steering.factors(&ids[..1]);
        let last = steering.factors(&ids);
        let (senses, embedding) = senses_and_embeddings(&model, &[8]);
        for (l, sense) in senses[0].iter().enumerate() {
            let m = multipliers.of_pair(8, l as i64);
            let realized_once: f64 = sense.iter().zip(&embedding[8]).map(|(c, e)| c * e).sum::<f64>().max(0.0);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let a = sigmoid(6.0 - 2.2 / 7.5 * realized_once);
            assert!((first.double_value(&[0, l as i64]) - (m * a + 1.0 - a)).abs() < 1e-4);
            let a = sigmoid(6.0 - 2.2 / 7.5 * 12.0 * realized_once) * 1.11;
            assert!((last.double_value(&[11, l as i64]) - (m * a + 1.0 - a)).abs() < 1e-4);
        }
    }

    #[test]
    fn factors_at_strength_0_are_1() {
        let model = fixture("inv_scale");
        let scores = &score_topics(&model, &[vec![5]], &mut |_| ()).unwrap()[0];
        let multipliers = scores.multipliers(&model, 0).unwrap();
        let factors = Steering::new(&model, &multipliers).unwrap().factors(&[1, 2, 3]);
        assert!((factors - 1.0).abs().max().double_value(&[]) < 1e-6);
    }
}
