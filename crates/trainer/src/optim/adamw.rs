//! AdamW over all parameters of a model. Weight decay applies only to the weights of linear layers.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use model::LanguageModel;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use torch_ext::{AdamW, AdamWTensors, UpdateGuard, UpdateStats, clipped_adamw};

/// The `[optimizer]` section. The defaults are those of the published run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay rates of the first and second moment.
    pub betas: (f64, f64),
    /// Value added to the square root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, for the weights of linear layers.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradients. 0: no clipping.
    pub grad_clip: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        // eps 1e-8 is the default of apex FusedAdam, which the published run used.
        OptimizerConfig { learning_rate: 6e-4, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 }
    }
}

impl OptimizerConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// Names the key whose value is invalid.
    pub fn validate(&self) -> Result<()> {
        let positive = |key: &str, value: f64| {
            ensure!(value > 0.0 && value.is_finite(), "optimizer.{key} is {value}: it must be above 0");
            Ok(())
        };
        positive("learning_rate", self.learning_rate)?;
        positive("eps", self.eps)?;
        for (key, value) in [("weight_decay", self.weight_decay), ("grad_clip", self.grad_clip)] {
            ensure!(value >= 0.0 && value.is_finite(), "optimizer.{key} is {value}: it must be at least 0");
        }
        for beta in [self.betas.0, self.betas.1] {
            ensure!((0.0..1.0).contains(&beta), "optimizer.betas contains {beta}: each must be at least 0 and below 1");
        }
        Ok(())
    }
}

/// AdamW over all parameters of a model.
///
/// The lists are parallel. Parameters with weight decay come first.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    low_precision_copies: Vec<Option<Tensor>>,
    weight_decays: Vec<f64>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    /// Index of each parameter in the parameter table of the model, which is the order of a forward
    /// pass.
    param_order: Vec<usize>,
    /// Number of updates for the bias correction, an fp32 scalar on the device. Skipped steps do
    /// not count.
    updates: Tensor,
}

/// Prefixes of the moments' tensor names in a checkpoint.
const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

impl Optimizer {
    /// Creates an optimizer with zero moments. It shares the parameters with `model`.
    pub fn new(config: OptimizerConfig, model: &LanguageModel) -> Self {
        let specs = model.config().parameters();
        let (decayed, others): (Vec<_>, Vec<_>) = specs.into_iter().enumerate().partition(|(_, spec)| spec.decay);
        let weight_decays =
            decayed.iter().map(|_| config.weight_decay).chain(others.iter().map(|_| 0.0)).collect::<Vec<f64>>();
        let (param_order, names): (Vec<usize>, Vec<String>) =
            decayed.into_iter().chain(others).map(|(position, spec)| (position, spec.name)).unzip();
        let parameters: Vec<Tensor> = names.iter().map(|name| model.parameters().get(name)).collect();
        let zeros = || parameters.iter().map(|p| tch::no_grad(|| p.zeros_like())).collect();
        Optimizer {
            config,
            low_precision_copies: names.iter().map(|name| model.parameters().low_precision_copy(name)).collect(),
            exp_avgs: zeros(),
            exp_avg_sqs: zeros(),
            weight_decays,
            parameters,
            names,
            param_order,
            updates: Tensor::zeros([] as [i64; 0], (Kind::Float, model.device())),
        }
    }

    /// Deletes the gradients, so that the next backward pass stores new ones instead of adding to
    /// them.
    pub fn zero_grad(&self) -> Result<()> {
        for parameter in &self.parameters {
            torch_ext::clear_grad(parameter)?;
        }
        Ok(())
    }

    /// Returns names and parameters in the order in which a forward pass uses them.
    pub(crate) fn in_forward_order(&self) -> (Vec<String>, Vec<Tensor>) {
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by_key(|&i| self.param_order[i]);
        order.into_iter().map(|i| (self.names[i].clone(), self.parameters[i].shallow_clone())).unzip()
    }

