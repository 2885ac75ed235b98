//! The health of a run, computed from the lines of `metrics.jsonl`.

use serde::Serialize;

use crate::logging::metrics::MetricLine;
use crate::stats::{mean, median, variance};

/// Smallest number of lines for a trend of the loss or a comparison of speeds.
const MIN_LINES: usize = 20;
/// Largest number of lines in each of the two windows that are compared.
const MAX_WINDOW: usize = 200;
/// A speed below this fraction of the best window is slow.
const SLOW_FRACTION: f64 = 0.75;
/// Number of standard errors by which the means of two windows must differ to count as different.
const STANDARD_ERRORS: f64 = 2.0;

/// The trend of the training loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trend {
    /// There are too few lines.
    Unknown,
    /// The mean of the last window is lower than that of the previous one.
    Falling,
    /// The means of the two windows do not differ significantly.
    Flat,
    /// The mean of the last window is higher than that of the previous one.
    Rising,
}

/// Losses, bad steps and speed of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// Mean training loss of the last window, in nats.
    pub loss: Option<f64>,
    /// Mean training loss of the previous window, in nats.
    pub loss_before: Option<f64>,
    /// Trend from the previous window to the last one.
    pub trend: Trend,
    /// Number of steps that were skipped, or whose loss or gradient norm was not finite.
    pub bad_steps: u64,
    /// Number of loss spikes.
    pub spikes: u64,
    /// Median tokens per second of the last window.
    pub tokens_per_s: Option<f64>,
    /// Best median tokens per second of any window of the session. `None` if there are too few
    /// lines.
    pub best_tokens_per_s: Option<f64>,
    /// Median utilization of the last window, a fraction.
    pub mfu: Option<f64>,
}

impl Health {
    /// Computes the health from the lines of `metrics.jsonl`, in order. Speeds are those of the
    /// steps after `session_start`.
    pub(crate) fn from_metrics(lines: &[MetricLine], session_start: u64) -> Self {
        let losses: Vec<f64> = lines.iter().filter_map(|line| line.loss).collect();
        let window = (losses.len() / 4).clamp(1, MAX_WINDOW);
        let last = losses.rchunks(window).next();
        let before = losses.rchunks_exact(window).nth(1);
        let trend = match (last, before) {
            (Some(last), Some(before)) if losses.len() >= MIN_LINES => compare(before, last),
            _ => Trend::Unknown,
        };
        let session: Vec<&MetricLine> = lines.iter().filter(|line| line.step > session_start).collect();
        let rates: Vec<f64> = session.iter().filter_map(|line| line.tokens_per_s).collect();
        let width = (rates.len() / 4).clamp(1, MAX_WINDOW / 4);
        let recent = rates.rchunks(width).next().map(median);
        let best = rates
            .rchunks_exact(width)
            .map(median)
            .fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |best| best.max(rate))));
        // Both counts start with the run.
        let max = |count: &dyn Fn(&MetricLine) -> u64| lines.iter().map(count).max().unwrap_or(0);
        let mfus: Vec<f64> = session.iter().filter_map(|line| line.mfu).collect();
        Health {
            loss: last.map(mean),
            loss_before: before.map(mean),
            trend,
            bad_steps: max(&|line| line.skipped).max(lines.iter().filter(|line| line.bad).count() as u64),
            spikes: max(&|line| line.spikes),
            tokens_per_s: recent,
            best_tokens_per_s: best.filter(|_| rates.len() >= MIN_LINES),
            mfu: mfus.rchunks(width).next().map(median),
        }
    }

    /// Returns whether the run is much slower than before.
    pub(crate) fn is_slow(&self) -> bool {
        matches!((self.tokens_per_s, self.best_tokens_per_s), (Some(now), Some(best)) if now < SLOW_FRACTION * best)
    }
}

/// Compares the means of two windows of losses.
fn compare(before: &[f64], last: &[f64]) -> Trend {
    let error = (variance(before) / before.len() as f64 + variance(last) / last.len() as f64).sqrt();
    let change = mean(last) - mean(before);
    if change.abs() <= STANDARD_ERRORS * error {
        Trend::Flat
    } else if change < 0.0 {
        Trend::Falling
    } else {
        Trend::Rising
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns lines with losses around a curve, with deterministic noise.
    fn lines(n: u64, loss: impl Fn(f64) -> f64, rate: impl Fn(u64) -> f64) -> Vec<MetricLine> {
        let noise = |step: u64| f64::from((step * 7_919 % 101) as u32) / 101.0 - 0.5;
        let line = |step: u64| MetricLine {
            step,
            loss: Some(loss(step as f64 / n as f64) + 0.2 * noise(step)),
            tokens_per_s: Some(rate(step)),
            mfu: Some(0.4),
            ..MetricLine::default()
        };
        (1..=n).map(line).collect()
    }

    #[test]
    fn trend_is_distinguished_from_noise() {
        let trend = |n, loss: fn(f64) -> f64| Health::from_metrics(&lines(n, loss, |_| 1.0), 0).trend;
        assert_eq!(trend(400, |x| 9.0 - 4.0 * x), Trend::Falling);
        assert_eq!(trend(400, |_| 5.0), Trend::Flat);
        assert_eq!(trend(400, |x| 5.0 + 3.0 * x), Trend::Rising);
        assert_eq!(trend(10, |x| 9.0 - 4.0 * x), Trend::Unknown);
        assert_eq!(Health::from_metrics(&[], 0).trend, Trend::Unknown);
    }

    #[test]
    fn slowdown_is_detected_within_the_session() {
        let slowing = lines(100, |_| 5.0, |step| if step > 60 { 50.0 } else { 100.0 });
        let health = Health::from_metrics(&slowing, 0);
        assert_eq!((health.tokens_per_s, health.best_tokens_per_s), (Some(50.0), Some(100.0)));
        assert!(health.is_slow() && !Health::from_metrics(&slowing, 60).is_slow());
        // A single slow line is not enough.
        assert!(!Health::from_metrics(&lines(4, |_| 5.0, |step| if step == 4 { 50.0 } else { 100.0 }), 0).is_slow());
        assert_eq!(health.mfu, Some(0.4));
    }

    #[test]
    fn bad_steps_are_counted() {
        let mut some = lines(30, |_| 5.0, |_| 1.0);
        (some[3].bad, some[3].loss, some[9].bad) = (true, None, true);
        assert_eq!(Health::from_metrics(&some, 0).bad_steps, 2);
        // The counts of a line include steps without a line.
        (some[29].skipped, some[29].spikes) = (5, 1);
        let health = Health::from_metrics(&some, 0);
        assert_eq!((health.bad_steps, health.spikes), (5, 1));
    }
}
