//! Host copies of weights and optimizer moments, from which a checkpoint is written while training
//! continues.

use anyhow::{Context, Result};
use model::{LanguageModel, ModelConfig};
use tch::{Device, Kind, Tensor};
use torch_ext::{cuda_memory, profiler};

use crate::optim::adamw::Optimizer;

/// A copy of weights and moments in host memory: 12 bytes per parameter. It is allocated once, and
/// each copy overwrites the previous one. For a model on a GPU the memory is page-locked, and
/// libtorch rounds the size of each tensor up to a power of two.
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
        let device = model.device();
        let zeros = |name: &str, tensor: &Tensor| -> Result<(String, Tensor)> {
            let zeros = Tensor::f_zeros(tensor.size(), (Kind::Float, Device::Cpu))
                .context("no memory for the checkpoint's copy of weights and moments")?;
            Ok((name.to_owned(), page_locked(zeros, device)))
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

    /// Copies weights and moments, on a CPU with all threads of the process. Waits for the current
    /// step of a GPU, and then once for all copies.
    pub(crate) fn copy_from(&mut self, model: &LanguageModel, optimizer: &Optimizer) -> Result<()> {
        self.config = model.config().clone();
        for ((_, copy), (_, tensor)) in self.weights.iter().zip(model.parameters().iter()) {
            cuda_memory::copy_without_waiting(copy, &tensor.detach())?;
        }
        for ((_, copy), (_, tensor)) in self.moments.iter().zip(optimizer.state()) {
            cuda_memory::copy_without_waiting(copy, &tensor)?;
        }
        Ok(profiler::synchronize()?)
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

/// Returns the tensor in page-locked memory if the model is on a GPU. Returns the tensor unchanged
/// for a model on a CPU, and if no memory can be locked.
fn page_locked(tensor: Tensor, model_device: Device) -> Tensor {
    if model_device.is_cuda() { cuda_memory::page_locked(&tensor, model_device).unwrap_or(tensor) } else { tensor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::testing::tiny_model;

    #[test]
    fn each_copy_overwrites_the_previous_one() {
        let (model, optimizer) = tiny_model();
        let mut snapshot = HostSnapshot::allocate(&model, &optimizer).unwrap();
        for value in [1.5, 2.5] {
            tch::no_grad(|| {
                model.parameters().iter().for_each(|(_, p)| drop(p.shallow_clone().fill_(value)));
                optimizer.state().iter().for_each(|(_, moment)| drop(moment.shallow_clone().fill_(-value)));
            });
            snapshot.copy_from(&model, &optimizer).unwrap();
            let holds = |tensor: &Tensor, value: f64| tensor.eq(value).all().int64_value(&[]) == 1;
            assert!(snapshot.weights().all(|(_, tensor)| holds(tensor, value)));
            assert!(snapshot.moments().all(|(_, tensor)| holds(tensor, -value)));
        }
        assert_eq!(snapshot.bytes(), 12 * model.config().num_parameters() as u64);
    }

    #[test]
    fn memory_that_cannot_be_locked_stays_pageable() {
        let tensor = Tensor::from_slice(&[1.0f32, 2.0]);
        assert_eq!(page_locked(tensor.shallow_clone(), Device::Cpu).data_ptr(), tensor.data_ptr());
        if torch_ext::usable_gpus().unwrap_or(0) == 0 {
            assert_eq!(page_locked(tensor.shallow_clone(), Device::Cuda(0)).data_ptr(), tensor.data_ptr());
        }
    }
}
