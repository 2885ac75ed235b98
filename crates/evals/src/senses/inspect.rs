//! What a Backpack's senses say: the words that each one raises and lowers, and, for a text, which earlier words'
//! senses made a prediction. Attributions are exact: they sum to the logits.

use anyhow::{Context, Result, ensure};
use model::{Backpack, ForwardOptions, LanguageModel};
use tch::{Kind, Tensor};

/// A word and how strongly it is meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredToken {
    /// Its id.
    pub id: i64,
    /// What it adds to, or has as, its logit.
    pub logit: f64,
}

/// One sense of a word, by itself.
#[derive(Debug, Clone, PartialEq)]
pub struct SenseView {
    /// Which, from 0.
    pub sense: i64,
    /// Its length.
    pub norm: f64,
    /// The words whose logits it raises most, the highest first.
    pub raises: Vec<ScoredToken>,
    /// Those it lowers most, the lowest first.
    pub lowers: Vec<ScoredToken>,
}

/// A word that may follow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateToken {
    /// Its id.
    pub id: i64,
    /// Its logit.
    pub logit: f64,
    /// Its probability among all ids, padding included.
    pub probability: f64,
}

/// The Backpack of a model.
///
/// # Errors
/// When it is a GPT-2.
pub(crate) fn backpack_of(model: &LanguageModel) -> Result<&Backpack> {
    model.backpack().context("the model is a GPT-2, which has no senses: give a Backpack")
}

/// The senses of tokens `[N]`, `[N, L, D]` fp32, in evaluation.
///
/// # Errors
/// When the model is a GPT-2.
pub fn sense_vectors(model: &LanguageModel, tokens: &[i64]) -> Result<Tensor> {
    let ids = Tensor::from_slice(tokens).unsqueeze(0).to_device(model.device());
    let backpack = backpack_of(model)?;
    Ok(tch::no_grad(|| backpack.senses(&ids, ForwardOptions::evaluation())).squeeze_dim(0))
}

/// Every sense of a token, with `top` words at either end.
///
/// # Errors
/// When the model is a GPT-2 or has no such token.
pub fn sense_views(model: &LanguageModel, token: i64, top: usize) -> Result<Vec<SenseView>> {
    model.check_ids(&[token])?;
    let senses = sense_vectors(model, &[token])?.squeeze_dim(0);
    let logits = words_only(model, &model.head(&senses, ForwardOptions::evaluation()));
    let norms: Vec<f64> = Vec::try_from(senses.norm_scalaropt_dim(2.0, [1], false).to_kind(Kind::Double))?;
    let (raises, lowers) = (ends(&logits, top, true)?, ends(&logits, top, false)?);
    let views = norms.into_iter().zip(raises).zip(lowers).enumerate();
    Ok(views.map(|(sense, ((norm, raises), lowers))| SenseView { sense: sense as i64, norm, raises, lowers }).collect())
}

/// The cosines between the senses of two tokens: `[L, L]`, rows the first's.
///
/// # Errors
/// When the model is a GPT-2 or lacks one of them.
pub fn sense_cosines(model: &LanguageModel, first: i64, second: i64) -> Result<Vec<Vec<f64>>> {
    model.check_ids(&[first])?;
    model.check_ids(&[second])?;
    let senses = sense_vectors(model, &[first, second])?.to_kind(Kind::Double);
    // A sense that an edit removed has no direction.
    let unit = &senses / senses.norm_scalaropt_dim(2.0, [2], true).clamp_min(f64::MIN_POSITIVE);
    rows_of(&unit.get(0).matmul(&unit.get(1).tr()))
}

/// Logits `[.., V]` of ids that stand for tokens, without the padding.
fn words_only(model: &LanguageModel, logits: &Tensor) -> Tensor {
    logits.narrow(-1, 0, model.config().num_tokens())
}

