//! The numbers at the ticks of an axis.

/// Approximate number of ticks of an axis.
pub(crate) const NUM_TICKS: usize = 6;

/// Returns the approximate distance between two ticks.
pub(crate) fn tick_distance(min: f64, max: f64) -> f64 {
    (max - min) / NUM_TICKS as f64
}

/// Formats a number with enough digits to distinguish ticks that are `distance` apart.
pub(crate) fn format_tick(value: f64, distance: f64) -> String {
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

/// Formats a rounded number with a comma between groups of three digits, as in `52,000`.
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
    fn ticks_have_enough_digits_to_differ() {
        assert_eq!((format_tick(0.0, 1.0), format_tick(2.5, 0.5)), ("0".to_owned(), "2.5".to_owned()));
        assert_eq!((format_tick(3.25, 0.05), format_tick(6e-4, 1e-4)), ("3.25".to_owned(), "6.0e-4".to_owned()));
        assert_eq!(
            (format_tick(52_000.0, 1e4), format_tick(1_000_000.0, 1e6)),
            ("52,000".to_owned(), "1,000,000".to_owned())
        );
        assert_eq!(with_thousands(-1_234.0), "-1,234");
    }
}
