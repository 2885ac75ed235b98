//! AdamW with the reference's parameter groups (reference point 18).

use anyhow::{Result, ensure};
use model::LanguageModel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};
use torch_ext::AdamW;

/// The `[optimizer]` section. Defaults: the published run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Decay rates of the two moments.
    pub betas: (f64, f64),
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled decay, on linear weights only.
    pub weight_decay: f64,
    /// Largest global L2 norm of the gradients; 0 for no clipping.
    pub grad_clip: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        // eps 1e-8: apex FusedAdam's default, used by the published run.
        OptimizerConfig { learning_rate: 6e-4, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 }
    }
}

impl OptimizerConfig {
    /// Refuses values that cannot be meant.
    ///
    /// # Errors
    /// Naming the key.
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
            ensure!((0.0..1.0).contains(&beta), "optimizer.betas holds {beta}: each must be at least 0 and below 1");
        }
        Ok(())
    }
}

/// Parameters that share a weight decay, with their moments; the lists run in parallel.
#[derive(Debug)]
struct Group {
    weight_decay: f64,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
}

/// AdamW over all parameters of a model.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: [Group; 2],
    /// Updates done.
    step: u64,
}

const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

impl Optimizer {
    /// With zero moments, for the parameters that `model` shares with it.
    pub fn new(config: OptimizerConfig, model: &LanguageModel) -> Self {
        let specs = model.config().parameters();
        let group = |decay: bool| {
            let names: Vec<String> = specs.iter().filter(|s| s.decay == decay).map(|s| s.name.clone()).collect();
            let parameters: Vec<Tensor> = names.iter().map(|name| model.parameters().get(name)).collect();
            let zeros = || parameters.iter().map(|p| tch::no_grad(|| p.zeros_like())).collect();
            Group {
                weight_decay: if decay { config.weight_decay } else { 0.0 },
                exp_avgs: zeros(),
                exp_avg_sqs: zeros(),
                names,
                parameters,
            }
        };
        let groups = [group(true), group(false)];
        Optimizer { config, groups, step: 0 }
    }

    /// Names of the parameters with weight decay, and of those without.
    pub fn groups(&self) -> [&[String]; 2] {
        [&self.groups[0].names, &self.groups[1].names]
    }

    /// Forgets the gradients; their memory is used again.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn zero_grad(&self) -> Result<()> {
        for parameter in self.groups.iter().flat_map(|g| &g.parameters) {
            let mut grad = parameter.f_grad()?;
            if grad.defined() {
                let _ = grad.f_zero_()?;
            }
        }
        Ok(())
    }

    /// Clips the gradients and updates the parameters with this rate. Gives the global
    /// gradient norm before clipping, on the parameters' device.
    ///
    /// # Errors
    /// When a parameter has no gradient or libtorch refuses.
    pub fn update(&mut self, learning_rate: f64) -> Result<Tensor> {
        let mut grads = Vec::new();
        for group in &self.groups {
            for (name, parameter) in group.names.iter().zip(&group.parameters) {
                let grad = parameter.f_grad()?;
                ensure!(grad.defined(), "parameter {name} has no gradient after the backward pass");
                grads.push(grad);
            }
        }
        let max_norm = if self.config.grad_clip > 0.0 { self.config.grad_clip } else { f64::INFINITY };
        let norm = torch_ext::clip_grad_norm(&grads, max_norm)?;
        self.step += 1;
        let mut rest = grads.as_slice();
        for group in &self.groups {
            let (own, others) = rest.split_at(group.parameters.len());
            rest = others;
            let options = AdamW {
                lr: learning_rate,
                betas: self.config.betas,
                eps: self.config.eps,
                weight_decay: group.weight_decay,
            };
            torch_ext::fused_adamw(&group.parameters, own, &group.exp_avgs, &group.exp_avg_sqs, self.step, options)?;
        }
        Ok(norm)
    }

    /// The moments under `exp_avg.NAME` and `exp_avg_sq.NAME`, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for group in &self.groups {
            for (kind, moments) in MOMENTS.iter().zip([&group.exp_avgs, &group.exp_avg_sqs]) {
                let named = group.names.iter().zip(moments);
                state.extend(named.map(|(name, tensor)| (format!("{kind}.{name}"), tensor.shallow_clone())));
            }
        }
        state
    }

    /// Takes up the moments of a checkpoint after `step` updates.
    ///
    /// # Errors
    /// Naming the tensor that is missing or of another shape.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>, step: u64) -> Result<()> {
        for group in &mut self.groups {
            for (kind, moments) in MOMENTS.iter().zip([&mut group.exp_avgs, &mut group.exp_avg_sqs]) {
                for (name, moment) in group.names.iter().zip(moments) {
                    let key = format!("{kind}.{name}");
                    let saved = state.remove(&key);
                    let fits = saved.as_ref().is_some_and(|s| s.size() == moment.size() && s.kind() == Kind::Float);
                    ensure!(fits, "the optimiser state has no tensor {key} of shape {:?}", moment.size());
                    if let Some(saved) = saved {
                        moment.f_copy_(&saved)?;
                    }
                }
            }
        }
        self.step = step;
        Ok(())
    }
}
