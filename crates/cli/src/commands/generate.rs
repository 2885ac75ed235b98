//! The command `generate`.

use std::io::{self, Write};

use anyhow::{Result, ensure};
use clap::Args;
use model::Sampling;
use serde_json::json;

use crate::args::model::{ModelArgs, parse_ids};
use crate::args::sampling::SamplingArgs;

/// Generate text that continues a prompt
///
/// Samples at temperature 1 by default. Prints the prompt and its continuation;
/// without a tokenizer, prints the new token ids. The prompt must fit into the model's context.
/// Longer texts are generated with a sliding window of the last n_positions tokens.
///
/// Example: backpack generate --model runs/quickstart-model --prompt "It is a truth" --max-new-tokens 50 --top-k 50
#[derive(Debug, Args)]
pub(crate) struct Generate {
    #[command(flatten)]
    model: ModelArgs,
    /// Text to continue
    #[arg(long, value_name = "TEXT", required_unless_present = "prompt_ids", conflicts_with = "prompt_ids")]
    prompt: Option<String>,
    /// Token ids to continue, separated by commas; needs no tokenizer
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    prompt_ids: Option<String>,
    /// Number of tokens to generate
    #[arg(long, value_name = "N", default_value_t = 100)]
    max_new_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Always choose the most probable token; ignores --temperature, --top-k and --top-p
    #[arg(long)]
    greedy: bool,
    /// Print one JSON object: prompt_ids, new_ids, text (prompt and continuation; null without a
    /// tokenizer)
    #[arg(long)]
    json: bool,
}

impl Generate {
    /// Generates the tokens and prints them.
    pub(crate) fn run(self) -> Result<()> {
        let sampling = if self.greedy {
            if self.sampling.are_given() {
                eprintln!("warning: --greedy ignores --temperature, --top-k and --top-p");
            }
            Sampling::Greedy
        } else {
            self.sampling.with_seed(self.sampling.seed)
        };
        sampling.validate()?;
        ensure!(self.prompt.as_deref() != Some(""), "the prompt is empty: give at least one word");
        let model = self.model.load_with_sense_table()?;
        let (prompt_ids, tokenizer) = match (self.prompt, self.prompt_ids) {
            (Some(text), _) => {
                let tokenizer = self.model.tokenizer(&model)?;
                (tokenizer.encode(&text)?, Some(tokenizer))
            }
            (None, ids) => {
                let ids = parse_ids(&ids.unwrap_or_default())?;
                ensure!(!ids.is_empty(), "the prompt is empty: give at least one id");
                (ids, self.model.own_tokenizer()?)
            }
        };
        let new_ids = model::generate(&model, &prompt_ids, self.max_new_tokens, sampling)?;
        let all = [prompt_ids.as_slice(), new_ids.as_slice()].concat();
        let text = tokenizer.map(|t| t.decode(&all)).transpose()?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{}", json!({ "prompt_ids": prompt_ids, "new_ids": new_ids, "text": text }))?;
        } else if let Some(text) = text {
            writeln!(out, "{text}")?;
        } else {
            let ids: Vec<String> = new_ids.iter().map(i64::to_string).collect();
            writeln!(out, "{}", ids.join(","))?;
        }
        Ok(())
    }
}
