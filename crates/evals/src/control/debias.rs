//! How a model leans to "he" or "she" after an occupation, which sense of the occupation carries that, and by how much
//! that sense is to be weakened.
//!
//! The factor of a sense enters a logit linearly, and the ratio of two probabilities is that of their exponentials: one
//! pass a prompt gives the ratio at every factor of every sense, exactly.

use anyhow::{Context, Result, ensure};
use model::{ForwardOptions, Kernels, LanguageModel, SenseChoice, SenseEdit, SenseOp};
use tch::{Kind, Tensor};

use super::minimize::minimise;
use crate::senses::inspect::backpack_of;

/// How a prompt's next word leans.
#[derive(Debug, Clone, PartialEq)]
pub struct GenderLogRatio {
    /// ln(p(first) / p(second)) of the model as it is.
    pub ratio: f64,
    /// What each sense of the occupation adds to it.
    pub by_sense: Vec<f64>,
}

impl GenderLogRatio {
    /// ln(p(first) / p(second)) when sense `sense` of the occupation is multiplied by `factor`.
    pub fn scaled(&self, sense: usize, factor: f64) -> f64 {
        self.ratio + (factor - 1.0) * self.by_sense[sense]
    }
}

/// Of what follows `prompt`, between the words of `pair`, with what each sense of `occupation` adds wherever it stands
/// in the prompt.
///
/// # Errors
/// When the model is a GPT-2, the occupation is not in the prompt, or an id is outside the vocabulary.
pub fn gender_log_ratio(
    model: &LanguageModel,
    prompt: &[i64],
    occupation: i64,
    pair: [i64; 2],
) -> Result<GenderLogRatio> {
    let backpack = backpack_of(model)?;
    model.check_ids(prompt)?;
    model.check_ids(&pair)?;
    let places: Vec<usize> = (0..prompt.len()).filter(|&place| prompt[place] == occupation).collect();
    ensure!(!places.is_empty(), "token {occupation}, the occupation, is not in its prompt");
    // Logits are sums over words and senses, so that their difference needs no head.
    let parts = tch::no_grad(|| {
        let ids = Tensor::from_slice(prompt).unsqueeze(0).to_device(model.device());
        let weights =
            backpack.contextualization(&ids, ForwardOptions::evaluation()).get(0).select(1, -1).to_kind(Kind::Double);
        // By the definition: the fused path makes senses of sixty-four words at a time.
        let plain = ForwardOptions { kernels: Kernels::Reference, ..ForwardOptions::evaluation() };
        let senses = backpack.senses(&ids, plain).get(0).to_kind(Kind::Double);
        let row = |id: i64| backpack.body().wte().get(id).to_kind(Kind::Double);
        senses.matmul(&(row(pair[0]) - row(pair[1]))) * weights.tr() // [T, L]
    });
    let of_sense = |sense| places.iter().map(|&place| parts.double_value(&[place as i64, sense])).sum();
    let by_sense = (0..model.config().num_senses).map(of_sense).collect();
    Ok(GenderLogRatio { ratio: parts.sum(Kind::Double).double_value(&[]), by_sense })
}

/// The mean over prompts of max(p(first) / p(second), p(second) / p(first)), from their logarithms: 1 is none.
pub fn bias(ratios: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = ratios.into_iter().fold((0.0, 0u32), |(sum, count), ratio| (sum + ratio.abs().exp(), count + 1));
    sum / f64::from(count)
}

/// What one sense of all occupations can do for the bias of the training prompts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SenseTrial {
    /// Which, from 0.
    pub sense: usize,
    /// The bias without it.
    pub removed: f64,
    /// The factor in [0, 1] at which the bias is lowest.
    pub best_factor: f64,
    /// That bias.
    pub lowest: f64,
}

/// The sense that carries most of the bias, and its factor.
#[derive(Debug, Clone, PartialEq)]
pub struct FitResult {
    /// Which, from 0.
    pub sense: usize,
    /// What it is multiplied by.
    pub factor: f64,
    /// What every sense can do.
    pub trials: Vec<SenseTrial>,
}

/// Finds the sense with which the training prompts' bias can be made lowest, and its factor f in [0, 1] at which bias +
/// |1 - f| is lowest, by Nelder and Mead's method from 1.
///
/// # Errors
/// When there are no prompts.
pub fn find_factor(training: &[GenderLogRatio]) -> Result<FitResult> {
    let num_senses = training.first().context("there are no training prompts: give at least one")?.by_sense.len();
    let bias_at = |sense: usize, factor: f64| bias(training.iter().map(|leaning| leaning.scaled(sense, factor)));
    let trial = |sense| {
        let best_factor = minimise(|factor| bias_at(sense, factor), 1.0, 0.0..=1.0);
        SenseTrial { sense, removed: bias_at(sense, 0.0), best_factor, lowest: bias_at(sense, best_factor) }
    };
    let trials: Vec<SenseTrial> = (0..num_senses).map(trial).collect();
    let best = trials.iter().min_by(|a, b| a.lowest.total_cmp(&b.lowest)).context("the model has no senses")?;
    let sense = best.sense;
    let factor = minimise(|factor| bias_at(sense, factor) + (1.0 - factor).abs(), 1.0, 0.0..=1.0);
    Ok(FitResult { sense, factor, trials })
}

/// The edits that multiply a sense of these words by a factor.
pub fn debias_edits(words: &[i64], sense: usize, factor: f64) -> Vec<SenseEdit> {
    let edit = |&token: &i64| SenseEdit { token, sense: SenseChoice::One(sense as i64), op: SenseOp::Scale(factor) };
    words.iter().map(edit).collect()
}

