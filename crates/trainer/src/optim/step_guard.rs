//! Steps that are out of the ordinary: a loss or gradient that is no finite number, and a loss far
//! above those before it. What is decided is decided on the device, so that the host waits for
//! nothing, and from numbers that are the same on all ranks.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use torch_ext::{UpdateGuard, UpdateStats};

use crate::optim::loss_scaler::{LossScale, LossScaler};
use crate::stats::is_zero;

/// The `[step_guard]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StepGuardConfig {
    /// Bad steps in a row after which the run ends; 0 for never.
    pub max_consecutive_bad_steps: u64,
    /// Finite losses that a step's loss is held against; 0 for no look at spikes.
    pub spike_window: usize,
    /// Standard deviations above their mean from which a loss is a spike.
    pub spike_z_score: f64,
    /// Skip the update of such a step.
    pub skip_spikes: bool,
    /// What the loss is multiplied by at first, with fp16.
    pub initial_loss_scale: f64,
}

impl Default for StepGuardConfig {
    fn default() -> Self {
        StepGuardConfig {
            max_consecutive_bad_steps: 10,
            spike_window: 100,
            // A loss of 0.5M tokens scatters by some thousandths around its trend: six deviations
            // do not come by chance.
            spike_z_score: 6.0,
            skip_spikes: false,
            initial_loss_scale: 65_536.0, // torch.amp.GradScaler's
        }
    }
}

impl StepGuardConfig {
    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// Naming the key.
    pub(crate) fn validate(&self) -> Result<()> {
        for (key, value) in [("spike_z_score", self.spike_z_score), ("initial_loss_scale", self.initial_loss_scale)] {
            ensure!(value > 0.0 && value.is_finite(), "step_guard.{key} is {value}: it must be above 0");
        }
        ensure!(
            self.spike_window != 1,
            "step_guard.spike_window is 1: one loss has no deviation; use at least 2, or 0 for no look at spikes"
        );
        ensure!(
            !self.skip_spikes || self.spike_window > 0,
            "step_guard.skip_spikes is true, but step_guard.spike_window 0 finds none: give it a window"
        );
        Ok(())
    }
}

/// What a resumed run goes on with, in `state.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepGuardState {
    /// Steps skipped so far.
    pub skipped: u64,
    /// Of those, the newest without an update between them.
    #[serde(rename = "since_update")]
    pub steps_since_update: u64,
    /// Bad steps in a row so far.
    #[serde(rename = "bad_in_row")]
    pub consecutive_bad_steps: u64,
    /// What steps are judged by.
    #[serde(flatten)]
    pub stats: GuardStats,
    /// Within a row of skipped steps: what it was before them.
    #[serde(rename = "before_row", skip_serializing_if = "Option::is_none")]
    pub stats_before_streak: Option<GuardStats>,
}

/// What steps are judged by, which those that are skipped change too.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardStats {
    /// Spikes so far.
    pub spikes: u64,
    /// The newest finite losses, the oldest first.
    pub losses: Vec<f64>,
    /// With fp16.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<LossScale>,
    /// With fp16: of the skipped steps, those that only scale_search_skips for the scale.
    #[serde(skip_serializing_if = "is_zero")]
    pub scale_search_skips: u64,
}

impl StepGuardState {
    /// As it was before the row of skipped steps that the run is in.
    pub(crate) fn before_streak(self) -> Self {
        StepGuardState {
            skipped: self.skipped - self.steps_since_update,
            stats: self.stats_before_streak.unwrap_or(self.stats),
            ..StepGuardState::default()
        }
    }
}

/// What the host sees of a step, by one wait for the device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepStats {
    /// Mean loss of the batch before the update.
    pub loss: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// How many standard deviations the loss is above the mean of those before; NaN before there
    /// are enough.
    pub z_score: f64,
    /// Steps skipped so far.
    pub skipped: u64,
    /// Of those, the newest without an update between them.
    pub steps_since_update: u64,
    /// Bad steps in a row.
    pub consecutive_bad_steps: u64,
    /// Spikes so far.
    pub spikes: u64,
    /// Of the skipped steps, those that only scale_search_skips for the loss scale.
    pub scale_search_skips: u64,
    /// What the next loss is multiplied by.
    pub loss_scale: Option<f64>,
}

