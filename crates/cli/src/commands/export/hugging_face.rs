//! What a Hugging Face folder holds besides the tensors.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap::ValueEnum;
use model::{Architecture, GPT2_END_OF_TEXT, ModelConfig};
use serde_json::{Value, json};
use trainer::TrainState;

/// The network in PyTorch, for `trust_remote_code`. Part of this project, under its licence.
pub(crate) const MODELLING_FILES: [(&str, &str); 2] = [
    ("configuration_backpack_gpt2.py", include_str!("../../../assets/hugging_face/configuration_backpack_gpt2.py")),
    ("modeling_backpack_gpt2.py", include_str!("../../../assets/hugging_face/modeling_backpack_gpt2.py")),
];

/// Type of the exported tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DType {
    Fp32,
    Bf16,
    Fp16,
}

impl DType {
    pub(crate) fn kind(self) -> tch::Kind {
        match self {
            DType::Fp32 => tch::Kind::Float,
            DType::Bf16 => tch::Kind::BFloat16,
            DType::Fp16 => tch::Kind::Half,
        }
    }

    fn torch_name(self) -> &'static str {
        match self {
            DType::Fp32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::Fp16 => "float16",
        }
    }
}

/// `config.json`, which names the modelling files for a Backpack, `edited` tokens of which have edited senses.
pub(crate) fn config_json(config: &ModelConfig, dtype: DType, has_tokenizer: bool, edited: usize) -> Value {
    let mut json = config.to_hugging_face();
    json["torch_dtype"] = dtype.torch_name().into();
    if has_tokenizer {
        // Without it `pipeline` of transformers 4.46 loads no tokenizer.
        json["tokenizer_class"] = "GPT2Tokenizer".into();
    }
    if edited > 0 {
        json["num_edited_tokens"] = edited.into();
    }
    if config.architecture == Architecture::Backpack {
        json["auto_map"] = json!({
            "AutoConfig": "configuration_backpack_gpt2.BackpackGPT2Config",
            "AutoModelForCausalLM": "modeling_backpack_gpt2.BackpackGPT2LMHeadModel",
        });
    }
    json
}

/// `generation_config.json`: ends, and the padding rows of the vocabulary, which stand for
/// no token and must not be generated.
pub(crate) fn generation_config_json(config: &ModelConfig) -> Value {
    let mut json = json!({});
    if config.architecture == Architecture::Backpack {
        // The modelling file keeps nothing between tokens.
        json["use_cache"] = false.into();
    }
    if let Some(id) = config.end_of_text {
        json["bos_token_id"] = id.into();
        json["eos_token_id"] = id.into();
        json["pad_token_id"] = id.into();
    }
    let padding: Vec<i64> = (config.tokenizer_vocab_size()..config.vocab_size).collect();
    if !padding.is_empty() {
        json["suppress_tokens"] = padding.into();
    }
    json
}

/// Writes pretty JSON.
///
/// # Errors
/// Naming the file.
pub(crate) fn write_json(folder: &Path, name: &str, value: &Value) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("{} cannot be written", path.display()))
}

