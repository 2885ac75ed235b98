//! Spearman's rank correlation.

/// Returns Spearman's rank correlation of two series of equal length, like `scipy.stats.spearmanr`:
/// equal values get the mean of their ranks. `None` if the correlation is undefined, because there
/// are fewer than two values or all values of a series are equal.
pub(crate) fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    let (x, y) = (ranks(x), ranks(y));
    // The mean of n ranks is (n + 1) / 2, with or without ties.
    let mean = (x.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let correlation = product(&x, &y) / (product(&x, &x) * product(&y, &y)).sqrt();
    correlation.is_finite().then_some(correlation)
}

/// Returns the rank of each value, from 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut ranks, mut below) = (vec![0.0; values.len()], 0);
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = below as f64 + (equal.len() as f64 + 1.0) / 2.0;
        equal.iter().for_each(|&index| ranks[index] = rank);
        below += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_get_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0]), [1.5, 1.5]);
    }

    /// The expected values are those of `scipy.stats.spearmanr(x, y).statistic`, scipy 1.17.1.
    #[test]
    fn correlations_equal_those_of_scipy() {
        for (x, y, want) in [
            (&[1.0, 2.0, 2.0, 4.0, 9.0][..], &[3.0, 1.0, 4.0, 1.0, 5.0][..], 0.2894736842105264),
            (&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0], 1.0),
            (&[10.0, 9.0, 2.5, 2.5, 2.5, 1.0], &[0.1, -0.2, 0.3, 0.3, 0.5, 0.7], -0.8932596002688613),
        ] {
            let got = spearman(x, y).unwrap();
            assert!((got - want).abs() < 1e-12, "{x:?} {y:?}: {got}, expected {want}");
        }
        assert_eq!(spearman(&[1.0, 2.0], &[3.0, 3.0]), None);
        assert_eq!(spearman(&[1.0], &[3.0]), None);
        assert_eq!(spearman(&[], &[]), None);
    }
}