/// The baseline: the same model with the direction E[second] - E[first] projected out of the embeddings of `words`, its
/// other weights shared.
///
/// # Errors
/// When the model is a GPT-2, an id is outside the vocabulary, or the pair has one embedding.
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
    // Edited senses are what they were edited to, whatever the embedding.
    model.with_parameter(&name, wte)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::tests::fixture;

    const PAIR: [i64; 2] = [30, 41];

    #[test]
    fn a_leaning_is_that_of_the_edited_model_at_every_factor() {
        let mut model = fixture("inv_scale");
        let prompt = [7, 90, 12, 90, 3];
        let leaning_of = |model: &LanguageModel| gender_log_ratio(model, &prompt, 90, PAIR).unwrap();
        let plain = leaning_of(&model);
        let reading = crate::TextAnalysis::new(&model, &prompt).unwrap();
        let logit = |id: i64| reading.logits.double_value(&[4, id]);
        assert!((plain.ratio - (logit(30) - logit(41))).abs() < 1e-4);
        for sense in 0..4 {
            for factor in [0.0, 0.4, 1.0] {
                let edits = debias_edits(&[90], sense, factor);
                let edited = model.with_edits(&edits, |model| Ok(leaning_of(model))).unwrap();
                let off = (edited.ratio - plain.scaled(sense, factor)).abs();
                assert!(off < 1e-4, "sense {sense}, factor {factor}: {off}");
            }
        }
        let error = gender_log_ratio(&model, &[7, 12], 90, PAIR).unwrap_err().to_string();
        assert!(error.contains("is not in its prompt"), "{error}");
    }

    #[test]
    fn bias_is_the_mean_of_the_larger_ratios() {
        let ratios = [2.0f64.ln(), 0.25f64.ln(), 0.0];
        assert!((bias(ratios) - 7.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn the_sense_that_carries_the_bias_is_found_with_its_factor() {
        // Sense 1 makes ln 9 of two prompts' ln 10 and of the third's; sense 0 pushes one of them back.
        let ln = f64::ln;
        let prompt = |ratio: f64, zero: f64, one: f64| GenderLogRatio { ratio, by_sense: vec![zero, one] };
        let training =
            [prompt(ln(10.0), -0.1, ln(9.0)), prompt(ln(10.0), 0.1, ln(9.0)), prompt(-ln(9.0), 0.0, -ln(9.0))];
        let found = find_factor(&training).unwrap();
        assert_eq!(found.sense, 1);
        let trial = found.trials[1];
        assert!((trial.removed - (10.0 / 9.0 * 2.0 + 1.0) / 3.0).abs() < 1e-9);
        assert!(trial.best_factor < 1e-6 && (trial.lowest - trial.removed).abs() < 1e-6);
        // At f the bias is 9^f (10/9 x 2 + 1) / 3, and |1 - f| outweighs its slope below the f where that is 1.
        let want = (1.0 / ((10.0 / 9.0 * 2.0 + 1.0) / 3.0 * ln(9.0))).ln() / ln(9.0);
        assert!(want < 0.0 && found.factor < 1e-6, "{}, {want}", found.factor);
        assert!(find_factor(&[]).is_err());
    }

    #[test]
    fn a_factor_between_is_found_where_the_leaning_would_turn() {
        // ln ratio 2 - 4 (1 - f): even at f = 0.5.
        let training = [GenderLogRatio { ratio: 2.0, by_sense: vec![4.0] }];
        let found = find_factor(&training).unwrap();
        assert!((found.factor - 0.5).abs() < 1e-4 && (found.trials[0].best_factor - 0.5).abs() < 1e-4);
        assert!((found.trials[0].removed - 2f64.exp()).abs() < 1e-9);
    }

    /// A bias put into one sense of two words is found there, and taken out again.
    #[test]
    fn a_planted_bias_is_found_in_its_sense() {
        let mut model = fixture("inv_scale");
        let wte = model.backpack().unwrap().body().wte().detach();
        let planted: Vec<f32> = Vec::try_from((wte.get(41) - wte.get(30)) * 3.0).unwrap();
        let plant = |token| SenseEdit { token, sense: SenseChoice::One(2), op: SenseOp::Add(planted.clone()) };
        let prompts = [([7, 90, 12], 90), ([3, 90, 8], 90), ([7, 17, 12], 17), ([3, 17, 8], 17)];
        let read = |model: &LanguageModel| -> Result<Vec<GenderLogRatio>> {
            prompts.iter().map(|(prompt, word)| gender_log_ratio(model, prompt, *word, PAIR)).collect()
        };
        let (before, after) = (read(&model).unwrap(), model.with_edits(&[plant(90), plant(17)], read).unwrap());
        let bias_of = |leanings: &[GenderLogRatio]| bias(leanings.iter().map(|leaning| leaning.ratio));
        assert!(bias_of(&after) > 10.0 * bias_of(&before));
        let found = find_factor(&after).unwrap();
        assert_eq!(found.sense, 2);
        assert!(bias(after.iter().map(|leaning| leaning.scaled(2, found.factor))) < 2.0 * bias_of(&before));
    }

    #[test]
    fn projected_embeddings_know_nothing_of_the_pair() {
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
        let others = |rows: &Tensor| rows.index_fill(0, &Tensor::from_slice(&[90i64, 5]), 0.0);
        assert_eq!(others(&before), others(&after));
        // An edited word away from the projected ones has the same senses; a projected one has others.
        let senses = |model: &LanguageModel, id| crate::sense_vectors(model, &[id]).unwrap();
        assert_eq!(senses(&model, 12), senses(&projected, 12));
        assert!(senses(&model, 90) != senses(&projected, 90));
        assert!(project_out(&model, &[90], [30, 30]).is_err());
    }
}
