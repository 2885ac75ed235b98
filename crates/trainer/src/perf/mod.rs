//! Speed and cost: FLOPs per token, peak throughput of matrix products, the step profiler, energy
//! and money.

pub(crate) mod cost;
pub(crate) mod flops;
pub(crate) mod matmul_peak;
pub(crate) mod profiler;
