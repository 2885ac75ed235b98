//! Debiasing: measures a model's preference for "he" or "she" after occupations, finds the sense of
//! the occupations that causes it, and finds the factor that reduces that sense.
//!
//! The factor of a sense enters the logits linearly, and the log-ratio of two probabilities is the
//! difference of their logits. So one forward pass per prompt gives the exact log-ratio for every
//! sense and every factor.

use anyhow::{Context, Result, ensure};
use model::{ForwardOptions, Kernels, LanguageModel, SenseChoice, SenseEdit, SenseOp};
use tch::{Kind, Tensor};

use super::minimize::minimize;
use crate::senses::inspect::backpack_of;

/// The log-ratio of the probabilities of two next words, such as "he" and "she", after a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct GenderLogRatio {
    /// ln(p(first) / p(second)) of the unedited model.
    pub log_ratio: f64,
    /// The contribution of each sense of the occupation to `log_ratio`.
    pub by_sense: Vec<f64>,
}

impl GenderLogRatio {
    /// Returns ln(p(first) / p(second)) after sense `sense` of the occupation has been multiplied
    /// by `factor`.
    pub fn scaled(&self, sense: usize, factor: f64) -> f64 {
        self.log_ratio + (factor - 1.0) * self.by_sense[sense]
    }
}

/// Measures the log-ratio of the two words of `pair` as the next word after `prompt`, and the
/// contribution of each sense of `occupation` over all positions where it occurs in the prompt.
///
/// # Errors
/// The model is a GPT-2, the occupation is not in the prompt, or an id is outside the vocabulary.
pub fn gender_log_ratio(
    model: &LanguageModel,
    prompt: &[i64],
    occupation: i64,
    pair: [i64; 2],
) -> Result<GenderLogRatio> {
    let backpack = backpack_of(model)?;
    model.check_ids(prompt)?;
    model.check_ids(&pair)?;
    let positions: Vec<usize> = (0..prompt.len()).filter(|&position| prompt[position] == occupation).collect();
    ensure!(!positions.is_empty(), "the occupation, token {occupation}, is not in its prompt");
    // The logits are sums over words and senses, so their difference does not need the head.
    let parts = tch::no_grad(|| {
        let ids = Tensor::from_slice(prompt).unsqueeze(0).to_device(model.device());
        let weights =
            backpack.contextualization(&ids, model.evaluation_options()).get(0).select(1, -1).to_kind(Kind::Double);
        // The fused kernels compute the senses of 64 words at a time, more than are needed here.
        let reference = ForwardOptions { kernels: Kernels::Reference, ..ForwardOptions::evaluation() };
        let senses = backpack.senses(&ids, reference).get(0).to_kind(Kind::Double);
        let row = |id: i64| backpack.body().wte().get(id).to_kind(Kind::Double);
        senses.matmul(&(row(pair[0]) - row(pair[1]))) * weights.tr() // [T, L]
    });
    let of_sense = |sense| positions.iter().map(|&position| parts.double_value(&[position as i64, sense])).sum();
    let by_sense = (0..model.config().num_senses).map(of_sense).collect();
    Ok(GenderLogRatio { log_ratio: parts.sum(Kind::Double).double_value(&[]), by_sense })
}

/// Returns the mean over prompts of max(p(first) / p(second), p(second) / p(first)), computed from
/// the log-ratios. A bias of 1 means no bias.
pub fn bias(log_ratios: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) =
        log_ratios.into_iter().fold((0.0, 0u32), |(sum, count), ratio| (sum + ratio.abs().exp(), count + 1));
    sum / f64::from(count)
}

/// The bias of the training prompts that one sense of all occupations can reach.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SenseTrial {
    /// The number of the sense, from 0.
    pub sense: usize,
    /// The bias with the sense removed (factor 0).
    pub removed: f64,
    /// The factor in [0, 1] at which the bias is lowest.
    pub best_factor: f64,
    /// The bias at `best_factor`.
    pub lowest: f64,
}

/// The sense that reduces the bias most, and its factor.
#[derive(Debug, Clone, PartialEq)]
pub struct DebiasFit {
    /// The number of the sense, from 0.
    pub sense: usize,
    /// The factor that the sense is multiplied by.
    pub factor: f64,
    /// The result of trying each sense alone.
    pub trials: Vec<SenseTrial>,
}

