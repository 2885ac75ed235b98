//! Arguments of the commands that sample text.

use clap::Args;
use model::Sampling;

/// Temperature, truncation and seed.
#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Divide the logits by this number before sampling [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Sample from the K most probable tokens only [default: all tokens]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the smallest set of most probable tokens whose probabilities sum to at least P
    /// [default: all tokens]
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// Random seed; the same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

impl SamplingArgs {
    /// Whether a flag other than `--seed` was given.
    pub(crate) fn are_given(&self) -> bool {
        self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some()
    }

    /// The sampling method with another seed.
    pub(crate) fn with_seed(&self, seed: u64) -> Sampling {
        Sampling::Random { temperature: self.temperature.unwrap_or(1.0), top_k: self.top_k, top_p: self.top_p, seed }
    }
}
