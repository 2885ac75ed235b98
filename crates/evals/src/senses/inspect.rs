//! Inspection of a Backpack: the words that each sense raises and lowers, and the contribution of
//! each sense of each word to a prediction. With fp32 products the contributions are exact: they sum
//! to the logit. With bf16 products they sum to it up to the rounding of these products.

use anyhow::{Context, Result, ensure};
use model::{Backpack, ForwardOptions, LanguageModel};
use tch::{Kind, Tensor};

/// A token and its logit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredToken {
    /// The id of the token.
    pub id: i64,
    /// The logit of the token, or the contribution of one sense to it.
    pub logit: f64,
}

/// One sense of a word, without a context.
#[derive(Debug, Clone, PartialEq)]
pub struct SenseView {
    /// The number of the sense, from 0.
    pub sense: i64,
    /// The norm of the sense vector.
    pub norm: f64,
    /// The tokens with the highest logits, in descending order.
    pub raises: Vec<ScoredToken>,
    /// The tokens with the lowest logits, in ascending order.
    pub lowers: Vec<ScoredToken>,
}

/// A possible next token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CandidateToken {
    /// The id of the token.
    pub id: i64,
    /// The logit of the token.
    pub logit: f64,
    /// The probability of the token among all ids, including padding.
    pub probability: f64,
}

/// Returns the Backpack of a model.
///
/// # Errors
/// The model is a GPT-2.
pub(crate) fn backpack_of(model: &LanguageModel) -> Result<&Backpack> {
    model.backpack().context("the model is a GPT-2, which has no senses: give a Backpack")
}

/// Returns the senses of tokens `[N]`: `[N, L, D]` fp32, without dropout.
///
/// # Errors
/// The model is a GPT-2.
pub(crate) fn sense_vectors(model: &LanguageModel, tokens: &[i64]) -> Result<Tensor> {
    let ids = Tensor::from_slice(tokens).unsqueeze(0).to_device(model.device());
    let backpack = backpack_of(model)?;
    Ok(tch::no_grad(|| backpack.senses(&ids, ForwardOptions::evaluation())).squeeze_dim(0))
}

/// Returns every sense of a token, with the `top` tokens of the highest and of the lowest logits.
///
/// # Errors
/// The model is a GPT-2, or the token is outside its vocabulary.
pub fn sense_views(model: &LanguageModel, token: i64, top: usize) -> Result<Vec<SenseView>> {
    model.check_ids(&[token])?;
    let senses = sense_vectors(model, &[token])?.squeeze_dim(0);
    let logits = without_padding(model, &model.head(&senses, ForwardOptions::evaluation()));
    let norms: Vec<f64> = Vec::try_from(senses.norm_scalaropt_dim(2.0, [1], false).to_kind(Kind::Double))?;
    let (raises, lowers) = (extreme_tokens(&logits, top, true)?, extreme_tokens(&logits, top, false)?);
    let views = norms.into_iter().zip(raises).zip(lowers).enumerate();
    Ok(views.map(|(sense, ((norm, raises), lowers))| SenseView { sense: sense as i64, norm, raises, lowers }).collect())
}

/// Returns the cosines between the senses of two tokens, `[L, L]`. Rows are the senses of the first
/// one.
///
/// # Errors
/// The model is a GPT-2, or a token is outside its vocabulary.
pub fn sense_cosines(model: &LanguageModel, first: i64, second: i64) -> Result<Vec<Vec<f64>>> {
    model.check_ids(&[first])?;
    model.check_ids(&[second])?;
    let senses = sense_vectors(model, &[first, second])?.to_kind(Kind::Double);
    // The cosines of a sense that an edit has set to zero are 0.
    let unit = &senses / senses.norm_scalaropt_dim(2.0, [2], true).clamp_min(f64::MIN_POSITIVE);
    rows(&unit.get(0).matmul(&unit.get(1).tr()))
}

/// Removes the padding ids from logits `[.., V]`.
fn without_padding(model: &LanguageModel, logits: &Tensor) -> Tensor {
    logits.narrow(-1, 0, model.config().tokenizer_vocab_size())
}