/// Counts and what steps are judged by, as fp64 tensors on the device.
#[derive(Debug)]
pub struct StepGuard {
    config: StepGuardConfig,
    skipped: Tensor,
    steps_since_update: Tensor,
    consecutive_bad_steps: Tensor,
    stats: DeviceGuardStats,
    /// [`DeviceGuardStats::tensors`] after the newest update.
    at_update: [Tensor; NUM_STATS],
}

/// A [`GuardStats`] on the device.
#[derive(Debug)]
struct DeviceGuardStats {
    spikes: Tensor,
    /// `[spike_window]`; NaN where there was no loss yet.
    losses: Tensor,
    scaler: Option<LossScaler>,
    scale_search_skips: Tensor,
}

/// Tensors that a [`GuardStats`] is read from.
const NUM_STATS: usize = 5;

fn number(value: u64, device: Device) -> Result<Tensor> {
    Ok(Tensor::f_from_slice(&[value as f64])?.f_to_device(device)?.f_view([] as [i64; 0])?)
}

impl DeviceGuardStats {
    fn new(stats: &GuardStats, config: &StepGuardConfig, scaled: bool, device: Device) -> Result<Self> {
        let known = &stats.losses[stats.losses.len().saturating_sub(config.spike_window)..];
        let mut losses = vec![f64::NAN; config.spike_window - known.len()];
        // Losses are fp32: what reading decimals may be off by is rounded away.
        losses.extend(known.iter().map(|loss| f64::from(*loss as f32)));
        let fresh = LossScale { scale: config.initial_loss_scale, good_steps: 0 };
        let scale = stats.loss_scale.unwrap_or(fresh);
        Ok(DeviceGuardStats {
            spikes: number(stats.spikes, device)?,
            losses: Tensor::f_from_slice(&losses)?.f_to_device(device)?,
            scaler: scaled.then(|| LossScaler::new(scale, device)).transpose()?,
            scale_search_skips: number(stats.scale_search_skips, device)?,
        })
    }

    fn tensors(&self) -> Result<[Tensor; NUM_STATS]> {
        let none = self.spikes.f_zeros_like()?;
        let (scale, good_steps) = self.scaler.as_ref().map_or((&none, &none), LossScaler::tensors);
        Ok([&self.losses, &self.spikes, &self.scale_search_skips, scale, good_steps].map(Tensor::shallow_clone))
    }
}

/// What is known of a step before its update.
#[derive(Debug)]
pub struct StepDecision {
    finite: Tensor,
    spike: Tensor,
    /// In standard deviations, fp64.
    pub(crate) z_score: Tensor,
    /// Whether there is to be no update, bool.
    skip: Tensor,
}

