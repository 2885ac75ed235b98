//! The step guard: skipping of non-finite steps, and detection of loss spikes.
//!
//! A step is bad if its loss or gradient norm is not finite, or if `skip_spikes` skips it.
//! Decisions are made on the device from values that are equal on all ranks. All ranks therefore
//! agree, and the host does not wait.

mod config;
mod state;

use anyhow::Result;
use tch::{Device, Kind, Tensor};
use torch_ext::{UpdateGuard, UpdateStats};

use crate::optim::loss_scaler::LossScaler;

pub use config::StepGuardConfig;
pub(crate) use state::StepGuardState;
use state::{DeviceGuardStats, NUM_STATS, read_count, scalar};

/// The values of a step that the host reads, in one synchronization with the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Mean loss of the batch before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Distance of the loss above the mean of the window, in standard deviations. NaN until the
    /// window is full.
    pub z_score: f64,
    /// Number of skipped steps so far.
    pub skipped: u64,
    /// Number of skipped steps since the last update.
    pub steps_since_update: u64,
    /// Number of consecutive bad steps.
    pub consecutive_bad_steps: u64,
    /// Number of loss spikes so far.
    pub spikes: u64,
    /// Number of skipped steps whose only cause was a too large loss scale.
    pub scale_search_skips: u64,
    /// Factor of the next loss. `None` without fp16.
    pub loss_scale: Option<f64>,
}

/// The step guard. Its counts are fp64 scalars on the device.
#[derive(Debug)]
pub struct StepGuard {
    config: StepGuardConfig,
    skipped: Tensor,
    steps_since_update: Tensor,
    consecutive_bad_steps: Tensor,
    stats: DeviceGuardStats,
    /// Tensors of `stats` after the last update.
    stats_at_update: [Tensor; NUM_STATS],
}

/// The decision about a step before its update.
#[derive(Debug)]
pub(crate) struct StepDecision {
    /// Whether the loss is finite, a bool scalar.
    finite: Tensor,
    /// Whether the loss is a spike, a bool scalar.
    spike: Tensor,
    /// Distance of the loss above the mean of the window in standard deviations, an fp64 scalar.
    pub(crate) z_score: Tensor,
    /// Whether the update is skipped, a bool scalar.
    skip: Tensor,
}

impl StepGuard {
    /// Creates the guard of a new run. `scaled` is true with fp16, whose loss is scaled.
    pub fn new(config: &StepGuardConfig, scaled: bool, device: Device) -> Result<Self> {
        Self::from_state(config, scaled, device, &StepGuardState::default())
    }

    /// Restores the guard from a checkpoint. `scaled` is true with fp16, whose loss is scaled.
    pub fn from_state(config: &StepGuardConfig, scaled: bool, device: Device, state: &StepGuardState) -> Result<Self> {
        let at_update = state.stats_before_streak.as_ref().unwrap_or(&state.stats);
        Ok(StepGuard {
            skipped: scalar(state.skipped, device)?,
            steps_since_update: scalar(state.steps_since_update, device)?,
            consecutive_bad_steps: scalar(state.consecutive_bad_steps, device)?,
            stats: DeviceGuardStats::new(&state.stats, config, scaled, device)?,
            stats_at_update: DeviceGuardStats::new(at_update, config, scaled, device)?.tensors()?,
            config: config.clone(),
        })
    }

    /// Returns the factor of the loss before the backward pass, an fp32 scalar. `None` without
    /// fp16.
    pub(crate) fn loss_scale(&self) -> Option<&Tensor> {
        self.stats.scaler.as_ref().map(LossScaler::scale)
    }

    /// Decides about a step before its update. `loss` is the loss of the whole batch, an fp32
    /// scalar.
    pub(crate) fn decide(&mut self, loss: &Tensor) -> Result<StepDecision> {
        let loss = loss.f_to_kind(Kind::Double)?;
        let finite = loss.f_isfinite()?;
        let (z_score, spike) = if self.config.spike_window > 0 {
            let losses = &self.stats.losses;
            // 1e-6: losses that differ only by rounding are not spikes.
            let deviation = losses.f_std(true)?.f_clamp_min(1e-6)?;
            let z_score = loss.f_sub(&losses.f_mean(Kind::Double)?)?.f_div(&deviation)?;
            let spike = z_score.f_gt(self.config.spike_z_score)?.f_logical_and(&finite)?;
            let shifted = Tensor::f_cat(&[losses.f_narrow(0, 1, losses.size()[0] - 1)?, loss.f_view([1])?], 0)?;
            self.stats.losses = shifted.f_where_self(&finite, losses)?;
            (z_score, spike)
        } else {
            (loss.f_full_like(f64::NAN)?, finite.f_zeros_like()?)
        };
        let mut skip = finite.f_logical_not()?;
        if self.config.skip_spikes {
            skip = skip.f_logical_or(&spike)?;
        }
        let max_bad_steps = self.config.max_consecutive_bad_steps;
        if max_bad_steps > 0 {
            // Once the allowed number of bad steps is reached, all steps are skipped until the host
            // reads it.
            skip = skip.f_logical_or(&self.consecutive_bad_steps.f_ge(max_bad_steps as f64)?)?;
        }
        Ok(StepDecision { finite, spike, z_score, skip })
    }