/// README.md: what the model is, how it was trained where that is known, how to use it.
pub(crate) fn model_card(config: &ModelConfig, state: Option<&TrainState>, has_plot: bool) -> String {
    let (what, title) = match config.architecture {
        Architecture::Backpack => (
            format!(
                "A [Backpack language model](https://aclanthology.org/2023.acl-long.506/) of {} parameters: \
                 each word has {} sense vectors that know nothing of their context, and a prediction is the sum of \
                 the senses of the words so far, weighted by the context.",
                config.num_parameters(),
                config.num_senses
            ),
            "Backpack",
        ),
        Architecture::Gpt2 => (
            format!("A GPT-2 of {} parameters, the baseline of a Backpack language model.", config.num_parameters()),
            "GPT-2",
        ),
    };
    let trust = if config.architecture == Architecture::Backpack { ", trust_remote_code=True" } else { "" };
    let mut card = format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- backpack\n---\n\n# {title}\n\n{what}\n\n\
         | | |\n|---|---|\n| width | {} |\n| layers | {} |\n| heads | {} |\n| context | {} tokens |\n| vocabulary | {} |\n",
        config.n_embd, config.n_layer, config.n_head, config.n_positions, config.vocab_size
    );
    if let Some(state) = state {
        card += &training(state, has_plot);
    }
    card += &format!(
        "\n## Use\n\nOffline, from this folder:\n\n```python\nimport torch\nfrom transformers import AutoConfig, AutoModelForCausalLM\n\n\
         path = \".\"\nconfig = AutoConfig.from_pretrained(path{trust})\n\
         model = AutoModelForCausalLM.from_pretrained(path, config=config{trust})\nmodel.eval()\n\
         ids = torch.randint(0, {}, (1, {}), dtype=torch.long)\n\
         probabilities = torch.softmax(model(ids).logits, dim=-1)\nprint(probabilities)\n```\n",
        config.vocab_size, config.n_positions
    );
    if config.tokenizer_vocab_size() == GPT2_END_OF_TEXT + 1 && config.vocab_size > config.tokenizer_vocab_size() {
        card += &format!(
            "\nThe last {} rows of the vocabulary are padding: inside the softmax, never generated.\n",
            config.vocab_size - config.tokenizer_vocab_size()
        );
    }
    card
}

/// How it was trained, from the checkpoint.
fn training(state: &TrainState, has_plot: bool) -> String {
    let get = |pointer: &str| state.config.pointer(pointer).map_or_else(|| "?".to_owned(), Value::to_string);
    let mut rows = vec![
        ("data", get("/data/path").trim_matches('"').to_owned()),
        ("steps", format!("{} of {}", state.step, get("/schedule/max_steps"))),
        ("tokens", state.tokens.to_string()),
        ("tokens a step", get("/batch/tokens")),
        ("sequence length", get("/data/sequence_length")),
        ("peak learning rate", get("/optimizer/learning_rate")),
        ("warm-up", format!("{} steps", get("/schedule/warmup_steps"))),
        ("decay", get("/schedule/decay").trim_matches('"').to_owned()),
        ("weight decay", get("/optimizer/weight_decay")),
        ("dropout", get("/model/dropout")),
        ("precision", get("/run/precision").trim_matches('"').to_owned()),
        ("seed", get("/run/seed")),
    ];
    if let Some(loss) = state.val_loss {
        rows.push(("validation loss", format!("{loss:.4} (perplexity {:.2})", loss.exp())));
    }
    if let Some(hash) = &state.manifest_sha256 {
        rows.push(("SHA-256 of the data's manifest", hash.clone()));
    }
    let rows: String = rows.iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect();
    let plot = if has_plot { "\n![Training and validation loss](loss.svg)\n" } else { "" };
    format!("\n## Training\n\n| | |\n|---|---|\n{rows}{plot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_padding_is_suppressed_and_other_vocabularies_have_none() {
        let published = ModelConfig { end_of_text: Some(50_256), ..ModelConfig::default() };
        let json = generation_config_json(&published);
        assert_eq!(json["suppress_tokens"], json!([50_257, 50_258, 50_259, 50_260, 50_261, 50_262, 50_263]));
        let other = ModelConfig { vocab_size: 311, end_of_text: Some(310), ..ModelConfig::default() };
        assert!(generation_config_json(&other).get("suppress_tokens").is_none());
    }

    #[test]
    fn only_a_backpack_names_modelling_files() {
        let backpack = config_json(&ModelConfig::default(), DType::Bf16, false, 2);
        assert_eq!(backpack["auto_map"]["AutoConfig"], "configuration_backpack_gpt2.BackpackGPT2Config");
        assert_eq!(backpack["torch_dtype"], "bfloat16");
        assert_eq!(backpack["num_edited_tokens"], 2);
        let gpt2 = ModelConfig { architecture: Architecture::Gpt2, ..ModelConfig::default() };
        assert!(config_json(&gpt2, DType::Fp32, true, 0).get("auto_map").is_none());
        assert!(!model_card(&gpt2, None, false).contains("trust_remote_code"));
    }
}
