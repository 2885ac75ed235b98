//! The configuration of a model: the `[model]` section of a run's TOML file, and Hugging Face's
//! `config.json`.

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The end-of-text id of GPT-2, which is the largest id of its tokenizer. Embedding rows above it
/// are padding.
pub const GPT2_END_OF_TEXT: i64 = 50_256;

/// The architecture of a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Architecture {
    /// Sense vectors weighted by a GPT-2 trunk (Hewitt et al., ACL 2023).
    Backpack,
    /// The baseline: the same trunk, whose hidden states are the outputs.
    Gpt2,
}

/// The `[model]` section. Keys that are absent have the values of the published Backpack-GPT2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ModelConfig {
    /// The architecture: a Backpack or its GPT-2 baseline.
    pub architecture: Architecture,
    /// Width D of embeddings, hidden states and sense vectors.
    pub n_embd: i64,
    /// Number of attention heads H of the trunk.
    pub n_head: i64,
    /// Number of transformer blocks of the trunk.
    pub n_layer: i64,
    /// Width of the trunk's MLP; 4 `n_embd` if absent. The sense block does not use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub n_inner: Option<i64>,
    /// Number of sense vectors L per token.
    pub num_senses: i64,
    /// Hidden width of the last sense MLP, in multiples of `n_embd`.
    pub sense_intermediate_scale: i64,
    /// Width of the sense block's MLP; 4 `n_embd` if absent. Only ablations of the authors set
    /// another width, and the published config.json has no key for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sense_block_inner: Option<i64>,
    /// Maximum length of the context, in tokens.
    pub n_positions: i64,
    /// Number of rows V of the embedding: the ids of the tokenizer and padding.
    pub vocab_size: i64,
    /// Dropout probability of embeddings, attention and residual branches in training.
    pub dropout: f64,
    /// Whether to divide attention scores by (layer index + 1).
    pub scale_attn_by_inverse_layer_idx: bool,
    /// Added to the variance in every LayerNorm. Only a config.json can set it.
    #[serde(skip, default = "default_layer_norm_epsilon")]
    pub layer_norm_epsilon: f64,
    /// Id that separates documents, if known. Only a config.json can set it.
    #[serde(skip)]
    pub end_of_text: Option<i64>,
}

fn default_layer_norm_epsilon() -> f64 {
    1e-5 // the value of GPT-2
}

impl Default for ModelConfig {
    /// The published Backpack-GPT2: GPT-2 small with 16 senses; 170,083,584 parameters.
    fn default() -> Self {
        ModelConfig {
            architecture: Architecture::Backpack,
            n_embd: 768,
            n_head: 12,
            n_layer: 12,
            n_inner: None,
            num_senses: 16,
            sense_intermediate_scale: 4,
            sense_block_inner: None,
            n_positions: 512,
            vocab_size: 50_264, // 50,257 padded to a multiple of 8
            dropout: 0.1,
            scale_attn_by_inverse_layer_idx: true,
            layer_norm_epsilon: default_layer_norm_epsilon(),
            end_of_text: None,
        }
    }
}

impl ModelConfig {
    /// Returns the width of one attention head.
    pub fn head_size(&self) -> i64 {
        self.n_embd / self.n_head
    }

    /// Returns the width of the trunk's MLP.
    pub fn inner_size(&self) -> i64 {
        self.n_inner.unwrap_or(4 * self.n_embd)
    }

    /// Returns the width of the sense block's MLP.
    pub fn sense_block_size(&self) -> i64 {
        self.sense_block_inner.unwrap_or(4 * self.n_embd)
    }

    /// Returns the vocabulary size of the tokenizer. Ids at or above it are padding, which takes
    /// part in the softmax in training and is never generated.
    pub fn tokenizer_vocab_size(&self) -> i64 {
        match self.end_of_text {
            Some(GPT2_END_OF_TEXT) => self.vocab_size.min(GPT2_END_OF_TEXT + 1),
            _ => self.vocab_size,
        }
    }

