//! A Backpack whose body starts from a GPT-2.

use anyhow::{Result, ensure};
use tch::Tensor;

use crate::config::Architecture;
use crate::language_model::LanguageModel;

/// Copies a GPT-2 into the body of a fresh Backpack of its width, heads and layers. The
/// senses and their weights stay as they were drawn, and so do vocabulary rows that the
/// GPT-2 lacks; of its positions as many are taken as the Backpack has. Where only the
/// Backpack divides attention scores by (layer index + 1), its queries grow by that, so
/// that the body computes what the GPT-2 does.
///
/// # Errors
/// Naming what does not fit.
pub fn graft_body(backpack: &LanguageModel, gpt2: &LanguageModel) -> Result<()> {
    let (ours, theirs) = (backpack.config(), gpt2.config());
    ensure!(
        ours.architecture == Architecture::Backpack && theirs.architecture == Architecture::Gpt2,
        "a body is taken from a GPT-2 into a Backpack"
    );
    for (key, here, there) in [
        ("n_embd", ours.n_embd, theirs.n_embd),
        ("n_head", ours.n_head, theirs.n_head),
        ("n_layer", ours.n_layer, theirs.n_layer),
        ("n_inner", ours.inner_size(), theirs.inner_size()),
    ] {
        ensure!(here == there, "{key} is {here} here and {there} there");
    }
    ensure!(
        ours.vocab_size >= theirs.vocab_size,
        "vocab_size is {} here, which has no room for the {} there",
        ours.vocab_size,
        theirs.vocab_size
    );
    ensure!(
        ours.n_positions <= theirs.n_positions,
        "n_positions is {} here, and there are only {} there",
        ours.n_positions,
        theirs.n_positions
    );
    ensure!(
        ours.scale_attn_by_inverse_layer_idx || !theirs.scale_attn_by_inverse_layer_idx,
        "scale_attn_by_inverse_layer_idx is false here and true there"
    );
    let grow = ours.scale_attn_by_inverse_layer_idx && !theirs.scale_attn_by_inverse_layer_idx;
    tch::no_grad(|| -> Result<()> {
        for (name, tensor) in gpt2.parameters().iter() {
            let rest = name.trim_start_matches(theirs.body_prefix());
            let parameter = backpack.parameters().get(&format!("{}{rest}", ours.body_prefix()));
            let rows = parameter.size()[0].min(tensor.size()[0]);
            let mut target = parameter.narrow(0, 0, rows);
            target.f_copy_(&tensor.narrow(0, 0, rows))?;
            if let (true, Some(layer)) = (grow, crate::hf_export::attention_layer(name)) {
                let mut queries: Tensor = parameter.narrow(-1, 0, ours.n_embd);
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
    use crate::layers::ForwardOptions;
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
        let model = LanguageModel::initialise(config, vocab_size as u64, Device::Cpu).unwrap();
        // Large enough for the attention to matter.
        for (_, parameter) in model.parameters().iter() {
            let mut parameter = parameter.shallow_clone();
            tch::no_grad(|| parameter *= 6.0);
        }
        model
    }

    #[test]
    fn the_body_computes_what_the_gpt2_does_and_the_senses_stay() {
        let gpt2 = model(Architecture::Gpt2, 50, 12, false);
        let ids = Tensor::from_slice(&[3i64, 49, 0, 7, 7, 21]).unsqueeze(0);
        let pass = ForwardOptions::evaluation();
        for scale in [true, false] {
            let backpack = model(Architecture::Backpack, 56, 8, scale);
            let padding = backpack.parameters().get("backpack.gpt2_model.wte.weight").narrow(0, 50, 6).copy();
            let senses = backpack.parameters().get("backpack.sense_network.final_mlp.c_fc.weight").copy();
            graft_body(&backpack, &gpt2).unwrap();
            let got = tch::no_grad(|| backpack.backpack().unwrap().body().forward(&ids, pass));
            let want = tch::no_grad(|| gpt2.hidden(&ids, pass));
            let difference = (got - want).abs().max().double_value(&[]);
            assert!(difference < 1e-4, "{scale}: {difference}");
            assert_eq!(backpack.parameters().get("backpack.gpt2_model.wte.weight").narrow(0, 50, 6), padding);
            assert_eq!(backpack.parameters().get("backpack.sense_network.final_mlp.c_fc.weight"), senses);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let backpack = model(Architecture::Backpack, 50, 12, false);
        let error = |gpt2: &LanguageModel| graft_body(&backpack, gpt2).unwrap_err().to_string();
        let error_of_vocabulary = error(&model(Architecture::Gpt2, 51, 12, false));
        assert_eq!(error_of_vocabulary, "vocab_size is 50 here, which has no room for the 51 there");
        assert!(error(&model(Architecture::Gpt2, 50, 11, false)).starts_with("n_positions is 12 here"));
        assert!(error(&model(Architecture::Gpt2, 50, 12, true)).contains("scale_attn_by_inverse_layer_idx"));
    }
}
