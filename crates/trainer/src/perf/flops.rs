//! The number of floating-point operations of training.

use model::{Architecture, ModelConfig};

/// Returns the training FLOPs per token at sequence length T: 6 per parameter of a matrix product,
/// the attention of the transformer, and for a Backpack the contextualization weights and the
/// weighted sum of the senses. Position embeddings are looked up and not counted.
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

    /// The default configuration is the published small model; its GPT-2 has the same shape.
    #[test]
    fn flops_of_the_small_models_at_512_tokens() {
        let small = ModelConfig::default();
        assert!((flops_per_token(&small, 512) / 1.115e9 - 1.0).abs() < 1e-3);
        let gpt2 = ModelConfig { architecture: Architecture::Gpt2, ..small };
        assert!((flops_per_token(&gpt2, 512) / 0.799e9 - 1.0).abs() < 1e-3);
    }
}
