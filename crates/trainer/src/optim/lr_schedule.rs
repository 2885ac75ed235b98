//! The learning-rate schedule.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The shape of the decay after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Linear decay to `min_learning_rate` at `max_steps`.
    Linear,
    /// Decay along half a cosine to `min_learning_rate` at `max_steps`.
    Cosine,
    /// No decay.
    Constant,
}

/// The `[schedule]` section. The defaults are those of the published run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Number of steps of the linear warm-up from 0, at least 1.
    pub warmup_steps: u64,
    /// Number of optimizer steps of the whole run.
    pub max_steps: u64,
    /// Shape of the decay after the warm-up.
    pub decay: Decay,
    /// Learning rate at `max_steps`.
    pub min_learning_rate: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        // The model card has 5,000 warm-up steps. The authors' base configuration has 1,000.
        ScheduleConfig { warmup_steps: 5_000, max_steps: 100_000, decay: Decay::Linear, min_learning_rate: 0.0 }
    }
}

impl ScheduleConfig {
    /// Checks the values. `peak` is the peak learning rate.
    ///
    /// # Errors
    /// Names the key whose value is invalid.
    pub fn validate(&self, peak: f64) -> Result<()> {
        let ScheduleConfig { warmup_steps, max_steps, min_learning_rate, .. } = *self;
        ensure!(max_steps > 0, "schedule.max_steps is 0: there is nothing to train");
        ensure!(
            warmup_steps > 0,
            "schedule.warmup_steps is 0: the first step would have the full learning rate; use at least 1"
        );
        ensure!(
            warmup_steps <= max_steps,
            "schedule.warmup_steps {warmup_steps} is more than schedule.max_steps {max_steps}: the peak learning rate would never be reached"
        );
        ensure!(
            (0.0..=peak).contains(&min_learning_rate),
            "schedule.min_learning_rate is {min_learning_rate}: it must be between 0 and optimizer.learning_rate {peak}"
        );
        Ok(())
    }

    /// Returns the learning rate of a step, counted from 0.
    ///
    /// Step 0 has rate 0. Step `max_steps` would have `min_learning_rate`, but the last step of a
    /// run is the one before.
    pub fn learning_rate(&self, peak: f64, step: u64) -> f64 {
        if step < self.warmup_steps {
            return peak * step as f64 / self.warmup_steps as f64;
        }
        let span = (self.max_steps - self.warmup_steps).max(1) as f64;
        let remaining = self.max_steps.saturating_sub(step) as f64 / span;
        let fraction = match self.decay {
            Decay::Linear => remaining,
            Decay::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * remaining).cos()),
            Decay::Constant => return peak,
        };
        self.min_learning_rate + (peak - self.min_learning_rate) * fraction
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> ScheduleConfig {
        ScheduleConfig { warmup_steps: 4, max_steps: 20, decay, min_learning_rate: 0.1 }
    }

    #[test]
    fn rate_rises_linearly_and_then_decays() {
        let linear = schedule(Decay::Linear);
        let at = |step| linear.learning_rate(1.0, step);
        assert_eq!((at(0), at(1), at(4)), (0.0, 0.25, 1.0));
        assert!((at(12) - 0.55).abs() < 1e-12);
        assert!((at(20) - 0.1).abs() < 1e-12);
        let cosine = schedule(Decay::Cosine);
        assert!((cosine.learning_rate(1.0, 4) - 1.0).abs() < 1e-12);
        assert!((cosine.learning_rate(1.0, 12) - 0.55).abs() < 1e-12);
        assert!(cosine.learning_rate(1.0, 8) > linear.learning_rate(1.0, 8));
        assert_eq!(schedule(Decay::Constant).learning_rate(1.0, 19), 1.0);
    }

    #[test]
    fn default_is_the_schedule_of_the_published_run() {
        let published = ScheduleConfig::default();
        assert_eq!(published.learning_rate(6e-4, 0), 0.0);
        assert_eq!(published.learning_rate(6e-4, 5_000), 6e-4);
        assert!((published.learning_rate(6e-4, 99_999) - 6e-4 / 95_000.0).abs() < 1e-15);
    }

    #[test]
    fn invalid_schedules_are_refused() {
        let with = |warmup_steps, max_steps, min_learning_rate| {
            ScheduleConfig { warmup_steps, max_steps, min_learning_rate, decay: Decay::Linear }
                .validate(1.0)
                .map_err(|e| e.to_string())
        };
        assert!(with(0, 10, 0.0).unwrap_err().contains("warmup_steps is 0"));
        assert!(with(11, 10, 0.0).unwrap_err().contains("warmup_steps 11 is more than schedule.max_steps 10"));
        assert!(with(1, 0, 0.0).unwrap_err().contains("max_steps is 0"));
        assert!(with(1, 10, -1.0).unwrap_err().contains("min_learning_rate is -1"));
        assert!(with(1, 10, 2.0).is_err());
        assert!(with(10, 10, 1.0).is_ok());
    }
}
