//! A topic's multipliers over a text that grows: what is near its end counts more, and a sense whose prediction has
//! come true is let go.

use anyhow::Result;
use model::{Backpack, ForwardOptions, Kernels, LanguageModel};
use tch::{Kind, Tensor};

use super::topic::Multipliers;
use crate::senses::inspect::backpack_of;

/// For one text: what each sense of each of its words is multiplied by before the next word is predicted. A word more
/// costs as much as there are words, not their square: what the words so far have made come true is kept.
#[derive(Debug)]
pub struct Steering<'m> {
    backpack: &'m Backpack,
    multipliers: &'m Multipliers,
    /// The text so far.
    ids: Vec<i64>,
    /// Its words' senses `[T, L, D]` and embeddings `[T, D]`, fp32.
    senses: Tensor,
    embeddings: Tensor,
    /// S, `[T, L]` in double precision: the sum over the words x of the text of relu(C(x_s)[l] . E[x]).
    come_true: Tensor,
}

/// How many of the largest multipliers make c, by which S is weighed: the paper's.
const CALM: f64 = 7.5;

impl<'m> Steering<'m> {
    /// Of an empty text.
    ///
    /// # Errors
    /// When the model is a GPT-2.
    pub fn new(model: &'m LanguageModel, multipliers: &'m Multipliers) -> Result<Self> {
        let (backpack, config, device) = (backpack_of(model)?, model.config(), model.device());
        let none = |shape: &[i64], kind| Tensor::zeros(shape, (kind, device));
        Ok(Steering {
            backpack,
            multipliers,
            ids: Vec::new(),
            senses: none(&[0, config.num_senses, config.n_embd], Kind::Float),
            embeddings: none(&[0, config.n_embd], Kind::Float),
            come_true: none(&[0, config.num_senses], Kind::Double),
        })
    }

    /// The factors `[T, L]` fp32 of the words `ids`, what the text now is: mostly the one of the call before and a few
    /// words more, some of the first ones gone where it has outgrown the context. With the multiplier m of word and
    /// sense, at position s: m a + (1 - a), a = sigmoid(6 - c S) (1 + s / 100), c = the largest multiplier / 7.5.
    pub fn factors(&mut self, ids: &[i64]) -> Tensor {
        tch::no_grad(|| {
            // Nothing at all is a beginning of every text.
            let gone = (0..self.ids.len()).find(|&gone| ids.starts_with(&self.ids[gone..])).unwrap_or(self.ids.len());
            self.forget(gone as i64);
            let new = ids[self.ids.len() - gone..].to_vec();
            self.learn(&new);
            self.ids = ids.to_vec();
            let device = self.senses.device();
            let places = Tensor::arange(ids.len() as i64, (Kind::Double, device)).unsqueeze(1);
            let released: Tensor = &self.come_true * (self.multipliers.largest() / CALM);
            let annealing: Tensor = (-released + 6.0).sigmoid() * (places / 100.0 + 1.0);
            let multipliers = self.multipliers.of(&Tensor::from_slice(ids).to_device(device)).to_kind(Kind::Double);
            (multipliers * &annealing + 1.0 - annealing).to_kind(Kind::Float)
        })
    }

    fn forget(&mut self, gone: i64) {
        if gone == 0 {
            return;
        }
        let left = self.ids.len() as i64 - gone;
        let rest = |kept: &Tensor| kept.narrow(0, gone, left);
        self.come_true = rest(&self.come_true) - came_true(&rest(&self.senses), &self.embeddings.narrow(0, 0, gone));
        self.senses = rest(&self.senses);
        self.embeddings = rest(&self.embeddings);
    }