/// Returns the `top` tokens with the highest or the lowest logits of each row of `[N, V]`.
fn extreme_tokens(logits: &Tensor, top: usize, highest: bool) -> Result<Vec<Vec<ScoredToken>>> {
    let top = i64::try_from(top).unwrap_or(i64::MAX).min(logits.size()[1]);
    let (values, ids) = logits.topk(top, 1, highest, true);
    let values = rows(&values.to_kind(Kind::Double))?;
    let row = |(row, values): (usize, Vec<f64>)| -> Result<Vec<ScoredToken>> {
        let ids: Vec<i64> = Vec::try_from(ids.get(row as i64))?;
        Ok(ids.into_iter().zip(values).map(|(id, logit)| ScoredToken { id, logit }).collect())
    };
    values.into_iter().enumerate().map(row).collect()
}

/// Returns the rows of a matrix `[N, M]` in fp64.
fn rows(matrix: &Tensor) -> Result<Vec<Vec<f64>>> {
    (0..matrix.size()[0]).map(|row| Ok(Vec::try_from(matrix.get(row).to_kind(Kind::Double))?)).collect()
}

/// The part of a text analysis that does not depend on sense edits, because the transformer only
/// reads the embeddings. It can be reused for different edits.
#[derive(Debug)]
pub struct TextContext {
    /// The ids of the text, `[T]`.
    pub ids: Vec<i64>,
    /// The contextualization weights, `[L, T, T]` fp32. For each sense, row t is a distribution
    /// over the positions up to t.
    pub weights: Tensor,
}

impl TextContext {
    /// Computes the contextualization weights of a text.
    ///
    /// # Errors
    /// The model is a GPT-2, or `ids` is empty, longer than the context, or has an id outside the
    /// vocabulary.
    pub fn new(model: &LanguageModel, ids: &[i64]) -> Result<Self> {
        model.check_ids(ids)?;
        let backpack = backpack_of(model)?;
        let input = Tensor::from_slice(ids).unsqueeze(0).to_device(model.device());
        let weights = tch::no_grad(|| backpack.contextualization(&input, model.evaluation_options())).squeeze_dim(0);
        Ok(TextContext { ids: ids.to_vec(), weights })
    }
}

/// The weights, senses and logits of a text in a Backpack, with the model's
/// [evaluation options](LanguageModel::evaluation_options). The senses are computed in fp32.
#[derive(Debug)]
pub struct TextAnalysis<'m> {
    model: &'m LanguageModel,
    /// The ids of the text, `[T]`.
    pub ids: Vec<i64>,
    /// The contextualization weights, as in [`TextContext::weights`], `[L, T, T]`.
    pub weights: Tensor,
    /// The senses of the words of the text, `[T, L, D]` fp32.
    pub senses: Tensor,
    /// The logits of the next token after each position, `[T, V]` fp32. After
    /// [`TextAnalysis::at_position`] only those of the last position, `[1, V]`.
    pub logits: Tensor,
    /// The position of the first row of `logits`.
    first: usize,
}

impl<'m> TextAnalysis<'m> {
    /// Analyzes a text at all positions.
    ///
    /// # Errors
    /// The errors of [`TextContext::new`]; also, the logits are not finite.
    pub fn new(model: &'m LanguageModel, ids: &[i64]) -> Result<Self> {
        Self::from_position(model, &TextContext::new(model, ids)?, 0)
    }

    /// Analyzes the text up to `position`, with the logits of this position only.
    ///
    /// # Errors
    /// The model is a GPT-2, the position does not exist, or the logits are not finite.
    pub fn at_position(model: &'m LanguageModel, context: &TextContext, position: usize) -> Result<Self> {
        check_position(position, context.ids.len())?;
        let (length, ids) = (position as i64 + 1, context.ids[..=position].to_vec());
        let weights = context.weights.narrow(1, 0, length).narrow(2, 0, length);
        Self::from_position(model, &TextContext { ids, weights }, position)
    }

    fn from_position(model: &'m LanguageModel, context: &TextContext, first: usize) -> Result<Self> {
        let (backpack, forward) = (backpack_of(model)?, model.evaluation_options());
        let (ids, weights) = (context.ids.clone(), context.weights.shallow_clone());
        let senses = sense_vectors(model, &ids)?;
        let operand = senses.unsqueeze(0).to_kind(forward.kind);
        let logits = tch::no_grad(|| {
            let rows = weights.narrow(1, first as i64, (ids.len() - first) as i64);
            model.head(&backpack.combine_senses(&rows.unsqueeze(0), &operand, forward), forward).squeeze_dim(0)
        });
        ensure!(
            model::is_finite(&logits),
            "the logits are not finite: the factor of an edit is too large, or the weights are damaged"
        );
        Ok(TextAnalysis { model, ids, weights, senses, logits, first })
    }

