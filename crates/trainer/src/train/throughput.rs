//! The speed of training and the time that remains.

use std::time::Instant;

/// Measures the tokens per second of training, without validations and checkpoints.
pub(crate) struct ThroughputTimer {
    /// Restarted after each log line, validation and checkpoint.
    interval_start: Instant,
    interval_tokens: u64,
    session_start: Instant,
    first_step: u64,
}

impl ThroughputTimer {
    /// Starts the timer of a session whose first step follows `first_step` completed ones.
    pub(crate) fn start(first_step: u64) -> Self {
        let now = Instant::now();
        ThroughputTimer { interval_start: now, interval_tokens: 0, session_start: now, first_step }
    }

    /// Starts a new interval.
    pub(crate) fn restart_interval(&mut self) {
        (self.interval_start, self.interval_tokens) = (Instant::now(), 0);
    }

    /// Counts the tokens of a step.
    pub(crate) fn add_tokens(&mut self, tokens: u64) {
        self.interval_tokens += tokens;
    }

    /// Returns the tokens per second of the interval.
    pub(crate) fn tokens_per_s(&self) -> f64 {
        self.interval_tokens as f64 / self.interval_start.elapsed().as_secs_f64()
    }

    /// Returns the seconds since the start of the session.
    pub(crate) fn session_seconds(&self) -> f64 {
        self.session_start.elapsed().as_secs_f64()
    }

    /// Returns the mean seconds per step of the session, validations and checkpoints included, after
    /// `step` completed steps of the run.
    pub(crate) fn seconds_per_step(&self, step: u64) -> f64 {
        self.session_seconds() / (step - self.first_step) as f64
    }

    /// Returns whether a step is the first one of the session, given the number of steps before it.
    pub(crate) fn is_first_step(&self, steps_before: u64) -> bool {
        steps_before == self.first_step
    }
}