/// Finds the sense that allows the lowest bias on the training prompts, and the factor f in [0, 1]
/// of this sense that minimizes bias + |1 - f|. Both functions are convex in f.
///
/// # Errors
/// There are no prompts.
pub fn find_factor(training: &[GenderLogRatio]) -> Result<DebiasFit> {
    let num_senses = training.first().context("there are no training prompts: give at least one")?.by_sense.len();
    let bias_at = |sense: usize, factor: f64| bias(training.iter().map(|prompt| prompt.scaled(sense, factor)));
    let trial = |sense| {
        let best_factor = minimize(|factor| bias_at(sense, factor), 0.0..=1.0);
        SenseTrial { sense, removed: bias_at(sense, 0.0), best_factor, lowest: bias_at(sense, best_factor) }
    };
    let trials: Vec<SenseTrial> = (0..num_senses).map(trial).collect();
    let best = trials.iter().min_by(|a, b| a.lowest.total_cmp(&b.lowest)).context("the model has no senses")?;
    let sense = best.sense;
    let factor = minimize(|factor| bias_at(sense, factor) + (1.0 - factor).abs(), 0.0..=1.0);
    Ok(DebiasFit { sense, factor, trials })
}

/// Returns the edits that multiply one sense of these words by a factor.
pub fn debias_edits(words: &[i64], sense: usize, factor: f64) -> Vec<SenseEdit> {
    let edit = |&token: &i64| SenseEdit { token, sense: SenseChoice::One(sense as i64), op: SenseOp::Scale(factor) };
    words.iter().map(edit).collect()
}

