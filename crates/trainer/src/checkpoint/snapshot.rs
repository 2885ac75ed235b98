//! A copy of what a checkpoint holds, taken between two steps: training goes on while it is
//! written.

use anyhow::{Context, Result};
use model::{LanguageModel, ModelConfig};
use tch::{Device, Kind, Tensor};

use crate::optim::adamw::Optimizer;

/// Weights and moments in host memory, 12 bytes a parameter: the room is made once, and each copy
/// overwrites the one before.
#[derive(Debug)]
pub(crate) struct HostSnapshot {
    pub(crate) config: ModelConfig,
    /// In the model's order.
    weights: Vec<(String, Tensor)>,
    /// In the optimiser's order.
    moments: Vec<(String, Tensor)>,
}

impl HostSnapshot {
    /// Room for a copy of these, written to once: no page is faulted in while a step waits.
    ///
    /// # Errors
    /// When memory is short.
    pub(crate) fn room_for(model: &LanguageModel, optimizer: &Optimizer) -> Result<Self> {
        let room = |name: &str, tensor: &Tensor| -> Result<(String, Tensor)> {
            let made = Tensor::f_zeros(tensor.size(), (Kind::Float, Device::Cpu));
            Ok((name.to_owned(), made.context("the copy of weights and moments that a checkpoint is written from")?))
        };
        Ok(HostSnapshot {
            config: model.config().clone(),
            weights: model.parameters().iter().map(|(name, tensor)| room(name, tensor)).collect::<Result<_>>()?,
            moments: optimizer.state().iter().map(|(name, tensor)| room(name, tensor)).collect::<Result<_>>()?,
        })
    }

    /// What the copies take.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |(_, tensor): &(String, Tensor)| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        self.weights.iter().chain(&self.moments).map(bytes).sum()
    }

    /// Copies weights and moments as they are, by all threads of the process; from a GPU this
    /// waits for the step.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn take(&mut self, model: &LanguageModel, optimizer: &Optimizer) -> Result<()> {
        self.config = model.config().clone();
        for ((_, copy), (_, tensor)) in self.weights.iter_mut().zip(model.parameters().iter()) {
            copy.f_copy_(&tensor.detach())?;
        }
        for ((_, copy), (_, tensor)) in self.moments.iter_mut().zip(optimizer.state()) {
            copy.f_copy_(&tensor)?;
        }
        Ok(())
    }

    /// Names and values.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.weights.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Names, as in a checkpoint, and values.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.moments.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}