/// The `top` highest, or lowest, of each row of `[N, V]`.
fn ends(logits: &Tensor, top: usize, highest: bool) -> Result<Vec<Vec<ScoredToken>>> {
    let top = i64::try_from(top).unwrap_or(i64::MAX).min(logits.size()[1]);
    let (values, ids) = logits.topk(top, 1, highest, true);
    let (values, ids) = (rows_of(&values.to_kind(Kind::Double))?, ids);
    let row = |(row, values): (usize, Vec<f64>)| -> Result<Vec<ScoredToken>> {
        let ids: Vec<i64> = Vec::try_from(ids.get(row as i64))?;
        Ok(ids.into_iter().zip(values).map(|(id, logit)| ScoredToken { id, logit }).collect())
    };
    values.into_iter().enumerate().map(row).collect()
}

/// `[N, M]` in double precision as rows.
fn rows_of(matrix: &Tensor) -> Result<Vec<Vec<f64>>> {
    (0..matrix.size()[0]).map(|row| Ok(Vec::try_from(matrix.get(row).to_kind(Kind::Double))?)).collect()
}

/// What of a reading no edit of senses changes, since the body sees embeddings alone.
#[derive(Debug)]
pub struct TextContext {
    /// The text's ids `[T]`.
    pub ids: Vec<i64>,
    /// How much each sense of each word counts at each position, `[L, T, T]` fp32: row t is a distribution over
    /// positions up to t.
    pub weights: Tensor,
}

impl TextContext {
    /// Of `ids`.
    ///
    /// # Errors
    /// When the model is a GPT-2, or there are no ids, too many or one outside the vocabulary.
    pub fn new(model: &LanguageModel, ids: &[i64]) -> Result<Self> {
        model.check_ids(ids)?;
        let backpack = backpack_of(model)?;
        let input = Tensor::from_slice(ids).unsqueeze(0).to_device(model.device());
        let weights = tch::no_grad(|| backpack.contextualization(&input, ForwardOptions::evaluation())).squeeze_dim(0);
        Ok(TextContext { ids: ids.to_vec(), weights })
    }
}

/// A text as a Backpack reads it.
#[derive(Debug)]
pub struct TextAnalysis<'m> {
    model: &'m LanguageModel,
    /// Its ids `[T]`.
    pub ids: Vec<i64>,
    /// As [`TextContext::weights`], `[L, T, T]`.
    pub weights: Tensor,
    /// The senses of its words, `[T, L, D]` fp32.
    pub senses: Tensor,
    /// What follows each position, `[T, V]` fp32; the last one alone, `[1, V]`, of [`TextAnalysis::at_position`].
    pub logits: Tensor,
    /// The position of its first row.
    first: usize,
}

impl<'m> TextAnalysis<'m> {
    /// Reads `ids`.
    ///
    /// # Errors
    /// As [`TextContext::new`].
    pub fn new(model: &'m LanguageModel, ids: &[i64]) -> Result<Self> {
        Self::from_position(model, &TextContext::new(model, ids)?, 0)
    }

    /// The text up to `position`, and what follows there alone.
    ///
    /// # Errors
    /// When the model is a GPT-2 or the text has no such position.
    pub fn at_position(model: &'m LanguageModel, context: &TextContext, position: usize) -> Result<Self> {
        check_position(position, context.ids.len())?;
        let (seen, ids) = (position as i64 + 1, context.ids[..=position].to_vec());
        let weights = context.weights.narrow(1, 0, seen).narrow(2, 0, seen);
        Self::from_position(model, &TextContext { ids, weights }, position)
    }

    fn from_position(model: &'m LanguageModel, context: &TextContext, first: usize) -> Result<Self> {
        let (backpack, pass) = (backpack_of(model)?, ForwardOptions::evaluation());
        let (ids, weights) = (context.ids.clone(), context.weights.shallow_clone());
        let senses = sense_vectors(model, &ids)?;
        let logits = tch::no_grad(|| {
            let rows = weights.narrow(1, first as i64, (ids.len() - first) as i64);
            model.head(&backpack.combine(&rows.unsqueeze(0), &senses.unsqueeze(0), pass), pass).squeeze_dim(0)
        });
        ensure!(
            model::is_finite(&logits),
            "the logits are not finite: an edit's factor is too large, or the weights are broken"
        );
        Ok(TextAnalysis { model, ids, weights, senses, logits, first })
    }