    /// Returns the gradients, in the order of the optimizer.
    ///
    /// # Errors
    /// Names a parameter without a gradient.
    pub(crate) fn gradients(&self) -> Result<Vec<Tensor>> {
        let gradient = |(name, parameter): (&String, &Tensor)| {
            let gradient = parameter.f_grad()?;
            ensure!(gradient.defined(), "parameter {name} has no gradient after the backward pass");
            Ok(gradient)
        };
        self.names.iter().zip(&self.parameters).map(gradient).collect()
    }

    /// Clips the gradients and updates the parameters, unless `guard` or a non-finite gradient
    /// skips the update. The result stays on the device.
    ///
    /// # Errors
    /// Names a parameter without a gradient.
    pub fn update(&mut self, learning_rate: f64, guard: UpdateGuard<'_>) -> Result<UpdateStats> {
        let grads = self.gradients()?;
        let tensors = AdamWTensors {
            parameters: &self.parameters,
            grads: &grads,
            exp_avgs: &self.exp_avgs,
            exp_avg_sqs: &self.exp_avg_sqs,
            low_precision_copies: &self.low_precision_copies,
            weight_decays: &self.weight_decays,
            updates: &self.updates,
        };
        let options = AdamW {
            lr: learning_rate,
            betas: self.config.betas,
            eps: self.config.eps,
            max_norm: if self.config.grad_clip > 0.0 { self.config.grad_clip } else { f64::INFINITY },
        };
        Ok(clipped_adamw(tensors, guard, options)?)
    }

    /// Returns the moments for a checkpoint, under the names `exp_avg.NAME` and `exp_avg_sq.NAME`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for (prefix, moments) in MOMENTS.iter().zip([&self.exp_avgs, &self.exp_avg_sqs]) {
            let named = self.names.iter().zip(moments);
            state.extend(named.map(|(name, tensor)| (format!("{prefix}.{name}"), tensor.shallow_clone())));
        }
        state
    }

    /// Sets the number of updates. The moments do not change; they may have been received from
    /// another rank.
    pub(crate) fn set_update_count(&mut self, updates: u64) -> Result<()> {
        let _ = self.updates.f_fill_(updates as f64)?;
        Ok(())
    }

    /// Restores the moments and the number of updates from a checkpoint.
    ///
    /// # Errors
    /// Names the tensor that is missing or has a different shape.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>, updates: u64) -> Result<()> {
        for (prefix, moments) in MOMENTS.iter().zip([&mut self.exp_avgs, &mut self.exp_avg_sqs]) {
            for (name, moment) in self.names.iter().zip(moments) {
                let key = format!("{prefix}.{name}");
                let saved = state.remove(&key);
                let fits = saved.as_ref().is_some_and(|s| s.size() == moment.size() && s.kind() == Kind::Float);
                ensure!(fits, "the optimizer state has no tensor {key} of shape {:?}", moment.size());
                if let Some(saved) = saved {
                    moment.f_copy_(&saved)?;
                }
            }
        }
        self.set_update_count(updates)
    }
}

#[cfg(test)]
mod tests {
    use model::ModelConfig;

    use super::*;

    #[test]
    fn weight_decay_applies_only_to_linear_weights() {
        let config = ModelConfig {
            n_embd: 8,
            n_head: 2,
            n_layer: 3,
            num_senses: 4,
            vocab_size: 11,
            n_positions: 4,
            ..ModelConfig::default()
        };
        let model = LanguageModel::initialize(config, 1, tch::Device::Cpu).unwrap();
        let optimizer = Optimizer::new(OptimizerConfig::default(), &model);
        let weight_decays = optimizer.names.iter().zip(&optimizer.weight_decays);
        let (decayed, others): (Vec<_>, Vec<_>) = weight_decays.partition(|(_, decay)| **decay > 0.0);
        // Three blocks with four linear layers each, four in the sense network, one for the
        // contextualization weights.
        assert_eq!(decayed.len(), 3 * 4 + 4 + 1);
        let linear = ["c_attn.weight", "c_proj.weight", "c_fc.weight"];
        assert!(decayed.iter().all(|(name, _)| linear.iter().any(|suffix| name.ends_with(suffix))));
        assert_eq!(decayed.len() + others.len(), model.config().parameters().len());
    }
}
