//! The state of the step guard, in a checkpoint and on the device.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::optim::loss_scaler::{LossScale, LossScaler};
use crate::optim::step_guard::config::StepGuardConfig;
use crate::stats::is_zero;

/// The state of the step guard in `state.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepGuardState {
    /// Number of skipped steps so far.
    pub skipped: u64,
    /// Number of skipped steps since the last update.
    #[serde(rename = "since_update")]
    pub steps_since_update: u64,
    /// Number of consecutive bad steps so far.
    #[serde(rename = "bad_in_row")]
    pub consecutive_bad_steps: u64,
    /// Statistics after the last step.
    #[serde(flatten)]
    pub stats: GuardStats,
    /// Statistics before the current streak of skipped steps. `None` if the last step was not
    /// skipped.
    #[serde(rename = "before_row", skip_serializing_if = "Option::is_none")]
    pub stats_before_streak: Option<GuardStats>,
}

impl StepGuardState {
    /// Returns the state before the current streak of skipped steps.
    pub(crate) fn before_streak(self) -> Self {
        StepGuardState {
            skipped: self.skipped - self.steps_since_update,
            stats: self.stats_before_streak.unwrap_or(self.stats),
            ..StepGuardState::default()
        }
    }
}

/// The statistics that decisions are based on. Skipped steps change them too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardStats {
    /// Number of loss spikes so far.
    pub spikes: u64,
    /// Recent finite losses, the oldest first.
    pub losses: Vec<f64>,
    /// Loss scale. `None` without fp16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// Number of skipped steps whose only cause was a too large loss scale. 0 without fp16.
    #[serde(rename = "searched", skip_serializing_if = "is_zero")]
    pub scale_search_skips: u64,
}

/// Number of tensors that hold a [`GuardStats`].
pub(super) const NUM_STATS: usize = 5;

/// A [`GuardStats`] on the device.
#[derive(Debug)]
pub(super) struct DeviceGuardStats {
    /// Number of loss spikes, an fp64 scalar.
    pub(super) spikes: Tensor,
    /// Recent finite losses, fp64 `[spike_window]`. Missing ones are NaN.
    pub(super) losses: Tensor,
    pub(super) scaler: Option<LossScaler>,
    /// [`GuardStats::scale_search_skips`], an fp64 scalar.
    pub(super) scale_search_skips: Tensor,
}

impl DeviceGuardStats {
    /// Copies statistics to the device. `scaled` is true with fp16.
    pub(super) fn new(stats: &GuardStats, config: &StepGuardConfig, scaled: bool, device: Device) -> Result<Self> {
        let known = &stats.losses[stats.losses.len().saturating_sub(config.spike_window)..];
        let mut losses = vec![f64::NAN; config.spike_window - known.len()];
        // Losses are fp32. The cast removes errors of parsing decimal numbers.
        losses.extend(known.iter().map(|loss| f64::from(*loss as f32)));
        let initial = LossScale { scale: config.initial_loss_scale, good_steps: 0 };
        let scale = stats.loss_scale.unwrap_or(initial);
        Ok(DeviceGuardStats {
            spikes: scalar(stats.spikes, device)?,
            losses: Tensor::f_from_slice(&losses)?.f_to_device(device)?,
            scaler: scaled.then(|| LossScaler::new(scale, device)).transpose()?,
            scale_search_skips: scalar(stats.scale_search_skips, device)?,
        })
    }

    /// Returns the tensors that hold the statistics: losses, spikes, skips, loss scale, and steps
    /// since it changed.
    pub(super) fn tensors(&self) -> Result<[Tensor; NUM_STATS]> {
        let none = self.spikes.f_zeros_like()?;
        let (scale, good_steps) = self.scaler.as_ref().map_or((&none, &none), LossScaler::tensors);
        Ok([&self.losses, &self.spikes, &self.scale_search_skips, scale, good_steps].map(Tensor::shallow_clone))
    }

    /// Reads statistics from the result of an earlier call of [`DeviceGuardStats::tensors`].
    pub(super) fn read(&self, tensors: &[Tensor; NUM_STATS]) -> Result<GuardStats> {
        let [losses, spikes, scale_search_skips, scale, good_steps] = tensors;
        let mut known = vec![0f64; losses.numel()];
        losses.f_to_device(Device::Cpu)?.f_copy_data(&mut known, losses.numel())?;
        known.retain(|loss| loss.is_finite());
        let read_scale = || -> Result<LossScale> {
            Ok(LossScale { scale: scale.f_double_value(&[])?, good_steps: good_steps.f_int64_value(&[])? })
        };
        Ok(GuardStats {
            spikes: read_count(spikes)?,
            losses: known,
            loss_scale: self.scaler.as_ref().map(|_| read_scale()).transpose()?,
            scale_search_skips: read_count(scale_search_skips)?,
        })
    }
}

/// Creates an fp64 scalar on the device.
pub(super) fn scalar(value: u64, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[value as f64])?.f_to_device(device)?.f_view([] as [i64; 0])?)
}

/// Reads a count from an fp64 scalar.
pub(super) fn read_count(tensor: &Tensor) -> Result<u64> {
    Ok(tensor.f_double_value(&[])? as u64)
}