    /// Returns the logits of all ids after `position`, `[V]` fp32.
    ///
    /// # Errors
    /// The position does not exist, or it is not analyzed, because the analysis was made by
    /// [`TextAnalysis::at_position`] for a later one.
    pub fn logits_after(&self, position: usize) -> Result<Tensor> {
        check_position(position, self.ids.len())?;
        ensure!(position >= self.first, "position {position} is not analyzed: the analysis starts at {}", self.first);
        Ok(self.logits.get((position - self.first) as i64))
    }

    /// Returns the `top` most probable tokens after `position`, in descending order.
    ///
    /// # Errors
    /// The errors of [`TextAnalysis::logits_after`].
    pub fn next_tokens(&self, position: usize, top: usize) -> Result<Vec<CandidateToken>> {
        let logits = self.logits_after(position)?;
        let probabilities = logits.softmax(-1, Kind::Double);
        let best = extreme_tokens(&without_padding(self.model, &logits).unsqueeze(0), top, true)?.swap_remove(0);
        let candidate = |token: ScoredToken| CandidateToken {
            id: token.id,
            logit: token.logit,
            probability: probabilities.double_value(&[token.id]),
        };
        Ok(best.into_iter().map(candidate).collect())
    }

    /// Returns the logit and the probability of one token after `position`.
    ///
    /// # Errors
    /// The errors of [`TextAnalysis::logits_after`]; also, the token is outside the vocabulary.
    pub fn candidate(&self, position: usize, id: i64) -> Result<CandidateToken> {
        self.model.check_ids(&[id])?;
        let logits = self.logits_after(position)?;
        let probability = logits.softmax(-1, Kind::Double).double_value(&[id]);
        Ok(CandidateToken { id, logit: logits.double_value(&[id]), probability })
    }

    /// Returns the contribution of each sense of each word up to `position` to the logit of `id`
    /// after it: `[position + 1, L]` fp64. Their sum is the logit, up to the rounding of the
    /// products.
    ///
    /// # Errors
    /// The position does not exist, or the token is outside the vocabulary.
    pub fn contributions(&self, position: usize, id: i64) -> Result<Tensor> {
        check_position(position, self.ids.len())?;
        self.model.check_ids(&[id])?;
        let (length, row) = (position as i64 + 1, backpack_of(self.model)?.body().wte().get(id));
        let logits = self.senses.narrow(0, 0, length).to_kind(Kind::Double).matmul(&row.detach().to_kind(Kind::Double));
        let weights = self.weights.select(1, position as i64).narrow(1, 0, length).to_kind(Kind::Double);
        Ok(logits * weights.tr())
    }

    /// Returns how the text uses a token: for each of its senses the mean contextualization weight,
    /// over all occurrences and the positions from the occurrence on. `None` if the token does not
    /// occur.
    pub fn usage(&self, token: i64) -> Option<Vec<f64>> {
        let length = self.ids.len();
        let occurrences: Vec<usize> = (0..length).filter(|&position| self.ids[position] == token).collect();
        if occurrences.is_empty() {
            return None;
        }
        let count: usize = occurrences.iter().map(|start| length - start).sum();
        let column =
            |start: &usize| self.weights.select(2, *start as i64).narrow(1, *start as i64, (length - start) as i64);
        let sums =
            occurrences.iter().map(|start| column(start).sum_dim_intlist([1i64].as_slice(), false, Kind::Double));
        let mean = sums.reduce(|a, b| a + b)? / count as f64;
        Vec::try_from(mean).ok()
    }
}