/// Returns the baseline: the model with the direction E[second] - E[first] projected out of the
/// embeddings of `words`. All other weights are shared with `model`.
///
/// # Errors
/// The model is a GPT-2, an id is outside the vocabulary, or both words of the pair have the same
/// embedding.
pub fn project_out(model: &LanguageModel, words: &[i64], pair: [i64; 2]) -> Result<LanguageModel> {
    backpack_of(model)?;
    for &id in words.iter().chain(&pair) {
        model.check_ids(&[id])?;
    }
    let name = format!("{}.wte.weight", model.config().body_prefix());
    let wte = tch::no_grad(|| model.parameters().get(&name).copy()).detach();
    let row = |id: i64| wte.get(id).to_kind(Kind::Double);
    let direction = row(pair[1]) - row(pair[0]);
    let square = direction.dot(&direction).double_value(&[]);
    ensure!(square > 0.0, "the two words of the pair have the same embedding: there is no direction between them");
    for &word in words {
        let share = row(word).dot(&direction).double_value(&[]) / square;
        wte.get(word).copy_(&(row(word) - &direction * share));
    }
    // Edited senses are stored as vectors, so the new embeddings do not change them.
    model.with_parameter(&name, wte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixture;

    const PAIR: [i64; 2] = [30, 41];

    #[test]
    fn scaled_log_ratio_equals_that_of_the_edited_model() {
        let mut model = fixture("inv_scale");
        let prompt = [7, 90, 12, 90, 3];
        let measure = |model: &LanguageModel| gender_log_ratio(model, &prompt, 90, PAIR).unwrap();
        let unedited = measure(&model);
        let analysis = crate::TextAnalysis::new(&model, &prompt).unwrap();
        let logit = |id: i64| analysis.logits.double_value(&[4, id]);
        assert!((unedited.log_ratio - (logit(30) - logit(41))).abs() < 1e-4);
        for sense in 0..4 {
            for factor in [0.0, 0.4, 1.0] {
                let edits = debias_edits(&[90], sense, factor);
                let edited = model.with_edits(&edits, |model| Ok(measure(model))).unwrap();
                let off = (edited.log_ratio - unedited.scaled(sense, factor)).abs();
                assert!(off < 1e-4, "sense {sense}, factor {factor}: {off}");
            }
        }
        let error = gender_log_ratio(&model, &[7, 12], 90, PAIR).unwrap_err().to_string();
        assert!(error.contains("is not in its prompt"), "{error}");
    }

    #[test]
    fn bias_is_the_mean_of_the_larger_ratio() {
        let log_ratios = [2.0f64.ln(), 0.25f64.ln(), 0.0];
        assert!((bias(log_ratios) - 7.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn biased_sense_is_found_with_its_factor() {
        // Sense 1 contributes ln 9 to the log-ratios of all three prompts (-ln 9 in the third).
        // Sense 0 contributes -0.1 and 0.1 to two of them.
        let ln = f64::ln;
        let prompt = |log_ratio: f64, zero: f64, one: f64| GenderLogRatio { log_ratio, by_sense: vec![zero, one] };
        let training =
            [prompt(ln(10.0), -0.1, ln(9.0)), prompt(ln(10.0), 0.1, ln(9.0)), prompt(-ln(9.0), 0.0, -ln(9.0))];
        let found = find_factor(&training).unwrap();
        assert_eq!(found.sense, 1);
        let trial = found.trials[1];
        assert!((trial.removed - (10.0 / 9.0 * 2.0 + 1.0) / 3.0).abs() < 1e-9);
        assert!(trial.best_factor < 1e-6 && (trial.lowest - trial.removed).abs() < 1e-6);
        // At f the bias is 9^f (10/9 x 2 + 1) / 3. Its slope equals that of |1 - f| at `want`,
        // which is below 0, so the minimum on [0, 1] is at 0.
        let want = (1.0 / ((10.0 / 9.0 * 2.0 + 1.0) / 3.0 * ln(9.0))).ln() / ln(9.0);
        assert!(want < 0.0 && found.factor < 1e-6, "{}, {want}", found.factor);
        assert!(find_factor(&[]).is_err());
    }

    #[test]
    fn factor_inside_the_range_is_found() {
        // The log-ratio is 2 - 4 (1 - f), which is 0 at f = 0.5.
        let training = [GenderLogRatio { log_ratio: 2.0, by_sense: vec![4.0] }];
        let found = find_factor(&training).unwrap();
        assert!((found.factor - 0.5).abs() < 1e-6 && (found.trials[0].best_factor - 0.5).abs() < 1e-6);
        assert!((found.trials[0].removed - 2f64.exp()).abs() < 1e-9);
    }

    /// Plants a bias in one sense of two words and checks that it is found there and removed.
    #[test]
    fn planted_bias_is_found_and_removed() {
        let mut model = fixture("inv_scale");
        let wte = model.backpack().unwrap().body().wte().detach();
        let planted: Vec<f32> = Vec::try_from((wte.get(41) - wte.get(30)) * 3.0).unwrap();
        let plant = |token| SenseEdit { token, sense: SenseChoice::One(2), op: SenseOp::Add(planted.clone()) };
        let prompts = [([7, 90, 12], 90), ([3, 90, 8], 90), ([7, 17, 12], 17), ([3, 17, 8], 17)];
        let measure = |model: &LanguageModel| -> Result<Vec<GenderLogRatio>> {
            prompts.iter().map(|(prompt, word)| gender_log_ratio(model, prompt, *word, PAIR)).collect()
        };
        let (before, after) = (measure(&model).unwrap(), model.with_edits(&[plant(90), plant(17)], measure).unwrap());
        let bias_of = |prompts: &[GenderLogRatio]| bias(prompts.iter().map(|prompt| prompt.log_ratio));
        assert!(bias_of(&after) > 10.0 * bias_of(&before));
        let found = find_factor(&after).unwrap();
        assert_eq!(found.sense, 2);
        assert!(bias(after.iter().map(|prompt| prompt.scaled(2, found.factor))) < 2.0 * bias_of(&before));
    }

    #[test]
    fn projected_embeddings_are_orthogonal_to_the_pair() {
        let mut model = fixture("inv_scale");
        let edit = SenseEdit { token: 12, sense: SenseChoice::One(1), op: SenseOp::Scale(2.0) };
        model.edit(&[edit]).unwrap();
        let projected = project_out(&model, &[90, 5], PAIR).unwrap();
        let rows = |model: &LanguageModel| model.backpack().unwrap().body().wte().detach().to_kind(Kind::Double);
        let (before, after) = (rows(&model), rows(&projected));
        let direction = after.get(41) - after.get(30);
        for word in [90, 5] {
            assert!(before.get(word).dot(&direction).abs().double_value(&[]) > 1e-2);
            assert!(after.get(word).dot(&direction).abs().double_value(&[]) < 1e-5);
        }
        let rest = |rows: &Tensor| rows.index_fill(0, &Tensor::from_slice(&[90i64, 5]), 0.0);
        assert_eq!(rest(&before), rest(&after));
        // The edited word 12 is not projected and keeps its senses; the projected word 90 does not.
        let senses = |model: &LanguageModel, id| crate::senses::inspect::sense_vectors(model, &[id]).unwrap();
        assert_eq!(senses(&model, 12), senses(&projected, 12));
        assert!(senses(&model, 90) != senses(&projected, 90));
        assert!(project_out(&model, &[90], [30, 30]).is_err());
    }
}
