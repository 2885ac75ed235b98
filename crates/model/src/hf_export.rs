//! Export of a model: the tensors and the configuration of a Hugging Face directory.

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use crate::config::{Architecture, ModelConfig};
use crate::language_model::LanguageModel;
use crate::tensor::is_finite;

/// Returns configuration and tensors of a Hugging Face directory, with floating-point tensors in
/// `kind`. Edited senses are separate tensors.
///
/// For a GPT-2, the inverse-layer scale is folded into the query weights and biases, and the flag
/// is set to false, because several `transformers` releases ignore the flag in their default
/// attention. (The modeling file that is exported with a Backpack applies the scale.)
///
/// # Errors
/// Names the tensor with a number that is too large for `kind`.
pub fn export_tensors(model: &LanguageModel, kind: Kind) -> Result<(ModelConfig, Vec<(String, Tensor)>)> {
    let mut config = model.config().clone();
    let fold = config.architecture == Architecture::Gpt2 && config.scale_attn_by_inverse_layer_idx;
    config.scale_attn_by_inverse_layer_idx &= !fold;
    let export = |(name, tensor): (&str, &Tensor)| {
        let exported = tch::no_grad(|| tensor.detach().copy());
        if let Some(layer) = attention_layer(name).filter(|_| fold) {
            // The queries are the first third of the columns of the weight [D, 3 D].
            let mut queries = exported.narrow(-1, 0, config.n_embd);
            queries /= (layer + 1) as f64;
        }
        (name.to_owned(), exported.to_kind(kind))
    };
    let mut tensors: Vec<(String, Tensor)> = model.parameters().iter().map(export).collect();
    for (name, tensor) in model.edited_tensors() {
        let tensor = if tensor.is_floating_point() { tensor.to_kind(kind) } else { tensor };
        tensors.push((name.to_owned(), tensor));
    }
    for (name, tensor) in &tensors {
        let fits = !tensor.is_floating_point() || is_finite(tensor);
        ensure!(fits, "tensor {name} has a number that is too large for {kind:?}: export with --dtype fp32");
    }
    Ok((config, tensors))
}

/// Returns the number of the block if the parameter with this name belongs to a `c_attn` layer.
pub(crate) fn attention_layer(name: &str) -> Option<i64> {
    let (before, after) = name.split_once(".attn.c_attn.")?;
    matches!(after, "weight" | "bias").then(|| before.rsplit('.').next()?.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::ForwardOptions;
    use crate::parameters::Parameters;
    use tch::Device;

    #[test]
    fn gpt2_with_folded_scale_computes_the_same() {
        let config = ModelConfig {
            architecture: Architecture::Gpt2,
            n_embd: 16,
            n_head: 2,
            n_layer: 3,
            n_positions: 8,
            vocab_size: 30,
            ..ModelConfig::default()
        };
        let model = LanguageModel::initialize(config, 3, Device::Cpu).unwrap();
        // Larger weights make the attention scores matter.
        model.parameters().multiply(8.0);
        let (config, tensors) = export_tensors(&model, Kind::Float).unwrap();
        assert!(!config.scale_attn_by_inverse_layer_idx);
        let parameters = Parameters::from_tensors(&config, tensors.into_iter().collect(), Device::Cpu).unwrap();
        let folded = LanguageModel::new(config.clone(), parameters);
        let ids = Tensor::from_slice(&[1i64, 5, 9, 2, 29, 0, 7, 7]).unsqueeze(0);
        let logits = |m: &LanguageModel| tch::no_grad(|| m.logits(&ids, ForwardOptions::evaluation()));
        let difference = (logits(&model) - logits(&folded)).abs().max().double_value(&[]);
        assert!(difference < 1e-4, "{difference}");
        // Without folding, the logits differ.
        let raw = model.parameters().iter().map(|(n, t)| (n.to_owned(), t.copy())).collect();
        let raw = LanguageModel::new(config.clone(), Parameters::from_tensors(&config, raw, Device::Cpu).unwrap());
        assert!((logits(&model) - logits(&raw)).abs().max().double_value(&[]) > 1e-2);
    }
}
