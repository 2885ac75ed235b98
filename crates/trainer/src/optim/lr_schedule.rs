//! The learning rate as a function of the step.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// How the rate falls after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// A straight line to the final rate, reached at `max_steps`.
    Linear,
    /// Half a cosine to the final rate.
    Cosine,
    /// No decay.
    Constant,
}

/// The `[schedule]` section. Defaults: the published run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScheduleConfig {
    /// Steps of linear warm-up from 0; at least 1.
    pub warmup_steps: u64,
    /// Optimiser steps of the whole run.
    pub max_steps: u64,
    /// What follows the warm-up.
    pub decay: Decay,
    /// The rate at `max_steps`.
    pub min_learning_rate: f64,
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        // The model card's 5,000; the authors' base config has 1,000.
        ScheduleConfig { warmup_steps: 5_000, max_steps: 100_000, decay: Decay::Linear, min_learning_rate: 0.0 }
    }
}

impl ScheduleConfig {
    /// Refuses schedules that cannot be meant.
    ///
    /// # Errors
    /// Naming the key.
    pub fn validate(&self, peak: f64) -> Result<()> {
        let ScheduleConfig { warmup_steps, max_steps, min_learning_rate, .. } = *self;
        ensure!(max_steps > 0, "schedule.max_steps is 0: there is nothing to train");
        ensure!(
            warmup_steps > 0,
            "schedule.warmup_steps is 0: the first step would take the full rate; use at least 1"
        );
        ensure!(
            warmup_steps <= max_steps,
            "schedule.warmup_steps {warmup_steps} is more than schedule.max_steps {max_steps}: the peak rate would never be reached"
        );
        ensure!(
            (0.0..=peak).contains(&min_learning_rate),
            "schedule.min_learning_rate is {min_learning_rate}: it must be between 0 and optimizer.learning_rate {peak}"
        );
        Ok(())
    }

    /// The rate of `step`, counted from 0: the first step's is 0, and the final rate
    /// belongs to step `max_steps`, which is never run.
    pub fn learning_rate(&self, peak: f64, step: u64) -> f64 {
        if step < self.warmup_steps {
            return peak * step as f64 / self.warmup_steps as f64;
        }
        let span = (self.max_steps - self.warmup_steps).max(1) as f64;
        let left = self.max_steps.saturating_sub(step) as f64 / span;
        let share = match self.decay {
            Decay::Linear => left,
            Decay::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * left).cos()),
            Decay::Constant => return peak,
        };
        self.min_learning_rate + (peak - self.min_learning_rate) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(decay: Decay) -> ScheduleConfig {
        ScheduleConfig { warmup_steps: 4, max_steps: 20, decay, min_learning_rate: 0.1 }
    }

    #[test]
    fn warm_up_then_decay() {
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
    fn the_published_run() {
        let published = ScheduleConfig::default();
        assert_eq!(published.learning_rate(6e-4, 0), 0.0);
        assert_eq!(published.learning_rate(6e-4, 5_000), 6e-4);
        assert!((published.learning_rate(6e-4, 99_999) - 6e-4 / 95_000.0).abs() < 1e-15);
    }

    #[test]
    fn impossible_schedules_are_refused() {
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
