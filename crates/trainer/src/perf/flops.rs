//! Floating-point operations of a training step.

use model::{Architecture, ModelConfig};

/// Returns the training FLOPs per token for sequences of `sequence_length` tokens (T).
///
/// They are 6 per parameter of a matrix product, 12 `n_layer` D T for the attention of the trunk,
/// and 6 T D (1 + `num_senses`) for the contextualization weights and the weighted sum of senses.
/// Position embeddings are looked up, not multiplied.
pub(crate) fn flops_per_token(model: &ModelConfig, sequence_length: u64) -> f64 {
    let (d, t) = (model.n_embd as f64, sequence_length as f64);
    let positions = (model.n_positions * model.n_embd) as f64;
    let products = 6.0 * (model.num_parameters() as f64 - positions);
    let attention = 12.0 * model.n_layer as f64 * d * t;
    let senses = match model.architecture {
        Architecture::Backpack => 6.0 * (t * d + model.num_senses as f64 * t * d),
        Architecture::Gpt2 => 0.0,
    };
    products + attention + senses
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published sizes are 1.115 GFLOP for the small Backpack and 0.799 GFLOP for GPT-2 small.
    #[test]
    fn flops_equal_the_published_ones() {
        let small = ModelConfig::default();
        assert!((flops_per_token(&small, 512) / 1.115e9 - 1.0).abs() < 1e-3);
        let gpt2 = ModelConfig { architecture: Architecture::Gpt2, ..small };
        assert!((flops_per_token(&gpt2, 512) / 0.799e9 - 1.0).abs() < 1e-3);
    }
}
