//! Configuration files and modeling files of an exported Hugging Face directory.

use clap::ValueEnum;
use model::{Architecture, ModelConfig};
use serde_json::{Value, json};

/// The model in PyTorch, for `trust_remote_code`. Part of this project, under its license.
pub(crate) const MODELING_FILES: [(&str, &str); 2] = [
    ("configuration_backpack_gpt2.py", include_str!("../../../assets/hugging_face/configuration_backpack_gpt2.py")),
    ("modeling_backpack_gpt2.py", include_str!("../../../assets/hugging_face/modeling_backpack_gpt2.py")),
];

/// Data type of the exported tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DType {
    /// 32-bit floating point
    Fp32,
    /// 16-bit bfloat16
    Bf16,
    /// 16-bit floating point
    Fp16,
}

impl DType {
    /// The data type as tch names it.
    pub(crate) fn kind(self) -> tch::Kind {
        match self {
            DType::Fp32 => tch::Kind::Float,
            DType::Bf16 => tch::Kind::BFloat16,
            DType::Fp16 => tch::Kind::Half,
        }
    }

    /// The data type as `config.json` names it.
    fn torch_name(self) -> &'static str {
        match self {
            DType::Fp32 => "float32",
            DType::Bf16 => "bfloat16",
            DType::Fp16 => "float16",
        }
    }
}

/// Contents of `config.json`. For a Backpack it names the modeling files. `num_edited` is the
/// number of tokens with edited senses.
pub(crate) fn config_json(config: &ModelConfig, dtype: DType, has_tokenizer: bool, num_edited: usize) -> Value {
    let mut json = config.to_hugging_face();
    json["torch_dtype"] = dtype.torch_name().into();
    if has_tokenizer {
        // Without this key, `pipeline` of transformers 4.46 does not load the tokenizer.
        json["tokenizer_class"] = "GPT2Tokenizer".into();
    }
    if num_edited > 0 {
        json["num_edited_tokens"] = num_edited.into();
    }
    if config.architecture == Architecture::Backpack {
        json["auto_map"] = json!({
            "AutoConfig": "configuration_backpack_gpt2.BackpackGPT2Config",
            "AutoModelForCausalLM": "modeling_backpack_gpt2.BackpackGPT2LMHeadModel",
        });
    }
    json
}

/// Contents of `generation_config.json`: the end-of-text token, and the padding rows of the
/// vocabulary, which belong to no token and must not be generated.
pub(crate) fn generation_config_json(config: &ModelConfig) -> Value {
    let mut json = json!({});
    if config.architecture == Architecture::Backpack {
        // The modeling file does not implement a KV cache.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_rows_of_the_published_vocabulary_are_suppressed() {
        let published = ModelConfig { end_of_text: Some(50_256), ..ModelConfig::default() };
        let json = generation_config_json(&published);
        assert_eq!(json["suppress_tokens"], json!([50_257, 50_258, 50_259, 50_260, 50_261, 50_262, 50_263]));
        let other = ModelConfig { vocab_size: 311, end_of_text: Some(310), ..ModelConfig::default() };
        assert!(generation_config_json(&other).get("suppress_tokens").is_none());
    }

    #[test]
    fn only_a_backpack_names_modeling_files() {
        let backpack = config_json(&ModelConfig::default(), DType::Bf16, false, 2);
        assert_eq!(backpack["auto_map"]["AutoConfig"], "configuration_backpack_gpt2.BackpackGPT2Config");
        assert_eq!(backpack["torch_dtype"], "bfloat16");
        assert_eq!(backpack["num_edited_tokens"], 2);
        let gpt2 = ModelConfig { architecture: Architecture::Gpt2, ..ModelConfig::default() };
        assert!(config_json(&gpt2, DType::Fp32, true, 0).get("auto_map").is_none());
    }
}
