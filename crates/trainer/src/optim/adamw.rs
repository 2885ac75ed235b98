//! AdamW with the reference's parameter groups (reference point 18).

use anyhow::{Result, ensure};
use model::LanguageModel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, Tensor};
use torch_ext::{AdamW, AdamWTensors, UpdateGuard, UpdateStats, clipped_adamw};

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

/// AdamW over all parameters of a model; the lists run in parallel, those with weight decay
/// first.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    names: Vec<String>,
    parameters: Vec<Tensor>,
    copies: Vec<Option<Tensor>>,
    weight_decays: Vec<f64>,
    exp_avgs: Vec<Tensor>,
    exp_avg_sqs: Vec<Tensor>,
    /// Where each stands in the model's own table.
    param_order: Vec<usize>,
    /// How many have weight decay.
    decayed: usize,
    /// Updates done, for the bias correction: an fp32 scalar on the device, which knows what is skipped.
    updates: Tensor,
}

const MOMENTS: [&str; 2] = ["exp_avg", "exp_avg_sq"];

impl Optimizer {
    /// With zero moments, for the parameters that `model` shares with it.
    pub fn new(config: OptimizerConfig, model: &LanguageModel) -> Self {
        let specs = model.config().parameters();
        let (decayed, others): (Vec<_>, Vec<_>) = specs.into_iter().enumerate().partition(|(_, spec)| spec.decay);
        let weight_decays =
            decayed.iter().map(|_| config.weight_decay).chain(others.iter().map(|_| 0.0)).collect::<Vec<f64>>();
        let count = decayed.len();
        let (param_order, names): (Vec<usize>, Vec<String>) =
            decayed.into_iter().chain(others).map(|(position, spec)| (position, spec.name)).unzip();
        let parameters: Vec<Tensor> = names.iter().map(|name| model.parameters().get(name)).collect();
        let zeros = || parameters.iter().map(|p| tch::no_grad(|| p.zeros_like())).collect();
        Optimizer {
            config,
            copies: names.iter().map(|name| model.parameters().copy_of(name)).collect(),
            exp_avgs: zeros(),
            exp_avg_sqs: zeros(),
            weight_decays,
            parameters,
            names,
            param_order,
            decayed: count,
            updates: Tensor::zeros([] as [i64; 0], (Kind::Float, model.device())),
        }
    }

    /// Names of the parameters with weight decay, and of those without.
    pub fn groups(&self) -> [&[String]; 2] {
        let (decayed, others) = self.names.split_at(self.decayed);
        [decayed, others]
    }

    /// Forgets the gradients: the next backward pass hands its own over instead of adding.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub fn zero_grad(&self) -> Result<()> {
        for parameter in &self.parameters {
            torch_ext::forget_grad(parameter)?;
        }
        Ok(())
    }

    /// Names and parameters in the order in which a forward pass uses them.
    pub(crate) fn in_forward_order(&self) -> (Vec<String>, Vec<Tensor>) {
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by_key(|&i| self.param_order[i]);
        order.into_iter().map(|i| (self.names[i].clone(), self.parameters[i].shallow_clone())).unzip()
    }

    /// The gradients, in the optimiser's order.
    ///
    /// # Errors
    /// Naming a parameter that has none.
    pub(crate) fn gradients(&self) -> Result<Vec<Tensor>> {
        let gradient = |(name, parameter): (&String, &Tensor)| {
            let gradient = parameter.f_grad()?;
            ensure!(gradient.defined(), "parameter {name} has no gradient after the backward pass");
            Ok(gradient)
        };
        self.names.iter().zip(&self.parameters).map(gradient).collect()
    }

    /// Clips the gradients and updates the parameters with this rate, where nothing speaks
    /// against it; what it tells stays on the parameters' device.
    ///
    /// # Errors
    /// When a parameter has no gradient or libtorch refuses.
    pub fn update(&mut self, learning_rate: f64, conditions: UpdateGuard<'_>) -> Result<UpdateStats> {
        let grads = self.gradients()?;
        let lists = AdamWTensors {
            parameters: &self.parameters,
            grads: &grads,
            exp_avgs: &self.exp_avgs,
            exp_avg_sqs: &self.exp_avg_sqs,
            copies: &self.copies,
            weight_decays: &self.weight_decays,
            updates: &self.updates,
        };
        let options = AdamW {
            lr: learning_rate,
            betas: self.config.betas,
            eps: self.config.eps,
            max_norm: if self.config.grad_clip > 0.0 { self.config.grad_clip } else { f64::INFINITY },
        };
        Ok(clipped_adamw(lists, conditions, options)?)
    }

    /// The moments under `exp_avg.NAME` and `exp_avg_sq.NAME`, for a checkpoint.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for (kind, moments) in MOMENTS.iter().zip([&self.exp_avgs, &self.exp_avg_sqs]) {
            let named = self.names.iter().zip(moments);
            state.extend(named.map(|(name, tensor)| (format!("{kind}.{name}"), tensor.shallow_clone())));
        }
        state
    }

    /// Goes on after so many updates with the moments as they are: another rank's, which it gave.
    ///
    /// # Errors
    /// When libtorch refuses.
    pub(crate) fn set_update_count(&mut self, updates: u64) -> Result<()> {
        let _ = self.updates.f_fill_(updates as f64)?;
        Ok(())
    }

    /// Takes up the moments of a checkpoint after so many updates.
    ///
    /// # Errors
    /// Naming the tensor that is missing or of another shape.
    pub fn restore(&mut self, mut state: BTreeMap<String, Tensor>, updates: u64) -> Result<()> {
        for (kind, moments) in MOMENTS.iter().zip([&mut self.exp_avgs, &mut self.exp_avg_sqs]) {
            for (name, moment) in self.names.iter().zip(moments) {
                let key = format!("{kind}.{name}");
                let saved = state.remove(&key);
                let fits = saved.as_ref().is_some_and(|s| s.size() == moment.size() && s.kind() == Kind::Float);
                ensure!(fits, "the optimiser state has no tensor {key} of shape {:?}", moment.size());
                if let Some(saved) = saved {
                    moment.f_copy_(&saved)?;
                }
            }
        }
        self.set_update_count(updates)
    }
}
