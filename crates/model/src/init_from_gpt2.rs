//! Initialization of the trunk of a Backpack from a GPT-2.

use anyhow::{Result, ensure};
use tch::Tensor;

use crate::config::Architecture;
use crate::language_model::LanguageModel;

/// Copies a GPT-2 into the trunk of a new Backpack with the same width, heads and layers. The sense
/// network, the contextualization weights, and vocabulary rows that the GPT-2 does not have keep
/// their values. Positions beyond those of the Backpack are not copied. If only the Backpack
/// divides attention scores by (layer index + 1), its queries are multiplied by it, so that the
/// trunk computes the same as the GPT-2.
///
/// # Errors
/// Names the key of the configurations that does not fit.
pub fn init_from_gpt2(backpack: &LanguageModel, gpt2: &LanguageModel) -> Result<()> {
    let (target, source) = (backpack.config(), gpt2.config());
    ensure!(
        target.architecture == Architecture::Backpack && source.architecture == Architecture::Gpt2,
        "the trunk of a Backpack can be initialized only from a GPT-2"
    );
    for (key, here, there) in [
        ("n_embd", target.n_embd, source.n_embd),
        ("n_head", target.n_head, source.n_head),
        ("n_layer", target.n_layer, source.n_layer),
        ("n_inner", target.inner_size(), source.inner_size()),
    ] {
        ensure!(here == there, "{key} is {here} here and {there} there");
    }
    ensure!(
        target.vocab_size >= source.vocab_size,
        "vocab_size is {} here and {} there: it must not be smaller",
        target.vocab_size,
        source.vocab_size
    );
    ensure!(
        target.n_positions <= source.n_positions,
        "n_positions is {} here and {} there: it must not be larger",
        target.n_positions,
        source.n_positions
    );
    ensure!(
        target.scale_attn_by_inverse_layer_idx || !source.scale_attn_by_inverse_layer_idx,
        "scale_attn_by_inverse_layer_idx is false here and true there"
    );
    let scale_queries = target.scale_attn_by_inverse_layer_idx && !source.scale_attn_by_inverse_layer_idx;
    tch::no_grad(|| -> Result<()> {
        for (name, tensor) in gpt2.parameters().iter() {
            let rest = name.trim_start_matches(source.body_prefix());
            let parameter = backpack.parameters().get(&format!("{}{rest}", target.body_prefix()));
            let rows = parameter.size()[0].min(tensor.size()[0]);
            let mut copied = parameter.narrow(0, 0, rows);
            copied.f_copy_(&tensor.narrow(0, 0, rows))?;
            if let (true, Some(layer)) = (scale_queries, crate::hf_export::attention_layer(name)) {
                let mut queries: Tensor = parameter.narrow(-1, 0, target.n_embd);
                queries *= (layer + 1) as f64;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::ops::ForwardOptions;
    use tch::Device;

    fn model(architecture: Architecture, vocab_size: i64, n_positions: i64, scale: bool) -> LanguageModel {
        let config = ModelConfig {
            architecture,
            n_embd: 16,
            n_head: 2,
            n_layer: 3,
            num_senses: 4,
            n_positions,
            vocab_size,
            scale_attn_by_inverse_layer_idx: scale,
            ..ModelConfig::default()
        };
        let model = LanguageModel::initialize(config, vocab_size as u64, Device::Cpu).unwrap();
        // Larger weights make the attention scores matter.
        model.parameters().multiply(6.0);
        model
    }

    #[test]
    fn body_equals_the_gpt2_and_senses_do_not_change() {
        let gpt2 = model(Architecture::Gpt2, 50, 12, false);
        let ids = Tensor::from_slice(&[3i64, 49, 0, 7, 7, 21]).unsqueeze(0);
        let options = ForwardOptions::evaluation();
        for scale in [true, false] {
            let backpack = model(Architecture::Backpack, 56, 8, scale);
            let padding = backpack.parameters().get("backpack.gpt2_model.wte.weight").narrow(0, 50, 6).copy();
            let senses = backpack.parameters().get("backpack.sense_network.final_mlp.c_fc.weight").copy();
            init_from_gpt2(&backpack, &gpt2).unwrap();
            let got = tch::no_grad(|| backpack.backpack().unwrap().body().forward(&ids, options));
            let want = tch::no_grad(|| gpt2.hidden(&ids, options));
            let difference = (got - want).abs().max().double_value(&[]);
            assert!(difference < 1e-4, "{scale}: {difference}");
            assert_eq!(backpack.parameters().get("backpack.gpt2_model.wte.weight").narrow(0, 50, 6), padding);
            assert_eq!(backpack.parameters().get("backpack.sense_network.final_mlp.c_fc.weight"), senses);
        }
    }

    #[test]
    fn errors_name_the_key_that_does_not_fit() {
        let backpack = model(Architecture::Backpack, 50, 12, false);
        let error = |gpt2: &LanguageModel| init_from_gpt2(&backpack, gpt2).unwrap_err().to_string();
        let error_of_vocabulary = error(&model(Architecture::Gpt2, 51, 12, false));
        assert_eq!(error_of_vocabulary, "vocab_size is 50 here and 51 there: it must not be smaller");
        assert!(error(&model(Architecture::Gpt2, 50, 11, false)).starts_with("n_positions is 12 here"));
        assert!(error(&model(Architecture::Gpt2, 50, 12, true)).contains("scale_attn_by_inverse_layer_idx"));
    }
}
