//! Number formats.

/// A fraction in percent, without the sign: `percent(0.125, 1)` is `12.5`.
pub(crate) fn percent(fraction: f64, decimals: usize) -> String {
    format!("{:.decimals$}", 100.0 * fraction)
}
