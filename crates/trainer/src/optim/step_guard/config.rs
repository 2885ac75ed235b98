//! The `[step_guard]` section of the configuration.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

/// The `[step_guard]` section: handling of non-finite steps and loss spikes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepGuardConfig {
    /// Number of consecutive bad steps after which the run ends with an error. 0: never.
    pub max_consecutive_bad_steps: u64,
    /// Number of recent finite losses that each new loss is compared with. 0: no spike detection.
    pub spike_window: usize,
    /// Number of standard deviations above the mean of the window at which a loss is a spike.
    pub spike_z_score: f64,
    /// Skips the update of a step with a loss spike.
    pub skip_spikes: bool,
    /// Initial factor of the loss with fp16.
    pub initial_loss_scale: f64,
}

impl Default for StepGuardConfig {
    fn default() -> Self {
        StepGuardConfig {
            max_consecutive_bad_steps: 10,
            spike_window: 100,
            // At 0.5 million tokens per step, losses vary by a few thousandths around their trend.
            // Chance alone does not cause six deviations.
            spike_z_score: 6.0,
            skip_spikes: false,
            initial_loss_scale: 65_536.0, // the default of torch.amp.GradScaler
        }
    }
}

impl StepGuardConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key whose value is invalid.
    pub(crate) fn validate(&self) -> Result<()> {
        for (key, value) in [("spike_z_score", self.spike_z_score), ("initial_loss_scale", self.initial_loss_scale)] {
            ensure!(value > 0.0 && value.is_finite(), "step_guard.{key} is {value}: it must be above 0");
        }
        ensure!(
            self.spike_window != 1,
            "step_guard.spike_window is 1: one loss has no deviation; use at least 2, or 0 for no spike detection"
        );
        ensure!(
            !self.skip_spikes || self.spike_window > 0,
            "step_guard.skip_spikes is true, but step_guard.spike_window 0 turns spike detection off: set a window"
        );
        Ok(())
    }
}
