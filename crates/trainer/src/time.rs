//! Points in time as a person reads them, in UTC.

/// Seconds since 1970 as `2026-11-25 20:30 UTC`.
pub(crate) fn utc(unix_seconds: f64) -> String {
    let minutes = (unix_seconds / 60.0).floor().max(0.0) as u64;
    let (days, minute) = (minutes / 1_440, minutes % 1_440);
    let (year, month, day) = civil(days);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minute / 60, minute % 60)
}

/// Year, month and day of a day counted from 1970-01-01 (H. Hinnant, "chrono-compatible
/// low-level date algorithms", `civil_from_days`): years that begin in March, in eras of 400.
fn civil(days: u64) -> (u64, u64, u64) {
    let from_era = days + 719_468;
    let (era, day_of_era) = (from_era / 146_097, from_era % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// A duration as a person says it: `2d 3h`, `3h 20m`, `5m 12s`, `8s`.
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

#[cfg(test)]
mod tests {
    use super::{human_duration, utc};

    /// `date -u -d @N`.
    #[test]
    fn dates_are_those_of_date() {
        for (seconds, text) in [
            (0.0, "1970-01-01 00:00 UTC"),
            (951_782_399.0, "2000-02-28 23:59 UTC"),
            (951_827_696.0, "2000-02-29 12:34 UTC"),
            (1_767_225_599.0, "2025-12-31 23:59 UTC"),
            (1_795_638_660.5, "2026-11-25 20:31 UTC"),
        ] {
            assert_eq!(utc(seconds), text);
        }
    }

    #[test]
    fn durations_read_well() {
        let cases = [(8.4, "8s"), (312.0, "5m 12s"), (12_000.0, "3h 20m"), (183_600.0, "2d 03h"), (f64::NAN, "?")];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