    /// Returns the inputs with which the optimizer skips or scales the update.
    pub(crate) fn update_guard<'a>(&'a self, decision: &'a StepDecision) -> UpdateGuard<'a> {
        UpdateGuard { loss_scale: self.loss_scale(), skip: Some(&decision.skip) }
    }

    /// Counts a step after its update.
    pub(crate) fn record(&mut self, decision: &StepDecision, update: &UpdateStats) -> Result<()> {
        let skipped = decision.skip.f_logical_or(&update.overflow)?;
        self.skipped = self.skipped.f_add(&skipped)?;
        self.stats.spikes = self.stats.spikes.f_add(&decision.spike)?;
        self.steps_since_update = self.steps_since_update.f_add_scalar(1)?.f_mul(&skipped)?;
        let streak = self.consecutive_bad_steps.f_add_scalar(1)?.f_mul(&skipped)?;
        self.consecutive_bad_steps = match &mut self.stats.scaler {
            None => streak,
            Some(scaler) => {
                // An overflow with a finite loss and a scale above 1 may only mean that the scale
                // is too large. Such a step does not count as bad.
                let searching = update.overflow.f_logical_and(&decision.finite)?.f_logical_and(&scaler.can_fall()?)?;
                scaler.update(&update.overflow)?;
                self.stats.scale_search_skips = self.stats.scale_search_skips.f_add(&searching)?;
                self.consecutive_bad_steps.f_where_self(&searching, &streak)?
            }
        };
        let now = self.stats.tensors()?;
        for (at_update, now) in self.stats_at_update.iter_mut().zip(now) {
            *at_update = at_update.f_where_self(&skipped, &now)?;
        }
        Ok(())
    }

    /// Waits for a step and reads its values. The arguments are the results of the training step.
    pub fn read_stats(&self, loss: &Tensor, grad_norm: &Tensor, z_score: &Tensor) -> Result<StepStats> {
        let scale = self.loss_scale().map_or_else(|| grad_norm.f_zeros_like(), Tensor::f_detach)?;
        let scalars = [
            loss,
            grad_norm,
            z_score,
            &self.skipped,
            &self.steps_since_update,
            &self.consecutive_bad_steps,
            &self.stats.spikes,
            &self.stats.scale_search_skips,
            &scale,
        ];
        let scalars: Vec<Tensor> = scalars.iter().map(|n| n.f_to_kind(Kind::Double)).collect::<Result<_, _>>()?;
        let mut values = [0f64; 9];
        Tensor::f_stack(&scalars, 0)?.f_to_device(Device::Cpu)?.f_copy_data(&mut values, 9)?;
        let [loss, grad_norm, z_score, counts @ .., scale] = values;
        let [skipped, steps_since_update, consecutive_bad_steps, spikes, scale_search_skips] =
            counts.map(|count| count as u64);
        Ok(StepStats {
            loss,
            grad_norm,
            z_score,
            skipped,
            steps_since_update,
            consecutive_bad_steps,
            spikes,
            scale_search_skips,
            loss_scale: self.stats.scaler.is_some().then_some(scale),
        })
    }

    /// Reads the state for a checkpoint.
    pub(crate) fn state(&self) -> Result<StepGuardState> {
        let steps_since_update = read_count(&self.steps_since_update)?;
        let before_streak = (steps_since_update > 0).then(|| self.stats.read(&self.stats_at_update));
        Ok(StepGuardState {
            skipped: read_count(&self.skipped)?,
            steps_since_update,
            consecutive_bad_steps: read_count(&self.consecutive_bad_steps)?,
            stats: self.stats.read(&self.stats.tensors()?)?,
            stats_before_streak: before_streak.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests;
