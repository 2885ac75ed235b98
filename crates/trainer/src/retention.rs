//! Which checkpoints to keep: a function of their steps and scores.

/// A checkpoint as the policy sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Candidate {
    pub step: u64,
    /// Validation loss at its step, where there was a validation.
    pub val_loss: Option<f64>,
}

/// What to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// The newest so many; at least one.
    pub last: usize,
    /// The so many of lowest validation loss.
    pub best: usize,
    /// Every step that is a multiple of this, for good; 0 for none.
    pub every: u64,
}

/// Steps of the checkpoints to delete, ascending.
pub(crate) fn to_delete(checkpoints: &[Candidate], policy: Policy) -> Vec<u64> {
    let mut by_step = checkpoints.to_vec();
    by_step.sort_by_key(|c| std::cmp::Reverse(c.step));
    let mut kept: Vec<u64> = by_step.iter().take(policy.last.max(1)).map(|c| c.step).collect();
    let mut scored: Vec<(f64, u64)> =
        by_step.iter().filter_map(|c| c.val_loss.filter(|l| l.is_finite()).map(|loss| (loss, c.step))).collect();
    // The earlier of equals, so that a plateau does not shift what is kept.
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    kept.extend(scored.iter().take(policy.best).map(|(_, step)| step));
    let for_good = |step: u64| policy.every > 0 && step.is_multiple_of(policy.every);
    let mut delete: Vec<u64> = by_step.iter().map(|c| c.step).filter(|s| !kept.contains(s) && !for_good(*s)).collect();
    delete.sort_unstable();
    delete
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(losses: &[(u64, f64)]) -> Vec<Candidate> {
        losses.iter().map(|&(step, loss)| Candidate { step, val_loss: (loss > 0.0).then_some(loss) }).collect()
    }

    #[test]
    fn last_best_and_every_are_kept() {
        let all = candidates(&[(100, 5.0), (200, 3.0), (300, 4.0), (400, 2.0), (500, 6.0), (600, 0.0), (700, 0.0)]);
        let delete = |last, best, every| to_delete(&all, Policy { last, best, every });
        assert_eq!(delete(2, 2, 0), [100, 300, 500]);
        assert_eq!(delete(1, 0, 300), [100, 200, 400, 500]);
        assert_eq!(delete(10, 0, 0), [0; 0]);
        assert_eq!(delete(0, 0, 0), [100, 200, 300, 400, 500, 600]);
    }

    #[test]
    fn the_earlier_of_equals_and_no_nan_is_best() {
        let mut all = candidates(&[(1, 2.0), (2, 2.0), (3, 9.0), (4, 9.0)]);
        all[2].val_loss = Some(f64::NAN);
        assert_eq!(to_delete(&all, Policy { last: 1, best: 1, every: 0 }), [2, 3]);
    }
}
