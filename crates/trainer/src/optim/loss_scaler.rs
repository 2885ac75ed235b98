//! The dynamic scale of an fp16 loss: as large as the gradients allow, so that small ones do not
//! vanish (Micikevicius et al., ICLR 2018). The numbers are torch.amp.GradScaler's.

use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

/// After so many steps without overflow the scale is doubled.
const GROWTH_INTERVAL: i64 = 2_000;
const GROWTH: f64 = 2.0;
/// After each overflow.
const BACKOFF: f64 = 0.5;

/// What a resumed run goes on with, in `state.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// What the next loss is multiplied by.
    pub scale: f64,
    /// Steps without overflow since it changed.
    pub good_steps: i64,
}

/// The scale on the device.
#[derive(Debug)]
pub(crate) struct LossScaler {
    /// fp32 scalar.
    scale: Tensor,
    /// int32 scalar.
    good_steps: Tensor,
}

impl LossScaler {
    pub(crate) fn new(at: LossScale, device: Device) -> Result<Self> {
        Ok(LossScaler {
            scale: Tensor::f_full([] as [i64; 0], at.scale, (Kind::Float, device))?,
            good_steps: Tensor::f_full([] as [i64; 0], at.good_steps, (Kind::Int, device))?,
        })
    }

    pub(crate) fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// Whether an overflow may be the scale's fault, bool: at 1 and below it is the gradient's.
    pub(crate) fn can_fall(&self) -> Result<Tensor> {
        Ok(self.scale.f_gt(1.0)?)
    }

    /// After a step whose gradients overflowed (bool scalar) or did not.
    pub(crate) fn update(&mut self, overflow: &Tensor) -> Result<()> {
        let found = overflow.f_to_kind(Kind::Float)?;
        let _ = self.scale.f_internal_amp_update_scale_(&self.good_steps, &found, GROWTH, BACKOFF, GROWTH_INTERVAL)?;
        Ok(())
    }

    /// The scale, and the steps without overflow since it changed.
    pub(crate) fn tensors(&self) -> (&Tensor, &Tensor) {
        (&self.scale, &self.good_steps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_at_an_overflow_and_doubles_after_2000_good_steps() {
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
