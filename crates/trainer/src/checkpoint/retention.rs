//! The choice of the checkpoints to keep, from their steps and validation losses.

/// The properties of a checkpoint that the policy uses.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RetentionCandidate {
    pub step: u64,
    /// Validation loss at the checkpoint's step, if there was a validation.
    pub val_loss: Option<f64>,
    /// Whether the checkpoint was saved because time had passed and not because its step was due.
    pub by_time: bool,
}

/// The checkpoints to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RetentionPolicy {
    /// Number of the newest checkpoints whose step was due, at least 1.
    pub last: usize,
    /// Number of the checkpoints with the lowest validation loss.
    pub best: usize,
    /// Checkpoints at multiples of this step are never deleted. 0: none.
    pub every: u64,
}

/// Returns the steps of the checkpoints to delete, ascending. The newest checkpoint is never deleted.
/// A checkpoint that was saved by time is deleted once there is a newer one, unless it is among the
/// best or at a multiple of `policy.every`.
pub(crate) fn to_delete(checkpoints: &[RetentionCandidate], policy: RetentionPolicy) -> Vec<u64> {
    let mut by_step = checkpoints.to_vec();
    by_step.sort_by_key(|c| std::cmp::Reverse(c.step));
    let mut kept: Vec<u64> = by_step.iter().take(1).map(|c| c.step).collect();
    kept.extend(by_step.iter().filter(|c| !c.by_time).take(policy.last.max(1)).map(|c| c.step));
    let mut scored: Vec<(f64, u64)> =
        by_step.iter().filter_map(|c| c.val_loss.filter(|l| l.is_finite()).map(|loss| (loss, c.step))).collect();
    // Of equal losses the earlier one is better, so that a plateau does not change what is kept.
    scored.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    kept.extend(scored.iter().take(policy.best).map(|(_, step)| step));
    let is_permanent = |step: u64| policy.every > 0 && step.is_multiple_of(policy.every);
    let mut delete: Vec<u64> =
        by_step.iter().map(|c| c.step).filter(|s| !kept.contains(s) && !is_permanent(*s)).collect();
    delete.sort_unstable();
    delete
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidates(losses: &[(u64, f64)]) -> Vec<RetentionCandidate> {
        let candidate =
            |&(step, loss)| RetentionCandidate { step, val_loss: (loss > 0.0).then_some(loss), by_time: false };
        losses.iter().map(candidate).collect()
    }

    #[test]
    fn newest_best_and_permanent_checkpoints_are_kept() {
        let all = candidates(&[(100, 5.0), (200, 3.0), (300, 4.0), (400, 2.0), (500, 6.0), (600, 0.0), (700, 0.0)]);
        let delete = |last, best, every| to_delete(&all, RetentionPolicy { last, best, every });
        assert_eq!(delete(2, 2, 0), [100, 300, 500]);
        assert_eq!(delete(1, 0, 300), [100, 200, 400, 500]);
        assert_eq!(delete(10, 0, 0), [0; 0]);
        assert_eq!(delete(0, 0, 0), [100, 200, 300, 400, 500, 600]);
    }

    #[test]
    fn the_best_is_the_earlier_of_equals_and_never_nan() {
        let mut all = candidates(&[(1, 2.0), (2, 2.0), (3, 9.0), (4, 9.0)]);
        all[2].val_loss = Some(f64::NAN);
        assert_eq!(to_delete(&all, RetentionPolicy { last: 1, best: 1, every: 0 }), [2, 3]);
    }

    #[test]
    fn checkpoints_saved_by_time_are_deleted_with_the_next_and_do_not_count_as_last() {
        let policy = RetentionPolicy { last: 2, best: 0, every: 0 };
        let mut all = candidates(&[(100, 0.0), (200, 0.0), (237, 0.0)]);
        all[2].by_time = true;
        assert_eq!(to_delete(&all, policy), [0; 0]);
        all.push(RetentionCandidate { step: 274, ..all[2] });
        assert_eq!(to_delete(&all, policy), [237]);
        all.push(RetentionCandidate { step: 300, val_loss: None, by_time: false });
        assert_eq!(to_delete(&all, policy), [100, 237, 274]);
    }

    fn candidate() -> impl Strategy<Value = RetentionCandidate> {
        let loss = prop_oneof![Just(None), (0u8..5).prop_map(|n| Some(f64::from(n))), Just(Some(f64::NAN))];
        (0u64..60, loss, any::<bool>()).prop_map(|(step, val_loss, by_time)| RetentionCandidate {
            step,
            val_loss,
            by_time,
        })
    }

    proptest! {
        #[test]
        fn retention_invariants_hold(
            mut all in prop::collection::vec(candidate(), 0..20),
            last in 0usize..4, best in 0usize..4, every in 0u64..7,
        ) {
            all.sort_by_key(|c| c.step);
            all.dedup_by_key(|c| c.step);
            let policy = RetentionPolicy { last, best, every };
            let deleted = to_delete(&all, policy);
            let kept: Vec<RetentionCandidate> = all.iter().filter(|c| !deleted.contains(&c.step)).copied().collect();
            // Only existing checkpoints are deleted, and never the newest.
            prop_assert_eq!(kept.len() + deleted.len(), all.len());
            prop_assert_eq!(kept.last().map(|c| c.step), all.last().map(|c| c.step));
            // No permanent one, none of the newest due ones, and none better than the kept ones.
            prop_assert!(every == 0 || deleted.iter().all(|step| step % every != 0));
            let due: Vec<u64> = all.iter().filter(|c| !c.by_time).map(|c| c.step).collect();
            prop_assert!(due.iter().rev().take(last.max(1)).all(|step| !deleted.contains(step)));
            let finite = |list: &[RetentionCandidate]| -> Vec<f64> {
                list.iter().filter_map(|c| c.val_loss.filter(|l| l.is_finite())).collect()
            };
            let lowest = finite(&all).into_iter().fold(f64::INFINITY, f64::min);
            prop_assert!(best == 0 || finite(&all).is_empty() || finite(&kept).contains(&lowest));
            // At most one kept by time alone, and applying the policy again deletes nothing.
            let by_time_alone = kept.iter().filter(|c| c.by_time && c.val_loss.is_none() && (every == 0 || c.step % every != 0));
            prop_assert!(by_time_alone.count() <= 1);
            prop_assert!(to_delete(&kept, policy).is_empty());
        }
    }
}
