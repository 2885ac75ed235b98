//! The arguments of every command that draws text.

use clap::Args;
use model::Sampling;

#[derive(Debug, Args)]
pub(crate) struct SamplingArgs {
    /// Divides the logits before sampling [default: 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Sample among the K most probable tokens only
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample among the most probable tokens that together reach this probability only
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    top_p: Option<f64>,
    /// The same seed gives the same text
    #[arg(long, value_name = "S", default_value_t = 0)]
    pub(crate) seed: u64,
}

impl SamplingArgs {
    /// Whether anything but the seed was given.
    pub(crate) fn are_given(&self) -> bool {
        self.temperature.is_some() || self.top_k.is_some() || self.top_p.is_some()
    }

    /// Drawing so, by this seed.
    pub(crate) fn with_seed(&self, seed: u64) -> Sampling {
        Sampling::Random { temperature: self.temperature.unwrap_or(1.0), top_k: self.top_k, top_p: self.top_p, seed }
    }
}
