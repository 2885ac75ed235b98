//! Averaging of gradients over the ranks, as in PyTorch's DistributedDataParallel.

use anyhow::Result;
use tch::{Kind, Tensor};
use torch_ext::distributed::{ProcessGroup, ReduceOp, Reducer, ReducerStatistics};

use crate::distributed::collectives::Collectives;
use crate::distributed::config::DistributedConfig;
use crate::optim::adamw::Optimizer;

/// A method of averaging the gradients over the ranks, once per step with its last backward pass.
#[derive(Debug)]
pub enum GradReducer<'a> {
    /// Nothing to average, because there is one process.
    None,
    /// Averaging bucket by bucket during the backward pass, by libtorch's `c10d::Reducer`.
    Overlapped(Reducer),
    /// Averaging after the backward pass, which is the baseline for benchmarks of overlapping.
    AfterBackward {
        /// Process group of the ranks.
        group: &'a ProcessGroup,
        /// Bytes of the gradients that are reduced together.
        bucket_bytes: usize,
    },
}

impl<'a> GradReducer<'a> {
    /// Creates a reducer for the parameters of `optimizer`.
    ///
    /// # Errors
    /// Names the first parameter that differs between the ranks. Returns an error if another rank
    /// has exited.
    pub(crate) fn new(collectives: &'a Collectives, config: &DistributedConfig, optimizer: &Optimizer) -> Result<Self> {
        let Some(group) = collectives.group() else { return Ok(GradReducer::None) };
        let bucket_bytes = config.bucket_bytes();
        if !config.overlap {
            return Ok(GradReducer::AfterBackward { group, bucket_bytes });
        }
        let (names, parameters) = optimizer.in_forward_order();
        let reducer = Reducer::new(group, &names, &parameters, bucket_bytes)?;
        build_buckets(&reducer, &parameters)?;
        optimizer.zero_grad()?;
        Ok(GradReducer::Overlapped(reducer))
    }

    /// Prepares for a forward pass. `last` is true for the last one of a step.
    pub(crate) fn before_forward(&self, last: bool) -> Result<()> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(reducer.before_forward(last)?),
            _ => Ok(()),
        }
    }

    /// Prepares for a backward pass. `last` is true for the last one of a step.
    ///
    /// # Errors
    /// Returns an error if the previous step was not completed.
    pub(crate) fn before_backward(&self, last: bool) -> Result<()> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(reducer.before_backward(last)?),
            _ => Ok(()),
        }
    }

    /// Completes a backward pass. After the last one of a step, every gradient is the mean over the
    /// ranks.
    ///
    /// # Errors
    /// Returns an error if a parameter has no gradient, or if another rank has exited.
    pub(crate) fn after_backward(&self, last: bool, optimizer: &Optimizer) -> Result<()> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(reducer.after_backward(last)?),
            GradReducer::AfterBackward { group, bucket_bytes } if last => {
                average(group, &optimizer.gradients()?, *bucket_bytes)
            }
            _ => Ok(()),
        }
    }

    /// Returns the statistics of the `c10d::Reducer`, or `None` if there is none.
    pub(crate) fn statistics(&self) -> Result<Option<ReducerStatistics>> {
        match self {
            GradReducer::Overlapped(reducer) => Ok(Some(reducer.statistics()?)),
            _ => Ok(None),
        }
    }
}

/// Makes the reducer build its final buckets before the first step.
///
/// The reducer builds them after its first backward pass, in the order in which the gradients
/// became ready. The position of an element in a bucket determines the order in which the ranks'
/// values are added, and so the rounding. If the first step built the buckets, a resumed run would
/// round differently from an uninterrupted one. This function therefore runs a backward pass over
/// zeros, in which the gradients become ready in the reverse of the forward order. That is close to
/// the order of a training step.
fn build_buckets(reducer: &Reducer, parameters: &[Tensor]) -> Result<()> {
    reducer.before_forward(true)?;
    let mut zero = Tensor::f_zeros([], (Kind::Float, parameters[0].device()))?;
    for parameter in parameters {
        // The gradient of the parameter that is added last is ready first.
        zero = zero.f_add(&parameter.f_sum(Kind::Float)?.f_mul_scalar(0.0)?)?;
    }
    reducer.before_backward(true)?;
    zero.f_backward().map_err(torch_ext::Error::from)?;
    reducer.after_backward(true)?;
    Ok(reducer.before_forward(false)?)
}

/// Averages the gradients in groups of about `bucket_bytes`.
fn average(group: &ProcessGroup, gradients: &[Tensor], bucket_bytes: usize) -> Result<()> {
    let mut start = 0;
    while start < gradients.len() {
        let (mut end, mut bytes) = (start, 0);
        while end < gradients.len() && (end == start || bytes < bucket_bytes) {
            bytes += gradients[end].numel() * 4; // fp32
            end += 1;
        }
        let flat: Vec<Tensor> = gradients[start..end].iter().map(|gradient| gradient.reshape([-1])).collect();
        let bucket = Tensor::f_cat(&flat, 0)?;
        group.all_reduce(&bucket, ReduceOp::Mean)?;
        let mut offset = 0;
        for gradient in &gradients[start..end] {
            let numel = gradient.numel() as i64;
            gradient.shallow_clone().f_copy_(&bucket.f_narrow(0, offset, numel)?.f_view_as(gradient)?)?;
            offset += numel;
        }
        start = end;
    }
    Ok(())
}
