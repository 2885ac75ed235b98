//! Dates and durations as text: printing them for a person, and parsing what a person types.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::{Span, SpanRelativeTo, Timestamp};

/// Formats seconds since 1970 as `2026-11-25 20:30 UTC`.
pub(crate) fn format_utc(unix_seconds: f64) -> String {
    let time = Timestamp::from_second(unix_seconds.max(0.0) as i64).unwrap_or(Timestamp::MAX);
    time.strftime("%Y-%m-%d %H:%M UTC").to_string()
}

/// Formats a duration by its two largest units: `2d 03h`, `3h 20m`, `5m 12s` or `8s`.
///
/// A value that is not finite is `?`. jiff prints durations too, but with all their units.
pub(crate) fn human_duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".to_owned();
    }
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86_400, s / 3_600 % 24),
    }
}

/// Parses a duration in whole days, hours, minutes and seconds (`3h50m`, `90m`, `2d`, `45s`) or in
/// plain seconds (`5400`).
///
/// # Errors
/// Returns an error if the text is not a duration, or if the duration is shorter than a second.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let seconds = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        // jiff reads more: fractions, milliseconds, weeks, spaces, words and the format of ISO 8601.
        let is_known =
            text.bytes().all(|byte| byte.is_ascii_digit() || b"dhms".contains(&byte)) && !text.contains("ms");
        let span = if is_known { text.parse::<Span>().ok() } else { None };
        let duration = span.and_then(|span| span.to_duration(SpanRelativeTo::days_are_24_hours()).ok());
        duration.and_then(|duration| u64::try_from(duration.as_secs()).ok())
    };
    let seconds =
        seconds.with_context(|| format!("\"{text}\" is not a duration: write 3h50m, 90m, 2d, 45s or plain seconds"))?;
    ensure!(seconds > 0, "the duration \"{text}\" is shorter than a second: there is no time for a step");
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected texts are those of `date -u -d @N`.
    #[test]
    fn dates_equal_those_of_the_command_date() {
        for (seconds, text) in [
            (0.0, "1970-01-01 00:00 UTC"),
            (951_782_399.0, "2000-02-28 23:59 UTC"),
            (951_827_696.0, "2000-02-29 12:34 UTC"),
            (1_767_225_599.0, "2025-12-31 23:59 UTC"),
            (1_795_638_660.5, "2026-11-25 20:31 UTC"),
        ] {
            assert_eq!(format_utc(seconds), text);
        }
        assert!(format_utc(f64::MAX).starts_with("9999-12-30"));
    }

    #[test]
    fn durations_are_printed_with_two_units() {
        let cases = [(8.4, "8s"), (312.0, "5m 12s"), (12_000.0, "3h 20m"), (183_600.0, "2d 03h"), (f64::NAN, "?")];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }

    #[test]
    fn durations_are_parsed_in_units_and_in_plain_seconds() {
        for (text, expected) in [
            ("3h50m", 13_800),
            ("90m", 5_400),
            ("45s", 45),
            ("5400", 5_400),
            ("2d", 172_800),
            ("1d2h3m4s", 93_784),
            ("1h30s", 3_630),
        ] {
            assert_eq!(parse_duration(text).unwrap(), Duration::from_secs(expected), "{text}");
        }
        for text in [
            "",
            "h",
            "3h50",
            "50m3h",
            "1h1h",
            "-5",
            "-5m",
            "5m ago",
            "1mo",
            "1.5h",
            "3 h",
            "3h 20m",
            "1w",
            "5000ms",
            "1h500ms",
            "PT5M",
            "5 minutes",
            "soon",
            "99999999999999999999",
            "999999999999999999d",
        ] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("\"{text}\" is not a duration: write 3h50m")), "{error}");
        }
        for text in ["0", "0h0m"] {
            assert!(parse_duration(text).unwrap_err().to_string().contains("no time for a step"));
        }
    }
}