fn check_position(position: usize, length: usize) -> Result<()> {
    ensure!(position < length, "there is no position {position}: the text has positions 0 to {}", length - 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    const IDS: [i64; 6] = [5, 90, 5, 17, 200, 3];

    #[test]
    fn contributions_sum_to_the_logits() {
        for set in ["inv_scale", "one_sense"] {
            let model = fixture(set);
            let analysis = TextAnalysis::new(&model, &IDS).unwrap();
            for (position, id) in [(0, 7), (3, 0), (5, 255)] {
                let parts = analysis.contributions(position, id).unwrap();
                assert_eq!(parts.size(), [position as i64 + 1, model.config().num_senses]);
                let logit = analysis.candidate(position, id).unwrap().logit;
                let off = (parts.sum(Kind::Double).double_value(&[]) - logit).abs();
                assert!(off < 1e-4, "{set} {position} {id}: {off}");
            }
        }
    }

    #[test]
    fn contributions_sum_to_the_logits_up_to_rounding_in_bf16() {
        let model = fixture("inv_scale").with_evaluation_kind(Kind::BFloat16);
        let analysis = TextAnalysis::new(&model, &IDS).unwrap();
        let scale = analysis.logits.abs().max().double_value(&[]);
        let logit = analysis.candidate(3, 7).unwrap().logit;
        let off = (analysis.contributions(3, 7).unwrap().sum(Kind::Double).double_value(&[]) - logit).abs() / scale;
        assert!(off > 0.0 && off < 0.01, "{off}");
        // The senses are those of fp32.
        assert_eq!(analysis.senses, TextAnalysis::new(&fixture("inv_scale"), &IDS).unwrap().senses);
    }

    #[test]
    fn views_and_predictions_equal_the_reference_kernels() {
        let model = fixture("inv_scale");
        let analysis = TextAnalysis::new(&model, &IDS).unwrap();
        let input = Tensor::from_slice(&IDS).unsqueeze(0);
        let reference = ForwardOptions { kernels: model::Kernels::Reference, ..ForwardOptions::evaluation() };
        let logits = tch::no_grad(|| model.logits(&input, reference)).get(0).get(-1);
        let next = analysis.next_tokens(5, 3).unwrap();
        let best = logits.argmax(-1, false).int64_value(&[]);
        assert_eq!(next[0].id, best);
        assert!((next[0].probability - logits.softmax(-1, Kind::Double).double_value(&[best])).abs() < 1e-6);
        assert!(next[0].logit >= next[1].logit && next[1].logit >= next[2].logit);

        let views = sense_views(&model, 90, 4).unwrap();
        let wte = model.backpack().unwrap().body().wte();
        for view in &views {
            let sense = analysis.senses.get(1).get(view.sense);
            let logits = wte.matmul(&sense);
            assert_eq!(view.raises[0].id, logits.argmax(-1, false).int64_value(&[]));
            assert_eq!(view.lowers[0].id, logits.argmin(-1, false).int64_value(&[]));
            assert!((view.norm - sense.norm().double_value(&[])).abs() < 1e-5);
            assert_eq!((view.raises.len(), view.lowers.len()), (4, 4));
        }
        assert_eq!(views.len(), 4);
    }

    #[test]
    fn usage_is_a_mean_weight_and_cosines_are_symmetric() {
        let model = fixture("inv_scale");
        let analysis = TextAnalysis::new(&model, &IDS).unwrap();
        let usage = analysis.usage(5).unwrap();
        let mut sum = 0.0;
        let mut count = 0.0;
        for start in [0i64, 2] {
            for t in start..6 {
                sum += analysis.weights.double_value(&[1, t, start]);
                count += 1.0;
            }
        }
        assert!((usage[1] - sum / count).abs() < 1e-9);
        assert!(analysis.usage(6).is_none());
        let (ab, ba) = (sense_cosines(&model, 5, 90).unwrap(), sense_cosines(&model, 90, 5).unwrap());
        assert!((ab[1][3] - ba[3][1]).abs() < 1e-12);
        assert!((sense_cosines(&model, 5, 5).unwrap()[2][2] - 1.0).abs() < 1e-12);
    }

    #[test]
    fn analysis_at_a_position_equals_that_of_the_whole_text() {
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
        assert_eq!(
            last.next_tokens(4, 1).unwrap_err().to_string(),
            "position 4 is not analyzed: the analysis starts at 5"
        );
        assert!(TextAnalysis::at_position(&model, &context, 6).is_err());
    }

    #[test]
    fn missing_positions_and_tokens_are_errors() {
        let model = fixture("inv_scale");
        let analysis = TextAnalysis::new(&model, &IDS).unwrap();
        assert!(analysis.next_tokens(6, 1).unwrap_err().to_string().starts_with("there is no position 6"));
        assert!(analysis.contributions(0, 311).is_err() && sense_views(&model, 311, 1).is_err());
        assert!(TextAnalysis::new(&model, &[1; 33]).is_err());
    }
}
