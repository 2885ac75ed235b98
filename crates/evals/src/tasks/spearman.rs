//! Rank correlation.

/// Spearman's correlation of two series of one length, equal values having the mean of their ranks, as
/// `scipy.stats.spearmanr`. None where it is undefined: of fewer than two values, or of equal ones.
pub(crate) fn spearman(x: &[f64], y: &[f64]) -> Option<f64> {
    let (x, y) = (ranks(x), ranks(y));
    // Ranks of n values have the mean (n + 1) / 2 however they tie.
    let mean = (x.len() as f64 + 1.0) / 2.0;
    let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - mean) * (b - mean)).sum::<f64>();
    let correlation = product(&x, &y) / (product(&x, &x) * product(&y, &y)).sqrt();
    correlation.is_finite().then_some(correlation)
}

/// Ranks from 1.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let (mut ranks, mut below) = (vec![0.0; values.len()], 0);
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = below as f64 + (equal.len() as f64 + 1.0) / 2.0;
        equal.iter().for_each(|&place| ranks[place] = rank);
        below += equal.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_have_the_mean_of_their_ranks() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 2.0, 3.0]), [4.0, 1.0, 4.0, 2.0, 4.0]);
        assert_eq!(ranks(&[0.0, -0.0]), [1.5, 1.5]);
    }

    /// `scipy.stats.spearmanr([1, 2, 2, 4, 9], [3, 1, 4, 1, 5]).statistic` and so on, of scipy 1.17.1.
    #[test]
    fn it_is_scipy_s() {
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
