//! What a run's metrics say of it: a function of its lines.

use serde::Serialize;

use crate::logging::metrics::MetricLine;
use crate::stats::{mean, median, variance};

/// Fewer lines than this say nothing of where the loss or the rate goes.
const FEWEST: usize = 20;
/// Lines in each of the two windows that are compared, at most.
const WIDEST: usize = 200;
/// A rate below this share of the best window's is slow.
const SLOW: f64 = 0.75;
/// Two windows differ when their means do by so many standard errors.
const STANDARD_ERRORS: f64 = 2.0;

/// Where the training loss goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Trend {
    /// Too few lines to say.
    Unknown,
    /// The last window's mean is below that of the window before.
    Falling,
    /// The two differ by less than their noise.
    Flat,
    /// The last window's mean is above.
    Rising,
}

/// What the metrics say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// Mean training loss of the last lines, in nats.
    pub loss: Option<f64>,
    /// The same of as many lines before them.
    pub loss_before: Option<f64>,
    /// How the two compare.
    pub trend: Trend,
    /// Steps that were skipped, or had a loss or gradient norm that was no number.
    pub bad_steps: u64,
    /// Loss spikes.
    pub spikes: u64,
    /// Median tokens per second of the last lines.
    pub tokens_per_s: Option<f64>,
    /// The best median of as many lines, where there are enough to hold the last ones against.
    pub best_tokens_per_s: Option<f64>,
    /// Median utilisation of the last lines, a fraction.
    pub mfu: Option<f64>,
}

impl Health {
    /// Of the lines of `metrics.jsonl`, in order; the speeds are those of the steps after `session_start`.
    pub(crate) fn from_metrics(lines: &[MetricLine], session_start: u64) -> Self {
        let losses: Vec<f64> = lines.iter().filter_map(|line| line.loss).collect();
        let window = (losses.len() / 4).clamp(1, WIDEST);
        let last = losses.rchunks(window).next();
        let before = losses.rchunks_exact(window).nth(1);
        let trend = match (last, before) {
            (Some(last), Some(before)) if losses.len() >= FEWEST => compare(before, last),
            _ => Trend::Unknown,
        };
        let session: Vec<&MetricLine> = lines.iter().filter(|line| line.step > session_start).collect();
        let rates: Vec<f64> = session.iter().filter_map(|line| line.tokens_per_s).collect();
        let width = (rates.len() / 4).clamp(1, WIDEST / 4);
        let recent = rates.rchunks(width).next().map(median);
        let best = rates
            .rchunks_exact(width)
            .map(median)
            .fold(None, |best: Option<f64>, rate| Some(best.map_or(rate, |best| best.max(rate))));
        // Both count from the beginning of the run.
        let most = |count: &dyn Fn(&MetricLine) -> u64| lines.iter().map(count).max().unwrap_or(0);
        let uses: Vec<f64> = session.iter().filter_map(|line| line.mfu).collect();
        Health {
            loss: last.map(mean),
            loss_before: before.map(mean),
            trend,
            bad_steps: most(&|line| line.skipped).max(lines.iter().filter(|line| line.bad).count() as u64),
            spikes: most(&|line| line.spikes),
            tokens_per_s: recent,
            best_tokens_per_s: best.filter(|_| rates.len() >= FEWEST),
            mfu: uses.rchunks(width).next().map(median),
        }
    }

    /// Whether the run is much slower than it was.
    pub(crate) fn is_slow(&self) -> bool {
        matches!((self.tokens_per_s, self.best_tokens_per_s), (Some(now), Some(best)) if now < SLOW * best)
    }
}

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

    /// Losses around a line, with noise that is the same every time.
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
    fn the_trend_is_told_from_noise() {
        let trend = |n, loss: fn(f64) -> f64| Health::from_metrics(&lines(n, loss, |_| 1.0), 0).trend;
        assert_eq!(trend(400, |x| 9.0 - 4.0 * x), Trend::Falling);
        assert_eq!(trend(400, |_| 5.0), Trend::Flat);
        assert_eq!(trend(400, |x| 5.0 + 3.0 * x), Trend::Rising);
        assert_eq!(trend(10, |x| 9.0 - 4.0 * x), Trend::Unknown);
        assert_eq!(Health::from_metrics(&[], 0).trend, Trend::Unknown);
    }

    #[test]
    fn a_slow_machine_shows_in_this_sessions_lines_alone() {
        let slowing = lines(100, |_| 5.0, |step| if step > 60 { 50.0 } else { 100.0 });
        let health = Health::from_metrics(&slowing, 0);
        assert_eq!((health.tokens_per_s, health.best_tokens_per_s), (Some(50.0), Some(100.0)));
        assert!(health.is_slow() && !Health::from_metrics(&slowing, 60).is_slow());
        // One line says nothing.
        assert!(!Health::from_metrics(&lines(4, |_| 5.0, |step| if step == 4 { 50.0 } else { 100.0 }), 0).is_slow());
        assert_eq!(health.mfu, Some(0.4));
    }

    #[test]
    fn bad_steps_are_counted() {
        let mut some = lines(30, |_| 5.0, |_| 1.0);
        (some[3].bad, some[3].loss, some[9].bad) = (true, None, true);
        assert_eq!(Health::from_metrics(&some, 0).bad_steps, 2);
        // Steps that no line stands for are counted by the run.
        (some[29].skipped, some[29].spikes) = (5, 1);
        let health = Health::from_metrics(&some, 0);
        assert_eq!((health.bad_steps, health.spikes), (5, 1));
    }

    #[test]
    fn the_median_of_any_number() {
        assert_eq!(median(&[3.0]), 3.0);
        assert_eq!(median(&[5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 8.0]), 3.0);
    }
}
