//! The numbers at an axis.

/// Ticks of an axis, about.
pub(crate) const TICKS: usize = 6;

/// About how far ticks are from one another.
pub(crate) fn tick_distance(low: f64, high: f64) -> f64 {
    (high - low) / TICKS as f64
}

/// As many digits as tell two ticks apart.
pub(crate) fn tick(value: f64, distance: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if distance < 1e-3 {
        format!("{value:.1e}")
    } else if distance >= 1.0 {
        with_thousands(value)
    } else {
        let digits = (-distance.log10()).ceil() as usize;
        format!("{value:.digits$}")
    }
}

/// `52,000`.
pub(crate) fn with_thousands(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap_or_default()).collect();
    format!("{}{}", if value < 0.0 { "-" } else { "" }, groups.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_have_the_digits_that_tell_them_apart() {
        assert_eq!((tick(0.0, 1.0), tick(2.5, 0.5)), ("0".to_owned(), "2.5".to_owned()));
        assert_eq!((tick(3.25, 0.05), tick(6e-4, 1e-4)), ("3.25".to_owned(), "6.0e-4".to_owned()));
        assert_eq!((tick(52_000.0, 1e4), tick(1_000_000.0, 1e6)), ("52,000".to_owned(), "1,000,000".to_owned()));
        assert_eq!(with_thousands(-1_234.0), "-1,234");
    }
}
