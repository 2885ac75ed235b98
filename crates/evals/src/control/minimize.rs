//! Nelder and Mead's simplex in one dimension: two points. By hand, because a crate of optimisers would bring a
//! framework for these thirty lines.

use std::ops::RangeInclusive;

/// Beside the start, as a share of it: scipy's.
const FIRST_STEP: f64 = 0.05;
/// The points are this near each other at the end.
const TOLERANCE: f64 = 1e-7;
/// Steps: each one that does not halve the distance finds a better point.
const MOST_STEPS: usize = 200;

/// Where `function`, which falls to one valley in `range`, is lowest, from `start`, which is not 0, in it.
pub(super) fn minimise(function: impl Fn(f64) -> f64, start: f64, range: RangeInclusive<f64>) -> f64 {
    let within = |x: f64| x.clamp(*range.start(), *range.end());
    let at = |x: f64| (x, function(x));
    // A start at the upper end has its second point below it.
    let beside = start * (1.0 + FIRST_STEP);
    let beside = if range.contains(&beside) { beside } else { start * (1.0 - FIRST_STEP) };
    let (mut best, mut worst) = (at(start), at(within(beside)));
    for _ in 0..MOST_STEPS {
        if worst.1 < best.1 {
            std::mem::swap(&mut best, &mut worst);
        }
        if (worst.0 - best.0).abs() < TOLERANCE {
            break;
        }
        let reach = best.0 - worst.0;
        let reflected = at(within(best.0 + reach));
        worst = if reflected.1 < best.1 {
            let expanded = at(within(best.0 + 2.0 * reach));
            if expanded.1 < reflected.1 { expanded } else { reflected }
        } else if reflected.1 < worst.1 && reflected.0 != best.0 {
            let outside = at(within(best.0 + 0.5 * reach));
            if outside.1 <= reflected.1 { outside } else { reflected }
        } else {
            // With two points, to contract towards the best and to shrink are the same.
            at(best.0 - 0.5 * reach)
        };
    }
    best.0
}

#[cfg(test)]
mod tests {
    use super::minimise;

    #[test]
    fn known_functions_are_minimised() {
        for lowest in [0.0, 0.013, 0.3, 0.97, 1.0] {
            let found = minimise(|x| (x - lowest) * (x - lowest), 1.0, 0.0..=1.0);
            assert!((found - lowest).abs() < 1e-4, "{found}, not {lowest}");
            // With a corner, as |1 - f| has one.
            let found = minimise(|x| (x - lowest).abs() + 0.1 * x, 1.0, 0.0..=1.0);
            assert!((found - lowest).abs() < 1e-4, "{found}, not {lowest}");
        }
        // exp(3 x - 2) + exp(2 - 3 x) + 1 - x: its derivative 6 sinh(3 x - 2) is 1 at x = 2/3 + asinh(1/6) / 3.
        let found = minimise(|x| (3.0 * x - 2.0).exp() + (2.0 - 3.0 * x).exp() + 1.0 - x, 1.0, 0.0..=1.0);
        assert!((found - (2.0 / 3.0 + (1.0f64 / 6.0).asinh() / 3.0)).abs() < 1e-4, "{found}");
    }

    #[test]
    fn what_lies_outside_is_found_at_the_end() {
        assert!(minimise(|x| (x + 5.0) * (x + 5.0), 1.0, 0.0..=1.0) < 1e-6);
        assert!((minimise(|x| (x - 5.0) * (x - 5.0), 1.0, 0.0..=1.0) - 1.0).abs() < 1e-6);
    }
}
