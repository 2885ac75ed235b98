//! Minimization of a convex function of one variable by golden-section search.

use std::ops::RangeInclusive;

/// The maximum length of the last interval.
const TOLERANCE: f64 = 1e-7;
/// (sqrt(5) - 1) / 2: the factor by which each step shortens the interval.
const GOLDEN_RATIO: f64 = 0.618_033_988_749_894_9;

/// Returns the point of `range` where a convex function is lowest. A minimum at an end of the
/// range is returned exactly; a constant function returns the upper end.
pub(super) fn minimize(function: impl Fn(f64) -> f64, range: RangeInclusive<f64>) -> f64 {
    let evaluate = |x: f64| (x, function(x));
    let (mut low, mut high) = (*range.start(), *range.end());
    let lower = |low: f64, high: f64| evaluate(high - GOLDEN_RATIO * (high - low));
    let upper = |low: f64, high: f64| evaluate(low + GOLDEN_RATIO * (high - low));
    let (mut left, mut right) = (lower(low, high), upper(low, high));
    while high - low > TOLERANCE {
        if left.1 < right.1 {
            (high, right) = (right.0, left);
            left = lower(low, high);
        } else {
            (low, left) = (left.0, right);
            right = upper(low, high);
        }
    }
    let candidates = [*range.start(), 0.5 * (low + high)].map(evaluate);
    candidates.into_iter().fold(evaluate(*range.end()), |best, point| if point.1 < best.1 { point } else { best }).0
}

#[cfg(test)]
mod tests {
    use super::minimize;

    #[test]
    fn known_minima_are_found() {
        for lowest in [0.0, 0.013, 0.3, 0.97, 1.0] {
            let found = minimize(|x| (x - lowest) * (x - lowest), 0.0..=1.0);
            assert!((found - lowest).abs() < 1e-6, "{found}, not {lowest}");
            // A function with a corner, like |1 - f|.
            let found = minimize(|x| (x - lowest).abs() + 0.1 * x, 0.0..=1.0);
            assert!((found - lowest).abs() < 1e-6, "{found}, not {lowest}");
        }
        // exp(3 x - 2) + exp(2 - 3 x) + 1 - x: its derivative 6 sinh(3 x - 2) - 1 is 0 at
        // x = 2/3 + asinh(1/6) / 3.
        let found = minimize(|x| (3.0 * x - 2.0).exp() + (2.0 - 3.0 * x).exp() + 1.0 - x, 0.0..=1.0);
        assert!((found - (2.0 / 3.0 + (1.0f64 / 6.0).asinh() / 3.0)).abs() < 1e-6, "{found}");
    }

    #[test]
    fn minima_at_the_ends_are_exact() {
        for (lowest, end) in [(-5.0, 0.0), (0.0, 0.0), (1.0, 1.0), (5.0, 1.0)] {
            assert_eq!(minimize(|x| (x - lowest) * (x - lowest), 0.0..=1.0), end);
        }
        assert_eq!(minimize(|_| 3.0, 0.0..=1.0), 1.0);
    }
}
