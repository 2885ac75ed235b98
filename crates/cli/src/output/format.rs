//! Number formats.

/// A fraction in percent, without the sign: `percent(0.125, 1)` is `12.5`.
pub(crate) fn percent(fraction: f64, decimals: usize) -> String {
    format!("{:.decimals$}", 100.0 * fraction)
}

/// A number of bytes in GB (10^9 bytes).
pub(crate) fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}
