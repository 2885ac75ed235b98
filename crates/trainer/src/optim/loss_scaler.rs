//! The dynamic loss scale for fp16 (Micikevicius et al., ICLR 2018).
//!
//! A large factor of the loss prevents small gradients from becoming 0 in fp16. The constants are
//! the defaults of torch.amp.GradScaler.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// Number of steps without an overflow after which the scale grows.
const GROWTH_INTERVAL: i64 = 2_000;
/// Factor of the scale when it grows.
const GROWTH_FACTOR: f64 = 2.0;
/// Factor of the scale after an overflow.
const BACKOFF_FACTOR: f64 = 0.5;

/// The state of the loss scale in `state.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// Factor of the next loss.
    pub scale: f64,
    /// Number of steps without an overflow since the scale changed.
    pub good_steps: i64,
}

/// The loss scale on the device.
#[derive(Debug)]
pub(crate) struct LossScaler {
    /// Factor of the loss, an fp32 scalar.
    scale: Tensor,
    /// Number of steps without an overflow since the scale changed, an int32 scalar.
    good_steps: Tensor,
}

impl LossScaler {
    /// Copies a loss scale to the device.
    pub(crate) fn new(state: LossScale, device: Device) -> Result<Self> {
        Ok(LossScaler {
            scale: Tensor::f_full([] as [i64; 0], state.scale, (Kind::Float, device))?,
            good_steps: Tensor::f_full([] as [i64; 0], state.good_steps, (Kind::Int, device))?,
        })
    }

    /// Returns the factor of the loss, an fp32 scalar.
    pub(crate) fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// Returns whether the scale can have caused an overflow, a bool scalar. A scale of 1 or less
    /// cannot.
    pub(crate) fn can_fall(&self) -> Result<Tensor> {
        Ok(self.scale.f_gt(1.0)?)
    }

    /// Updates the scale after a step. `overflow` is a bool scalar.
    pub(crate) fn update(&mut self, overflow: &Tensor) -> Result<()> {
        let found = overflow.f_to_kind(Kind::Float)?;
        let _ = self.scale.f_internal_amp_update_scale_(
            &self.good_steps,
            &found,
            GROWTH_FACTOR,
            BACKOFF_FACTOR,
            GROWTH_INTERVAL,
        )?;
        Ok(())
    }

    /// Returns the scale and the number of steps without an overflow since it changed.
    pub(crate) fn tensors(&self) -> (&Tensor, &Tensor) {
        (&self.scale, &self.good_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_halves_after_an_overflow_and_doubles_after_2000_good_steps() {
        let mut scaler = LossScaler::new(LossScale { scale: 65_536.0, good_steps: 1_997 }, Device::Cpu).unwrap();
        let [good, bad] = [false, true].map(Tensor::from);
        let mut after = |overflow: &Tensor| {
            scaler.update(overflow).unwrap();
            let (scale, good_steps) = scaler.tensors();
            (scale.double_value(&[]), good_steps.int64_value(&[]))
        };
        assert_eq!(after(&good), (65_536.0, 1_998));
        assert_eq!(after(&good), (65_536.0, 1_999));
        assert_eq!(after(&good), (131_072.0, 0));
        assert_eq!(after(&good), (131_072.0, 1));
        assert_eq!(after(&bad), (65_536.0, 0));
        assert_eq!(after(&bad), (32_768.0, 0));
    }
}