impl StepGuard {
    /// At the start of a run; `scaled` for fp16, whose loss is scaled.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn new(config: &StepGuardConfig, scaled: bool, device: Device) -> Result<Self> {
        Self::from_state(config, scaled, device, &StepGuardState::default())
    }

    /// As it was.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn from_state(config: &StepGuardConfig, scaled: bool, device: Device, state: &StepGuardState) -> Result<Self> {
        let before = state.stats_before_streak.as_ref().unwrap_or(&state.stats);
        Ok(StepGuard {
            skipped: number(state.skipped, device)?,
            steps_since_update: number(state.steps_since_update, device)?,
            consecutive_bad_steps: number(state.consecutive_bad_steps, device)?,
            stats: DeviceGuardStats::new(&state.stats, config, scaled, device)?,
            at_update: DeviceGuardStats::new(before, config, scaled, device)?.tensors()?,
            config: config.clone(),
        })
    }

    /// What the loss is to be multiplied by before the backward pass.
    pub(crate) fn loss_scale(&self) -> Option<&Tensor> {
        self.stats.scaler.as_ref().map(LossScaler::scale)
    }

    /// Before the update, from the loss of the whole batch: an fp32 scalar.
    pub(crate) fn decide(&mut self, loss: &Tensor) -> Result<StepDecision> {
        let loss = loss.f_to_kind(Kind::Double)?;
        let finite = loss.f_isfinite()?;
        let (z_score, spike) = if self.config.spike_window > 0 {
            // 1e-6: losses that are all the same have no spikes, only rounding.
            let deviation = self.stats.losses.f_std(true)?.f_clamp_min(1e-6)?;
            let z_score = loss.f_sub(&self.stats.losses.f_mean(Kind::Double)?)?.f_div(&deviation)?;
            let spike = z_score.f_gt(self.config.spike_z_score)?.f_logical_and(&finite)?;
            let newer = Tensor::f_cat(
                &[self.stats.losses.f_narrow(0, 1, self.stats.losses.size()[0] - 1)?, loss.f_view([1])?],
                0,
            )?;
            self.stats.losses = newer.f_where_self(&finite, &self.stats.losses)?;
            (z_score, spike)
        } else {
            (loss.f_full_like(f64::NAN)?, finite.f_zeros_like()?)
        };
        let mut skip = finite.f_logical_not()?;
        if self.config.skip_spikes {
            skip = skip.f_logical_or(&spike)?;
        }
        if self.config.max_consecutive_bad_steps > 0 {
            // Where the host looks seldom, nothing is trained between the last of the row and its look.
            skip =
                skip.f_logical_or(&self.consecutive_bad_steps.f_ge(self.config.max_consecutive_bad_steps as f64)?)?;
        }
        Ok(StepDecision { finite, spike, z_score, skip })
    }

    /// For the update.
    pub(crate) fn update_guard<'a>(&'a self, decision: &'a StepDecision) -> UpdateGuard<'a> {
        UpdateGuard { loss_scale: self.loss_scale(), veto: Some(&decision.skip) }
    }

    /// After the update.
    pub(crate) fn record(&mut self, decision: &StepDecision, update: &UpdateStats) -> Result<()> {
        let skipped = decision.skip.f_logical_or(&update.overflow)?;
        self.skipped = self.skipped.f_add(&skipped)?;
        self.stats.spikes = self.stats.spikes.f_add(&decision.spike)?;
        self.steps_since_update = self.steps_since_update.f_add_scalar(1)?.f_mul(&skipped)?;
        let row = self.consecutive_bad_steps.f_add_scalar(1)?.f_mul(&skipped)?;
        self.consecutive_bad_steps = match &mut self.stats.scaler {
            None => row,
            Some(scaler) => {
                // A gradient that overflows at a large scale says nothing but that the scale is too
                // large: the search for it counts as no bad step.
                let searching = update.overflow.f_logical_and(&decision.finite)?.f_logical_and(&scaler.can_fall()?)?;
                scaler.update(&update.overflow)?;
                self.stats.scale_search_skips = self.stats.scale_search_skips.f_add(&searching)?;
                self.consecutive_bad_steps.f_where_self(&searching, &row)?
            }
        };
        let now = self.stats.tensors()?;
        for (at_update, now) in self.at_update.iter_mut().zip(now) {
            *at_update = at_update.f_where_self(&skipped, &now)?;
        }
        Ok(())
    }

    /// Waits for a step and tells of it.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn read_stats(&self, loss: &Tensor, grad_norm: &Tensor, z_score: &Tensor) -> Result<StepStats> {
        let scale = self.loss_scale().map_or_else(|| grad_norm.f_zeros_like(), Tensor::f_detach)?;
        let numbers = [
            loss,
            grad_norm,
            z_score,
            &self.skipped,
            &self.steps_since_update,
            &self.consecutive_bad_steps,
            &self.stats.spikes,
            &scale,
            &self.stats.scale_search_skips,
        ];
        let numbers: Vec<Tensor> = numbers.iter().map(|n| n.f_to_kind(Kind::Double)).collect::<Result<_, _>>()?;
        let mut values = [0f64; 9];
        Tensor::f_stack(&numbers, 0)?.f_to_device(Device::Cpu)?.f_copy_data(&mut values, 9)?;
        let [
            loss,
            grad_norm,
            z_score,
            skipped,
            steps_since_update,
            consecutive_bad_steps,
            spikes,
            scale,
            scale_search_skips,
        ] = values;
        Ok(StepStats {
            loss,
            grad_norm,
            z_score,
            skipped: skipped as u64,
            steps_since_update: steps_since_update as u64,
            consecutive_bad_steps: consecutive_bad_steps as u64,
            spikes: spikes as u64,
            scale_search_skips: scale_search_skips as u64,
            loss_scale: self.stats.scaler.is_some().then_some(scale),
        })
    }

    /// For a checkpoint.
    pub(crate) fn state(&self) -> Result<StepGuardState> {
        let steps_since_update = count(&self.steps_since_update)?;
        let stats_before_streak = (steps_since_update > 0).then(|| self.read(&self.at_update)).transpose()?;
        Ok(StepGuardState {
            skipped: count(&self.skipped)?,
            steps_since_update,
            consecutive_bad_steps: count(&self.consecutive_bad_steps)?,
            stats: self.read(&self.stats.tensors()?)?,
            stats_before_streak,
        })
    }

    fn read(
        &self,
        [losses, spikes, scale_search_skips, scale, good_steps]: &[Tensor; NUM_STATS],
    ) -> Result<GuardStats> {
        let mut known = vec![0f64; losses.numel()];
        losses.f_to_device(Device::Cpu)?.f_copy_data(&mut known, losses.numel())?;
        known.retain(|loss| loss.is_finite());
        let scale = || -> Result<LossScale> {
            Ok(LossScale { scale: scale.f_double_value(&[])?, good_steps: good_steps.f_int64_value(&[])? })
        };
        let loss_scale = self.stats.scaler.as_ref().map(|_| scale()).transpose()?;
        Ok(GuardStats {
            spikes: count(spikes)?,
            losses: known,
            loss_scale,
            scale_search_skips: count(scale_search_skips)?,
        })
    }
}