    fn learn(&mut self, new: &[i64]) {
        if new.is_empty() {
            return;
        }
        let ids = Tensor::from_slice(new).to_device(self.senses.device());
        // By the definition: the fused path makes senses of sixty-four words at a time.
        let options = ForwardOptions { kernels: Kernels::Reference, ..ForwardOptions::evaluation() };
        let senses = self.backpack.senses(&ids.unsqueeze(0), options).squeeze_dim(0);
        let embeddings = self.backpack.body().wte().index_select(0, &ids);
        let before = &self.come_true + came_true(&self.senses, &embeddings);
        self.embeddings = Tensor::cat(&[&self.embeddings, &embeddings], 0);
        self.come_true = Tensor::cat(&[before, came_true(&senses, &self.embeddings)], 0);
        self.senses = Tensor::cat(&[&self.senses, &senses], 0);
    }
}

/// The sum over `words [N, D]` of relu(`senses [T, L, D]` . word): `[T, L]` in double precision.
fn came_true(senses: &Tensor, words: &Tensor) -> Tensor {
    senses.matmul(&words.tr()).relu().sum_dim_intlist([2i64].as_slice(), false, Kind::Double)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::score_pairs;
    use crate::control::tests::{fixture, senses_and_embedding};

    /// By explicit loops over the whole text.
    fn oracle(model: &LanguageModel, multipliers: &Multipliers, ids: &[i64]) -> Vec<Vec<f64>> {
        let (senses, embedding) = senses_and_embedding(model, ids);
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

    /// A prompt, then one word at a time, one of them twice; the window slides at last, by one and by all.
    #[test]
    fn factors_are_those_of_explicit_loops_however_the_text_grew() {
        for set in ["inv_scale", "one_sense"] {
            let model = fixture(set);
            let scores = &score_pairs(&model, &[vec![5, 90, 17]], &mut |_| ()).unwrap()[0];
            let multipliers = scores.multipliers(&model, 3).unwrap();
            let mut steering = Steering::new(&model, &multipliers).unwrap();
            let text = [7, 5, 90, 17, 5, 200, 31, 90, 12];
            for window in
                [&text[..3], &text[..4], &text[..5], &text[..7], &text[1..8], &text[3..9], &text[..2], &text[..2]]
            {
                assert_same(&steering.factors(window), &oracle(&model, &multipliers, window));
            }
        }
    }

    /// The formula by hand: a word whose senses meet nothing of the text is multiplied in full at the beginning.
    #[test]
    fn what_came_true_is_let_go() {
        let model = fixture("inv_scale");
        let scores = &score_pairs(&model, &[vec![5]], &mut |_| ()).unwrap()[0];
        let multipliers = scores.multipliers(&model, 2).unwrap();
        let mut steering = Steering::new(&model, &multipliers).unwrap();
        let ids = [8i64; 12];
        let first = steering.factors(&ids[..1]);
        let last = steering.factors(&ids);
        let (senses, embedding) = senses_and_embedding(&model, &[8]);
        for (l, sense) in senses[0].iter().enumerate() {
            let m = multipliers.of_pair(8, l as i64);
            let true_once: f64 = sense.iter().zip(&embedding[8]).map(|(c, e)| c * e).sum::<f64>().max(0.0);
            let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
            let a = sigmoid(6.0 - 2.2 / 7.5 * true_once);
            assert!((first.double_value(&[0, l as i64]) - (m * a + 1.0 - a)).abs() < 1e-4);
            let a = sigmoid(6.0 - 2.2 / 7.5 * 12.0 * true_once) * 1.11;
            assert!((last.double_value(&[11, l as i64]) - (m * a + 1.0 - a)).abs() < 1e-4);
        }
    }

    #[test]
    fn strength_0_multiplies_by_1() {
        let model = fixture("inv_scale");
        let scores = &score_pairs(&model, &[vec![5]], &mut |_| ()).unwrap()[0];
        let multipliers = scores.multipliers(&model, 0).unwrap();
        let factors = Steering::new(&model, &multipliers).unwrap().factors(&[1, 2, 3]);
        assert!((factors - 1.0).abs().max().double_value(&[]) < 1e-6);
    }
}
