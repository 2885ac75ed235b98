//! Text from a model, one token at a time.

pub(crate) mod incremental_decoder;

use anyhow::{Result, ensure};

use crate::generate::incremental_decoder::{IncrementalDecoder, SenseScale};
use crate::language_model::LanguageModel;
use crate::layers::ForwardOptions;
use crate::seed::derive_seed;

/// How the next token is chosen from the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The most probable one; the lowest id of equals.
    Greedy,
    /// Drawn from the distribution, reproducibly.
    Random {
        /// Logits are divided by this; positive.
        temperature: f64,
        /// Only the k most probable ids, where given.
        top_k: Option<usize>,
        /// Only the most probable ids that together reach this probability, where given.
        top_p: Option<f64>,
        /// The same seed draws the same text.
        seed: u64,
    },
}

impl Sampling {
    /// Refuses settings that leave nothing to draw from.
    ///
    /// # Errors
    /// Naming the setting.
    pub fn validate(self) -> Result<()> {
        if let Sampling::Random { temperature, top_k, top_p, .. } = self {
            ensure!(
                temperature > 0.0 && temperature.is_finite(),
                "the temperature is {temperature}: it must be positive (or ask for greedy)"
            );
            ensure!(top_k != Some(0), "top-k is 0: it must be at least 1");
            ensure!(
                top_p.is_none_or(|p| p > 0.0 && p <= 1.0),
                "top-p is {}: it must be above 0 and at most 1",
                top_p.unwrap_or_default()
            );
        }
        Ok(())
    }

    /// Chooses from the logits of the `step`-th new token: at least one, none of them NaN.
    fn choose(self, logits: &[f32], step: u64) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        match self {
            Sampling::Greedy => order.into_iter().fold(0, |best, id| if logits[id] > logits[best] { id } else { best }),
            Sampling::Random { temperature, top_k, top_p, seed } => {
                let falling = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
                // A vocabulary takes milliseconds to sort, and a token hardly more to compute.
                if let Some(k) = top_k.filter(|k| *k < order.len()) {
                    order.select_nth_unstable_by(k - 1, falling);
                    order.truncate(k);
                }
                order.sort_unstable_by(falling);
                let first = order[0];
                let weight = |id: usize| (f64::from(logits[id] - logits[first]) / temperature).exp();
                let total: f64 = order.iter().map(|&id| weight(id)).sum();
                // The fewest ids that reach top_p; the draw is over their sum.
                let (mut kept, mut sum) = (0, 0.0);
                for &id in &order {
                    (kept, sum) = (kept + 1, sum + weight(id));
                    if sum >= top_p.unwrap_or(f64::INFINITY) * total {
                        break;
                    }
                }
                // 53 random bits: a uniform double in [0, 1).
                let uniform = (derive_seed(seed, &[step]) >> 11) as f64 / (1u64 << 53) as f64;
                let mut left = uniform * sum;
                for &id in &order[..kept] {
                    left -= weight(id);
                    if left < 0.0 {
                        return id;
                    }
                }
                order[kept - 1]
            }
        }
    }
}

/// Appends `max_new_tokens` tokens to a prompt and gives the new ones. Past the context
/// the window slides: the last `n_positions` tokens, positions from 0. The end-of-text id
/// is a token like any other; padding ids are never produced.
///
/// # Errors
/// When the prompt is empty, longer than the context or outside the vocabulary, or the
/// sampling settings leave nothing to draw.
pub fn generate(model: &LanguageModel, prompt: &[i64], max_new_tokens: usize, sampling: Sampling) -> Result<Vec<i64>> {
    generate_scaled(model, prompt, max_new_tokens, sampling, None)
}

/// [`generate`] with the weights of senses multiplied before each new token, of a Backpack.
///
/// # Errors
/// As [`generate`].
pub fn generate_scaled(
    model: &LanguageModel,
    prompt: &[i64],
    max_new_tokens: usize,
    sampling: Sampling,
    mut scale: Option<&mut SenseScale<'_>>,
) -> Result<Vec<i64>> {
    sampling.validate()?;
    model.check_ids(prompt)?;
    let mut decoder = IncrementalDecoder::new(model, ForwardOptions::evaluation());
    let mut ids = prompt.to_vec();
    let mut new = 0;
    for step in 0..max_new_tokens {
        let logits = decoder.push_scaled(&ids[new..], scale.as_deref_mut()).narrow(0, 0, model.config().num_tokens());
        new = ids.len();
        let logits: Vec<f32> = Vec::try_from(logits)?;
        ensure!(
            logits.iter().all(|l| l.is_finite()),
            "the logits of new token {step} are not finite: an edit's factor is too large, or the weights are broken"
        );
        ids.push(sampling.choose(&logits, step as u64) as i64);
    }
    Ok(ids.split_off(prompt.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [0.0, 2.0, f32::NEG_INFINITY, 1.0, 2.0];

    fn random(top_k: Option<usize>, top_p: Option<f64>) -> Vec<usize> {
        let sampling = Sampling::Random { temperature: 1.0, top_k, top_p, seed: 5 };
        (0..4000).map(|step| sampling.choose(&LOGITS, step)).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        assert_eq!(Sampling::Greedy.choose(&LOGITS, 0), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        let draws = random(None, None);
        let total: f64 = [0.0f64, 2.0, 1.0, 2.0].iter().map(|l| l.exp()).sum();
        for (id, logit) in [(0, 0.0f64), (1, 2.0), (3, 1.0), (4, 2.0)] {
            let share = draws.iter().filter(|&&d| d == id).count() as f64 / draws.len() as f64;
            assert!((share - logit.exp() / total).abs() < 0.03, "{id}: {share}");
        }
        assert!(!draws.contains(&2));
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        assert!(random(Some(2), None).iter().all(|id| [1, 4].contains(id)));
        assert!(random(Some(1), None).iter().all(|&id| id == 1));
        // The two largest hold 0.79 of the probability: 0.5 needs both, 0.4 only one.
        assert!(random(None, Some(0.5)).iter().all(|id| [1, 4].contains(id)));
        assert!(random(None, Some(0.39)).iter().all(|&id| id == 1));
    }

    #[test]
    fn impossible_settings_are_refused() {
        let with = |temperature, top_k, top_p| Sampling::Random { temperature, top_k, top_p, seed: 0 }.validate();
        assert!(with(0.0, None, None).is_err());
        assert!(with(1.0, Some(0), None).is_err());
        assert!(with(1.0, None, Some(0.0)).is_err());
        assert!(with(1.0, None, Some(1.5)).is_err());
        assert!(with(0.7, Some(5), Some(1.0)).is_ok());
    }
}