fn count(tensor: &Tensor) -> Result<u64> {
    Ok(tensor.f_double_value(&[])? as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(spike_window: usize, skip_spikes: bool) -> StepGuardConfig {
        StepGuardConfig { max_consecutive_bad_steps: 3, spike_window, skip_spikes, ..StepGuardConfig::default() }
    }

    /// One step with this loss and a gradient that overflows or not; whether it was skipped.
    fn step(step_guard: &mut StepGuard, loss: f32, overflow: bool) -> bool {
        let decision = step_guard.decide(&Tensor::from(loss)).unwrap();
        let before = step_guard.state().unwrap().skipped;
        let update = UpdateStats { grad_norm: Tensor::from(1f32), overflow: Tensor::from(overflow) };
        step_guard.record(&decision, &update).unwrap();
        step_guard.state().unwrap().skipped > before
    }

    #[test]
    fn bad_steps_are_counted_and_a_row_of_them_stays_one() {
        let mut step_guard = StepGuard::new(&config(0, false), false, Device::Cpu).unwrap();
        assert!(!step(&mut step_guard, 3.0, false));
        assert!(step(&mut step_guard, f32::NAN, true) && step(&mut step_guard, 3.0, true));
        assert_eq!(step_guard.state().unwrap().consecutive_bad_steps, 2);
        assert!(!step(&mut step_guard, 3.0, false));
        for loss in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            assert!(step(&mut step_guard, loss, false));
        }
        // The third was one too many: no update until the host has looked.
        assert!(step(&mut step_guard, 3.0, false));
        let state = step_guard.state().unwrap();
        assert_eq!((state.skipped, state.consecutive_bad_steps, state.steps_since_update), (6, 4, 4));
    }

    #[test]
    fn a_spike_is_far_above_a_full_window_of_finite_losses() {
        for skip in [false, true] {
            let mut step_guard = StepGuard::new(&config(4, skip), false, Device::Cpu).unwrap();
            // Too few losses to tell.
            assert!(!step(&mut step_guard, 4.0, false) && !step(&mut step_guard, 9.0, false));
            for loss in [2.0, 2.1, f32::NAN, 1.9, 2.0, 2.1] {
                step(&mut step_guard, loss, false);
            }
            assert_eq!(step_guard.state().unwrap().stats.spikes, 0);
            assert_eq!(step(&mut step_guard, 4.0, false), skip);
            assert_eq!(step_guard.state().unwrap().stats.spikes, 1);
            // It is among the window now: a level that stays up is none for long.
            assert!(!step(&mut step_guard, 4.0, false));
            assert_eq!(step_guard.state().unwrap().stats.losses, [2.0f32, 2.1, 4.0, 4.0].map(f64::from));
        }
    }

    #[test]
    fn a_search_for_the_loss_scale_is_skipped_but_no_bad_step() {
        let tiny = StepGuardConfig { initial_loss_scale: 4.0, ..config(0, false) };
        let mut step_guard = StepGuard::new(&tiny, true, Device::Cpu).unwrap();
        let scale = |step_guard: &StepGuard| step_guard.state().unwrap().stats.loss_scale.unwrap().scale;
        assert!(step(&mut step_guard, 3.0, true) && step(&mut step_guard, 3.0, true));
        assert_eq!((scale(&step_guard), step_guard.state().unwrap().consecutive_bad_steps), (1.0, 0));
        assert!(step(&mut step_guard, 3.0, true));
        let state = step_guard.state().unwrap();
        assert_eq!(
            (state.consecutive_bad_steps, state.steps_since_update, state.skipped, state.stats.scale_search_skips),
            (1, 3, 3, 2)
        );
    }

    #[test]
    fn before_a_row_of_skipped_steps_all_is_as_it_was() {
        let config = config(3, true);
        let mut whole = StepGuard::new(&config, true, Device::Cpu).unwrap();
        assert_eq!(whole.state().unwrap().stats_before_streak, None);
        for loss in [2.0, 2.1, 1.9] {
            step(&mut whole, loss, false);
        }
        let before = whole.state().unwrap();
        // A spike, an overflow and a NaN, the middle one after a resume from within the row.
        assert!(step(&mut whole, 9.0, false));
        let text = serde_json::to_string(&whole.state().unwrap()).unwrap();
        let read = serde_json::from_str(&text).unwrap();
        let mut resumed = StepGuard::from_state(&config, true, Device::Cpu, &read).unwrap();
        for step_guard in [&mut whole, &mut resumed] {
            assert!(step(step_guard, 2.0, true) && step(step_guard, f32::NAN, false));
            let after = step_guard.state().unwrap();
            assert_eq!(
                (after.steps_since_update, after.stats.spikes, after.stats.loss_scale.unwrap().scale),
                (3, 1, 32_768.0)
            );
            assert_eq!(after.before_streak(), before);
            assert!(!step(step_guard, 2.0, false));
            assert_eq!(step_guard.state().unwrap().stats_before_streak, None);
        }
    }

    #[test]
    fn what_is_saved_is_what_goes_on() {
        let mut whole = StepGuard::new(&config(5, true), true, Device::Cpu).unwrap();
        for i in 0..7 {
            step(&mut whole, 2.0 + 0.1 * i as f32, i == 3);
        }
        let text = serde_json::to_string(&whole.state().unwrap()).unwrap();
        // In the file the stats's values stand beside the counts.
        assert!(text.contains("\"spikes\":") && !text.contains("stats"), "{text}");
        let read: StepGuardState = serde_json::from_str(&text).unwrap();
        let mut resumed = StepGuard::from_state(&config(5, true), true, Device::Cpu, &read).unwrap();
        for loss in [2.5, 9.0, f32::NAN, 2.4] {
            assert_eq!(step(&mut whole, loss, false), step(&mut resumed, loss, false));
            assert_eq!(whole.state().unwrap(), resumed.state().unwrap());
        }
        // Another window takes what it has room for.
        let narrow = StepGuard::from_state(&config(2, true), true, Device::Cpu, &read).unwrap();
        assert_eq!(narrow.state().unwrap().stats.losses, read.stats.losses[3..]);
    }
}
