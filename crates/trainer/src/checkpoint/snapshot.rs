//! Host copies of weights and optimizer moments, from which a checkpoint is written while training
//! continues.

use anyhow::{Context, Result};
use model::{LanguageModel, ModelConfig};
use tch::{Device, Kind, Tensor};

use crate::optim::adamw::Optimizer;

/// A copy of weights and moments in host memory: 12 bytes per parameter. It is allocated once, and
/// each copy overwrites the previous one.
#[derive(Debug)]
pub(crate) struct HostSnapshot {
    /// The configuration of the model.
    pub(crate) config: ModelConfig,
    /// Names and values, in the model's order.
    weights: Vec<(String, Tensor)>,
    /// Names as in a checkpoint and values, in the optimizer's order.
    moments: Vec<(String, Tensor)>,
}

impl HostSnapshot {
    /// Allocates memory for a copy and writes zeros to it, so that no page fault delays the first
    /// copy.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn allocate(model: &LanguageModel, optimizer: &Optimizer) -> Result<Self> {
        let zeros = |name: &str, tensor: &Tensor| -> Result<(String, Tensor)> {
            let zeros = Tensor::f_zeros(tensor.size(), (Kind::Float, Device::Cpu));
            Ok((name.to_owned(), zeros.context("no memory for the checkpoint's copy of weights and moments")?))
        };
        Ok(HostSnapshot {
            config: model.config().clone(),
            weights: model.parameters().iter().map(|(name, tensor)| zeros(name, tensor)).collect::<Result<_>>()?,
            moments: optimizer.state().iter().map(|(name, tensor)| zeros(name, tensor)).collect::<Result<_>>()?,
        })
    }

    /// Returns the size of the copy in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        let bytes = |(_, tensor): &(String, Tensor)| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64;
        self.weights.iter().chain(&self.moments).map(bytes).sum()
    }

    /// Copies weights and moments with all threads of the process. Waits for the current step of a
    /// GPU.
    pub(crate) fn copy_from(&mut self, model: &LanguageModel, optimizer: &Optimizer) -> Result<()> {
        self.config = model.config().clone();
        for ((_, copy), (_, tensor)) in self.weights.iter_mut().zip(model.parameters().iter()) {
            copy.f_copy_(&tensor.detach())?;
        }
        for ((_, copy), (_, tensor)) in self.moments.iter_mut().zip(optimizer.state()) {
            copy.f_copy_(&tensor)?;
        }
        Ok(())
    }

    /// Returns names and values of the weights.
    pub(crate) fn weights(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.weights.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Returns names, as in a checkpoint, and values of the moments.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.moments.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }
}
