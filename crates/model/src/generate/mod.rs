//! Generation of text, one token at a time.

mod incremental_decoder;
mod sampling;

use anyhow::{Result, ensure};

use crate::language_model::LanguageModel;

pub use incremental_decoder::{IncrementalDecoder, SenseScale};
pub use sampling::Sampling;

/// Generates `max_new_tokens` tokens after a prompt and returns them, with the model's
/// [evaluation options](LanguageModel::evaluation_options). If the text exceeds the context, the
/// window slides: the model reads the last `n_positions` tokens, at positions from 0. The
/// end-of-text id is a token like any other. Padding ids are never generated.
///
/// # Errors
/// The prompt is empty, longer than the context, or has ids outside the vocabulary; the sampling
/// settings are invalid; or logits are not finite.
pub fn generate(model: &LanguageModel, prompt: &[i64], max_new_tokens: usize, sampling: Sampling) -> Result<Vec<i64>> {
    generate_scaled(model, prompt, max_new_tokens, sampling, None)
}

/// Generates like [`generate`]. For a Backpack, `scale` multiplies the contextualization weights
/// before each new token.
///
/// # Errors
/// Returns the errors of [`generate`].
pub fn generate_scaled(
    model: &LanguageModel,
    prompt: &[i64],
    max_new_tokens: usize,
    sampling: Sampling,
    mut scale: Option<&mut SenseScale<'_>>,
) -> Result<Vec<i64>> {
    sampling.validate()?;
    model.check_ids(prompt)?;
    let mut decoder = IncrementalDecoder::new(model, model.evaluation_options());
    let mut ids = prompt.to_vec();
    let mut decoded = 0;
    for step in 0..max_new_tokens {
        let logits = decoder.append_scaled(&ids[decoded..], scale.as_deref_mut());
        let logits = logits.narrow(0, 0, model.config().tokenizer_vocab_size());
        decoded = ids.len();
        let logits: Vec<f32> = Vec::try_from(logits)?;
        ensure!(
            logits.iter().all(|l| l.is_finite()),
            "the logits of new token {step} are not finite: an edit's factor is too large, or the weights are broken"
        );
        ids.push(sampling.choose(&logits, step as u64) as i64);
    }
    Ok(ids.split_off(prompt.len()))
}
