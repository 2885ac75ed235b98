//! Choosing the next token from logits.

use anyhow::{Result, ensure};

use crate::seed::derive_seed;

/// How to choose the next token from the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The most probable token; of equally probable ones, the lowest id.
    Greedy,
    /// A reproducible draw from the distribution.
    Random {
        /// Divisor of the logits; positive.
        temperature: f64,
        /// Draw from only the k most probable ids.
        top_k: Option<usize>,
        /// Draw from only the most probable ids that together reach this probability.
        top_p: Option<f64>,
        /// Seed; equal seeds give equal texts.
        seed: u64,
    },
}

impl Sampling {
    /// Returns an error for settings that permit no draw.
    ///
    /// # Errors
    /// Names the invalid setting.
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

    /// Chooses the new token number `step`, from 0, given its logits. There is at least one logit,
    /// and none is NaN.
    pub(super) fn choose(self, logits: &[f32], step: u64) -> usize {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        match self {
            Sampling::Greedy => order.into_iter().fold(0, |best, id| if logits[id] > logits[best] { id } else { best }),
            Sampling::Random { temperature, top_k, top_p, seed } => {
                let descending = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
                // Sorting a whole vocabulary takes milliseconds, about as long as computing a
                // token.
                if let Some(k) = top_k.filter(|k| *k < order.len()) {
                    order.select_nth_unstable_by(k - 1, descending);
                    order.truncate(k);
                }
                order.sort_unstable_by(descending);
                let first = order[0];
                let weight = |id: usize| (f64::from(logits[id] - logits[first]) / temperature).exp();
                let total: f64 = order.iter().map(|&id| weight(id)).sum();
                // The smallest number of ids that reach top_p. The draw is from their sum.
                let (mut kept, mut sum) = (0, 0.0);
                for &id in &order {
                    (kept, sum) = (kept + 1, sum + weight(id));
                    if sum >= top_p.unwrap_or(f64::INFINITY) * total {
                        break;
                    }
                }
                // 53 random bits: a uniform double in [0, 1).
                let uniform = (derive_seed(seed, &[step]) >> 11) as f64 / (1u64 << 53) as f64;
                let mut remaining = uniform * sum;
                for &id in &order[..kept] {
                    remaining -= weight(id);
                    if remaining < 0.0 {
                        return id;
                    }
                }
                order[kept - 1]
            }
        }
    }
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
    fn greedy_chooses_the_lowest_of_equal_logits() {
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
    fn invalid_settings_are_rejected() {
        let with = |temperature, top_k, top_p| Sampling::Random { temperature, top_k, top_p, seed: 0 }.validate();
        assert!(with(0.0, None, None).is_err());
        assert!(with(1.0, Some(0), None).is_err());
        assert!(with(1.0, None, Some(0.0)).is_err());
        assert!(with(1.0, None, Some(1.5)).is_err());
        assert!(with(0.7, Some(5), Some(1.0)).is_ok());
    }
}