    /// Checks that the values form a valid network.
    ///
    /// # Errors
    /// Names the invalid key.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("n_embd", self.n_embd),
            ("n_head", self.n_head),
            ("n_layer", self.n_layer),
            ("n_inner", self.inner_size()),
            ("num_senses", self.num_senses),
            ("sense_intermediate_scale", self.sense_intermediate_scale),
            ("sense_block_inner", self.sense_block_size()),
            ("n_positions", self.n_positions),
            ("vocab_size", self.vocab_size),
        ];
        for (key, value) in sizes {
            ensure!((1..=1 << 24).contains(&value), "{key} is {value}: it must be between 1 and 16777216");
        }
        ensure!(
            self.n_embd % self.n_head == 0,
            "n_embd ({}) must be a multiple of n_head ({})",
            self.n_embd,
            self.n_head
        );
        if self.architecture == Architecture::Backpack {
            ensure!(
                self.n_embd % self.num_senses == 0,
                "n_embd ({}) must be a multiple of num_senses ({}), because each sense has n_embd / num_senses query and key channels",
                self.n_embd,
                self.num_senses
            );
        }
        ensure!((0.0..1.0).contains(&self.dropout), "dropout is {}: it must be at least 0 and below 1", self.dropout);
        ensure!(
            self.layer_norm_epsilon > 0.0,
            "layer_norm_epsilon is {}: it must be positive",
            self.layer_norm_epsilon
        );
        Ok(())
    }

    /// Parses a Hugging Face `config.json` of the published Backpack or of a GPT-2.
    ///
    /// # Errors
    /// Names the key that is missing, has the wrong type, or has an unsupported value.
    pub fn from_hugging_face(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text).context("it is not JSON")?;
        ensure!(json.is_object(), "it is not a JSON object");
        let integer = |key: &str| -> Result<i64> {
            let value = json.get(key).with_context(|| format!("key {key} is missing"))?;
            value.as_i64().with_context(|| format!("key {key} is {value}, not a whole number"))
        };
        let optional = |key: &str| -> Result<Option<i64>> {
            if json.get(key).is_none_or(Value::is_null) { Ok(None) } else { integer(key).map(Some) }
        };
        let number = |key: &str, default: f64| -> Result<f64> {
            match json.get(key) {
                None | Some(Value::Null) => Ok(default),
                Some(value) => value.as_f64().with_context(|| format!("key {key} is {value}, not a number")),
            }
        };
        let flag = |key: &str, default: bool| -> Result<bool> {
            match json.get(key) {
                None | Some(Value::Null) => Ok(default),
                Some(value) => value.as_bool().with_context(|| format!("key {key} is {value}, not true or false")),
            }
        };
        let is_backpack = match json.pointer("/architectures/0").and_then(Value::as_str) {
            Some("BackpackGPT2LMHeadModel") => true,
            Some("GPT2LMHeadModel" | "GPT2Model") => false,
            Some(other) => {
                bail!("architecture {other} is not supported: use BackpackGPT2LMHeadModel or GPT2LMHeadModel")
            }
            None => json.get("num_senses").is_some(),
        };
        for (key, only) in [("activation_function", "gelu_new"), ("model_type", "gpt2")] {
            if let Some(value) = json.get(key).and_then(Value::as_str) {
                ensure!(value == only, "key {key} is \"{value}\": only \"{only}\" is supported");
            }
        }
        for (key, only) in [("scale_attn_weights", true), ("tie_word_embeddings", true)] {
            ensure!(flag(key, only)? == only, "key {key} is {}: only {only} is supported", !only);
        }
        let defaults = ModelConfig::default();
        let config = ModelConfig {
            architecture: if is_backpack { Architecture::Backpack } else { Architecture::Gpt2 },
            n_embd: integer("n_embd")?,
            n_head: integer("n_head")?,
            n_layer: integer("n_layer")?,
            n_inner: optional("n_inner")?,
            num_senses: if is_backpack { integer("num_senses")? } else { defaults.num_senses },
            sense_intermediate_scale: if is_backpack {
                optional("sense_intermediate_scale")?.unwrap_or(defaults.sense_intermediate_scale)
            } else {
                defaults.sense_intermediate_scale
            },
            sense_block_inner: if is_backpack { optional("sense_block_inner")? } else { None },
            n_positions: integer("n_positions")?,
            vocab_size: integer("vocab_size")?,
            dropout: number("resid_pdrop", defaults.dropout)?,
            // The default is true in the config class of the published Backpack, and false in that
            // of GPT-2.
            scale_attn_by_inverse_layer_idx: flag("scale_attn_by_inverse_layer_idx", is_backpack)?,
            layer_norm_epsilon: number("layer_norm_epsilon", defaults.layer_norm_epsilon)?,
            end_of_text: optional("eos_token_id")?,
        };
        config.validate()?;
        Ok(config)
    }

    /// Returns the `config.json` of this model, with the keys of the published one.
    pub fn to_hugging_face(&self) -> Value {
        let mut json = json!({
            "model_type": "gpt2",
            "architectures": [match self.architecture {
                Architecture::Backpack => "BackpackGPT2LMHeadModel",
                Architecture::Gpt2 => "GPT2LMHeadModel",
            }],
            "vocab_size": self.vocab_size,
            "n_positions": self.n_positions,
            "n_ctx": self.n_positions,
            "n_embd": self.n_embd,
            "n_layer": self.n_layer,
            "n_head": self.n_head,
            "n_inner": self.n_inner,
            "activation_function": "gelu_new",
            "resid_pdrop": self.dropout,
            "embd_pdrop": self.dropout,
            "attn_pdrop": self.dropout,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "initializer_range": 0.02,
            "scale_attn_weights": true,
            "scale_attn_by_inverse_layer_idx": self.scale_attn_by_inverse_layer_idx,
            "reorder_and_upcast_attn": false,
            "tie_word_embeddings": true,
            "bos_token_id": self.end_of_text,
            "eos_token_id": self.end_of_text,
            "torch_dtype": "float32",
        });
        if self.architecture == Architecture::Backpack {
            json["num_senses"] = json!(self.num_senses);
            json["sense_intermediate_scale"] = json!(self.sense_intermediate_scale);
            if let Some(width) = self.sense_block_inner {
                json["sense_block_inner"] = json!(width);
            }
        }
        json
    }

    /// Checks that a model has the shapes of this section of a run's TOML file. Dropout may differ.
    /// So may `n_inner` if the section does not set it, and keys that only a config.json can set.
    ///
    /// # Errors
    /// Names every key that differs, with both values.
    pub fn require_same_shapes(&self, other: &ModelConfig) -> Result<()> {
        let shapes = |c: &ModelConfig| {
            let same = ModelConfig {
                dropout: 0.0,
                n_inner: self.n_inner.map(|_| c.inner_size()),
                sense_block_inner: Some(c.sense_block_size()),
                layer_norm_epsilon: default_layer_norm_epsilon(),
                end_of_text: None,
                ..c.clone()
            };
            same.to_hugging_face()
        };
        let (expected, actual) = (shapes(self), shapes(other));
        let differences: Vec<String> = expected
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| actual.get(key) != Some(value))
            .map(|(key, value)| format!("{key} is {value} here and {} there", actual.get(key).unwrap_or(&Value::Null)))
            .collect();
        ensure!(differences.is_empty(), "{}", differences.join(", "));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_json_round_trips() {
        let config = ModelConfig {
            n_inner: Some(100),
            num_senses: 4,
            sense_block_inner: Some(192),
            end_of_text: Some(310),
            dropout: 0.2,
            ..ModelConfig::default()
        };
        let text = config.to_hugging_face().to_string();
        assert_eq!(ModelConfig::from_hugging_face(&text).unwrap(), config);
        let gpt2 = ModelConfig { architecture: Architecture::Gpt2, ..ModelConfig::default() };
        assert_eq!(ModelConfig::from_hugging_face(&gpt2.to_hugging_face().to_string()).unwrap(), gpt2);
    }

    #[test]
    fn errors_of_config_json_name_the_key() {
        let good = ModelConfig::default().to_hugging_face();
        let with = |key: &str, value: Value| {
            let mut json = good.clone();
            json[key] = value;
            ModelConfig::from_hugging_face(&json.to_string()).unwrap_err().to_string()
        };
        assert_eq!(with("n_embd", json!("wide")), "key n_embd is \"wide\", not a whole number");
        assert_eq!(with("num_senses", Value::Null), "key num_senses is null, not a whole number");
        assert!(with("num_senses", json!(7)).contains("must be a multiple of num_senses (7)"));
        assert!(with("activation_function", json!("relu")).contains("only \"gelu_new\""));
        assert!(with("tie_word_embeddings", json!(false)).contains("tie_word_embeddings is false"));
        assert!(with("n_layer", json!(-1)).contains("n_layer is -1"));
        assert!(with("architectures", json!(["LlamaForCausalLM"])).contains("LlamaForCausalLM"));
        let mut without = good.clone();
        without.as_object_mut().unwrap().remove("num_senses");
        let error = ModelConfig::from_hugging_face(&without.to_string()).unwrap_err().to_string();
        assert_eq!(error, "key num_senses is missing");
    }

    #[test]
    fn inverse_layer_scale_is_the_default_of_backpacks_only() {
        for (architecture, default) in [(Architecture::Backpack, true), (Architecture::Gpt2, false)] {
            let mut json = ModelConfig { architecture, ..ModelConfig::default() }.to_hugging_face();
            json.as_object_mut().unwrap().remove("scale_attn_by_inverse_layer_idx");
            let config = ModelConfig::from_hugging_face(&json.to_string()).unwrap();
            assert_eq!(config.scale_attn_by_inverse_layer_idx, default);
        }
    }

    #[test]
    fn only_the_vocabulary_of_gpt2_has_padding_rows() {
        let published = ModelConfig { end_of_text: Some(50_256), ..ModelConfig::default() };
        assert_eq!(published.tokenizer_vocab_size(), 50_257);
        let other = ModelConfig { vocab_size: 311, end_of_text: Some(10), ..ModelConfig::default() };
        assert_eq!(other.tokenizer_vocab_size(), 311);
    }

    #[test]
    fn shapes_are_compared_without_dropout() {
        let ours = ModelConfig::default();
        let theirs = ModelConfig { dropout: 0.0, n_inner: Some(3072), ..ModelConfig::default() };
        ours.require_same_shapes(&theirs).unwrap();
        let error = ours.require_same_shapes(&ModelConfig { n_layer: 6, ..theirs.clone() }).unwrap_err();
        assert_eq!(error.to_string(), "n_layer is 12 here and 6 there");
        // If the TOML file sets no width of the MLP, the model may have any.
        let narrow = ModelConfig { n_inner: Some(100), layer_norm_epsilon: 1e-6, ..theirs };
        ours.require_same_shapes(&narrow).unwrap();
        let error = ModelConfig { n_inner: Some(200), ..ours }.require_same_shapes(&narrow).unwrap_err();
        assert_eq!(error.to_string(), "n_inner is 200 here and 100 there");
    }
}
