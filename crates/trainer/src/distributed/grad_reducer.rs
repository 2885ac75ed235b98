//! How the gradients of the ranks become one.

use anyhow::Result;
use tch::{Kind, Tensor};
use torch_ext::distributed::{ProcessGroup, ReduceOp, Reducer, ReducerStatistics};

use crate::distributed::collectives::Collectives;
use crate::distributed::config::DistributedConfig;
use crate::optim::adamw::Optimizer;

/// The mean of the ranks' gradients, made once a step, with its last backward pass.
#[derive(Debug)]
pub enum GradReducer<'a> {
    /// One process.
    None,
    /// libtorch's `c10d::Reducer`: bucket by bucket, while the backward pass goes on.
    Overlapped(Reducer),
    /// When the backward pass is over: what overlapping is measured against.
    After {
        /// The ranks.
        group: &'a ProcessGroup,
        /// What is reduced together.
        bucket_bytes: usize,
    },
}

impl<'a> GradReducer<'a> {
    /// For the parameters of `optimizer`.
    ///
    /// # Errors
    /// When the ranks train different parameters, naming the first, or one is gone.
    pub(crate) fn new(ranks: &'a Collectives, config: &DistributedConfig, optimizer: &Optimizer) -> Result<Self> {
        let Some(group) = ranks.group() else { return Ok(GradReducer::None) };
        let bucket_bytes = config.bucket_bytes();
        if !config.overlap {
            return Ok(GradReducer::After { group, bucket_bytes });
        }
        let (names, parameters) = optimizer.in_forward_order();
        let reducer = Reducer::new(group, &names, &parameters, bucket_bytes)?;
        settle(&reducer, &parameters)?;
        optimizer.zero_grad()?;
        Ok(GradReducer::Overlapped(reducer))
    }

    /// Before a forward pass; `last` for the last of a step.
    ///
    /// # Errors
    /// When a rank is gone.
    pub(crate) fn before_forward(&self, last: bool) -> Result<()> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(reducer.before_forward(last)?),
            _ => Ok(()),
        }
    }

    /// Between forward and backward pass.
    ///
    /// # Errors
    /// When the step before did not end.
    pub(crate) fn before_backward(&self, last: bool) -> Result<()> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(reducer.before_backward(last)?),
            _ => Ok(()),
        }
    }

    /// After a backward pass: with the last of a step, every gradient is the mean.
    ///
    /// # Errors
    /// When a parameter got no gradient, or a rank is gone.
    pub(crate) fn after_backward(&self, last: bool, optimizer: &Optimizer) -> Result<()> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(reducer.after_backward(last)?),
            GradReducer::After { group, bucket_bytes } if last => {
                average(group, &optimizer.gradients()?, *bucket_bytes)
            }
            _ => Ok(()),
        }
    }

    /// What the Reducer did so far.
    pub(crate) fn statistics(&self) -> Result<Option<ReducerStatistics>> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(Some(reducer.statistics()?)),
            _ => Ok(None),
        }
    }
}

/// Lets the Reducer make the buckets that it keeps, which it does after its first pass, in the
/// order in which gradients came. Where an element lies in a bucket decides in which order
/// the ranks' values of it are added; were the first pass a step's, a run that resumes there
/// would round differently from one that did not stop. So it is a pass over nothing, in which
/// gradients come in the reverse of the forward pass's order, about that of a real one.
fn settle(reducer: &Reducer, parameters: &[Tensor]) -> Result<()> {
    reducer.before_forward(true)?;
    let mut nothing = Tensor::f_zeros([], (Kind::Float, parameters[0].device()))?;
    for parameter in parameters {
        // What is added last is the first whose gradient comes.
        nothing = nothing.f_add(&parameter.f_sum(Kind::Float)?.f_mul_scalar(0.0)?)?;
    }
    reducer.before_backward(true)?;
    nothing.f_backward().map_err(torch_ext::Error::from)?;
    reducer.after_backward(true)?;
    Ok(reducer.before_forward(false)?)
}

/// Runs of gradients of about `bucket_bytes`, each averaged as one.
fn average(group: &ProcessGroup, gradients: &[Tensor], bucket_bytes: usize) -> Result<()> {
    let mut from = 0;
    while from < gradients.len() {
        let (mut to, mut bytes) = (from, 0);
        while to < gradients.len() && (to == from || bytes < bucket_bytes) {
            bytes += gradients[to].numel() * 4;
            to += 1;
        }
        let flat: Vec<Tensor> = gradients[from..to].iter().map(|gradient| gradient.reshape([-1])).collect();
        let bucket = Tensor::f_cat(&flat, 0)?;
        group.all_reduce(&bucket, ReduceOp::Mean)?;
        let mut at = 0;
        for gradient in &gradients[from..to] {
            let numel = gradient.numel() as i64;
            gradient.shallow_clone().f_copy_(&bucket.f_narrow(0, at, numel)?.f_view_as(gradient)?)?;
            at += numel;
        }
        from = to;
    }
    Ok(())
}