    /// The logits of all ids after `position`, `[V]` fp32.
    ///
    /// # Errors
    /// When there is no such position, or the reading is [`TextAnalysis::at_position`] a later one.
    pub fn logits_after(&self, position: usize) -> Result<Tensor> {
        check_position(position, self.ids.len())?;
        ensure!(position >= self.first, "position {position} was not read: the reading is at {}", self.first);
        Ok(self.logits.get((position - self.first) as i64))
    }

    /// The `top` most probable tokens after `position`.
    ///
    /// # Errors
    /// When there is no such position.
    pub fn next_tokens(&self, position: usize, top: usize) -> Result<Vec<CandidateToken>> {
        let logits = self.logits_after(position)?;
        let probabilities = logits.softmax(-1, Kind::Double);
        let best = ends(&words_only(self.model, &logits).unsqueeze(0), top, true)?.swap_remove(0);
        let candidate = |s: ScoredToken| CandidateToken {
            id: s.id,
            logit: s.logit,
            probability: probabilities.double_value(&[s.id]),
        };
        Ok(best.into_iter().map(candidate).collect())
    }

    /// One token as what follows `position`.
    ///
    /// # Errors
    /// When there is no such position or token.
    pub fn candidate(&self, position: usize, id: i64) -> Result<CandidateToken> {
        self.model.check_ids(&[id])?;
        let logits = self.logits_after(position)?;
        let probability = logits.softmax(-1, Kind::Double).double_value(&[id]);
        Ok(CandidateToken { id, logit: logits.double_value(&[id]), probability })
    }

    /// What each sense of each word up to `position` adds to the logit of `id` after it: `[position + 1, L]` in double
    /// precision, whose sum is the logit.
    ///
    /// # Errors
    /// When there is no such position or token.
    pub fn contributions(&self, position: usize, id: i64) -> Result<Tensor> {
        check_position(position, self.ids.len())?;
        self.model.check_ids(&[id])?;
        let (seen, row) = (position as i64 + 1, self.model.backpack().context("no Backpack")?.body().wte().get(id));
        let meant = self.senses.narrow(0, 0, seen).to_kind(Kind::Double).matmul(&row.detach().to_kind(Kind::Double));
        let weights = self.weights.select(1, position as i64).narrow(1, 0, seen).to_kind(Kind::Double);
        Ok(meant * weights.tr())
    }

    /// How a token is used in the text: for each sense the mean weight that later positions (its own included) give
    /// it, over all its places; `None` where it does not occur.
    pub fn usage(&self, token: i64) -> Option<Vec<f64>> {
        let length = self.ids.len();
        let places: Vec<usize> = (0..length).filter(|&place| self.ids[place] == token).collect();
        if places.is_empty() {
            return None;
        }
        let later: usize = places.iter().map(|place| length - place).sum();
        let column =
            |place: &usize| self.weights.select(2, *place as i64).narrow(1, *place as i64, (length - place) as i64);
        let sums = places.iter().map(|place| column(place).sum_dim_intlist([1i64].as_slice(), false, Kind::Double));
        let mean = sums.reduce(|a, b| a + b)? / later as f64;
        Vec::try_from(mean).ok()
    }
}

