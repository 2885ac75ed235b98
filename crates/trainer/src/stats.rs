//! Statistics of short lists of numbers.

/// Returns the arithmetic mean; NaN for no values.
pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Returns the unbiased sample variance; 0 for one value.
pub(crate) fn variance(values: &[f64]) -> f64 {
    let mean = mean(values);
    values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / values.len().max(2).saturating_sub(1) as f64
}

/// Returns the middle value, or the mean of the middle two of an even number of values.
///
/// # Panics
/// `values` is empty.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

/// Returns whether a count is 0 (a predicate for `serde(skip_serializing_if)`).
pub(crate) fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mean_variance_and_median_of_known_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!((mean(&values), median(&values), median(&values[..3])), (2.5, 2.5, 3.0));
        assert!((variance(&values) - 5.0 / 3.0).abs() < 1e-12);
        assert_eq!(variance(&[7.0]), 0.0);
        assert_eq!((median(&[3.0]), median(&[5.0, 1.0, 3.0]), median(&[4.0, 1.0, 2.0, 8.0])), (3.0, 3.0, 3.0));
    }
}
