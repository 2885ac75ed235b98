//! The model card (README.md) of an exported model.

use model::{Architecture, GPT2_END_OF_TEXT, ModelConfig};
use serde_json::Value;
use trainer::TrainState;

/// Contents of README.md: a description of the model, its training if `state` is given, and its
/// use.
pub(crate) fn model_card(config: &ModelConfig, state: Option<&TrainState>, has_plot: bool) -> String {
    let (description, title) = match config.architecture {
        Architecture::Backpack => (
            format!(
                "A [Backpack language model](https://aclanthology.org/2023.acl-long.506/) of {} parameters: \
                 each word has {} context-independent sense vectors, and a prediction is the sum of the senses of \
                 the words so far, with weights that depend on the context.",
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
    let trust_argument = if config.architecture == Architecture::Backpack { ", trust_remote_code=True" } else { "" };
    let mut card = format!(
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- backpack\n---\n\n# {title}\n\n{description}\n\n\
         | | |\n|---|---|\n| width | {} |\n| layers | {} |\n| heads | {} |\n| context | {} tokens |\n| vocabulary | {} |\n",
        config.n_embd, config.n_layer, config.n_head, config.n_positions, config.vocab_size
    );
    if let Some(state) = state {
        card += &training_section(state, has_plot);
    }
    card += &format!(
        "\n## Use\n\nOffline, from this directory:\n\n```python\nimport torch\nfrom transformers import AutoConfig, AutoModelForCausalLM\n\n\
         path = \".\"\nconfig = AutoConfig.from_pretrained(path{trust_argument})\n\
         model = AutoModelForCausalLM.from_pretrained(path, config=config{trust_argument})\nmodel.eval()\n\
         ids = torch.randint(0, {}, (1, {}), dtype=torch.long)\n\
         probabilities = torch.softmax(model(ids).logits, dim=-1)\nprint(probabilities)\n```\n",
        config.vocab_size, config.n_positions
    );
    if config.tokenizer_vocab_size() == GPT2_END_OF_TEXT + 1 && config.vocab_size > config.tokenizer_vocab_size() {
        card += &format!(
            "\nThe last {} rows of the vocabulary are padding. They take part in the softmax, but are never generated.\n",
            config.vocab_size - config.tokenizer_vocab_size()
        );
    }
    card
}

/// The section on training, from the state of the checkpoint.
fn training_section(state: &TrainState, has_plot: bool) -> String {
    let get = |pointer: &str| state.config.pointer(pointer).map_or_else(|| "?".to_owned(), Value::to_string);
    let mut rows = vec![
        ("data", get("/data/path").trim_matches('"').to_owned()),
        ("steps", format!("{} of {}", state.step, get("/schedule/max_steps"))),
        ("tokens", state.tokens.to_string()),
        ("tokens per step", get("/batch/tokens_per_step")),
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
        rows.push(("SHA-256 of the data manifest", hash.clone()));
    }
    let rows: String = rows.iter().map(|(name, value)| format!("| {name} | {value} |\n")).collect();
    let plot = if has_plot { "\n![Training and validation loss](loss.svg)\n" } else { "" };
    format!("\n## Training\n\n| | |\n|---|---|\n{rows}{plot}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_backpack_needs_remote_code() {
        assert!(model_card(&ModelConfig::default(), None, false).contains("trust_remote_code"));
        let gpt2 = ModelConfig { architecture: Architecture::Gpt2, ..ModelConfig::default() };
        assert!(!model_card(&gpt2, None, false).contains("trust_remote_code"));
    }
}