fn check_position(position: usize, length: usize) -> Result<()> {
    ensure!(position < length, "there is no position {position}: the text has {length} tokens, from 0");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tch::Device;

    use super::*;

    fn fixture(set: &str) -> LanguageModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/backpack").join(set);
        model::load_folder(&folder, Device::Cpu).unwrap()
    }

    const IDS: [i64; 6] = [5, 90, 5, 17, 200, 3];

    #[test]
    fn contributions_sum_to_the_logits() {
        for set in ["inv_scale", "one_sense"] {
            let model = fixture(set);
            let reading = TextAnalysis::new(&model, &IDS).unwrap();
            for (position, id) in [(0, 7), (3, 0), (5, 255)] {
                let parts = reading.contributions(position, id).unwrap();
                assert_eq!(parts.size(), [position as i64 + 1, model.config().num_senses]);
                let logit = reading.candidate(position, id).unwrap().logit;
                let off = (parts.sum(Kind::Double).double_value(&[]) - logit).abs();
                assert!(off < 1e-4, "{set} {position} {id}: {off}");
            }
        }
    }

    #[test]
    fn senses_and_what_follows_are_those_of_the_definition() {
        let model = fixture("inv_scale");
        let reading = TextAnalysis::new(&model, &IDS).unwrap();
        let input = Tensor::from_slice(&IDS).unsqueeze(0);
        let plain = ForwardOptions { kernels: model::Kernels::Reference, ..ForwardOptions::evaluation() };
        let logits = tch::no_grad(|| model.logits(&input, plain)).get(0).get(-1);
        let next = reading.next_tokens(5, 3).unwrap();
        let best = logits.argmax(-1, false).int64_value(&[]);
        assert_eq!(next[0].id, best);
        assert!((next[0].probability - logits.softmax(-1, Kind::Double).double_value(&[best])).abs() < 1e-6);
        assert!(next[0].logit >= next[1].logit && next[1].logit >= next[2].logit);

        let views = sense_views(&model, 90, 4).unwrap();
        let wte = model.backpack().unwrap().body().wte();
        for view in &views {
            let sense = reading.senses.get(1).get(view.sense);
            let meant = wte.matmul(&sense);
            assert_eq!(view.raises[0].id, meant.argmax(-1, false).int64_value(&[]));
            assert_eq!(view.lowers[0].id, meant.argmin(-1, false).int64_value(&[]));
            assert!((view.norm - sense.norm().double_value(&[])).abs() < 1e-5);
            assert_eq!((view.raises.len(), view.lowers.len()), (4, 4));
        }
        assert_eq!(views.len(), 4);
    }

    #[test]
    fn usage_is_the_mean_weight_over_all_places_and_cosines_are_symmetric() {
        let model = fixture("inv_scale");
        let reading = TextAnalysis::new(&model, &IDS).unwrap();
        let usage = reading.usage(5).unwrap();
        let mut sum = 0.0;
        let mut count = 0.0;
        for place in [0i64, 2] {
            for t in place..6 {
                sum += reading.weights.double_value(&[1, t, place]);
                count += 1.0;
            }
        }
        assert!((usage[1] - sum / count).abs() < 1e-9);
        assert!(reading.usage(6).is_none());
        let (ab, ba) = (sense_cosines(&model, 5, 90).unwrap(), sense_cosines(&model, 90, 5).unwrap());
        assert!((ab[1][3] - ba[3][1]).abs() < 1e-12);
        assert!((sense_cosines(&model, 5, 5).unwrap()[2][2] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_reading_at_a_position_is_that_of_the_whole_text_there() {
        let model = fixture("inv_scale");
        let (whole, context) = (TextAnalysis::new(&model, &IDS).unwrap(), TextContext::new(&model, &IDS).unwrap());
        for position in [0, 3, 5] {
            let here = TextAnalysis::at_position(&model, &context, position).unwrap();
            let off = (here.logits_after(position).unwrap() - whole.logits_after(position).unwrap())
                .abs()
                .max()
                .double_value(&[]);
            assert!(off < 1e-5, "{position}: {off}");
            let parts = here.contributions(position, 7).unwrap() - whole.contributions(position, 7).unwrap();
            assert!(parts.abs().max().double_value(&[]) < 1e-6);
        }
        let last = TextAnalysis::at_position(&model, &context, 5).unwrap();
        assert_eq!(last.next_tokens(4, 1).unwrap_err().to_string(), "position 4 was not read: the reading is at 5");
        assert!(TextAnalysis::at_position(&model, &context, 6).is_err());
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let model = fixture("inv_scale");
        let reading = TextAnalysis::new(&model, &IDS).unwrap();
        assert!(reading.next_tokens(6, 1).unwrap_err().to_string().starts_with("there is no position 6"));
        assert!(reading.contributions(0, 311).is_err() && sense_views(&model, 311, 1).is_err());
        assert!(TextAnalysis::new(&model, &[1; 33]).is_err());
    }
}
