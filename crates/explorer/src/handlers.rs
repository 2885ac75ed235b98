//! What each question of the API is answered with. Weights are rounded to four decimals,
//! contributions to seven: a shorter answer, whose parts still sum to the logit but for that rounding.

use evals::{CandidateToken, ScoredToken, SenseView, TextContext};
use model::Sampling;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::api::{
    ContributionsRequest, GenerateRequest, MOST_NEW_TOKENS, MOST_WEIGHTS, MOST_WORDS, PositionRequest, SensesRequest,
    WeightsRequest, check_number, too_large,
};
use crate::error::ApiError;
use crate::state::AppState;

pub(crate) fn senses(explorer: &mut AppState, asked: SensesRequest) -> Result<Value, ApiError> {
    check_number("top", asked.top, MOST_WORDS)?;
    let edits = explorer.edits(asked.edits.as_ref())?;
    let token = explorer.token(asked.word, asked.token)?;
    let views = explorer.model.with_edits(&edits, |model| evals::sense_views(model, token, asked.top))?;
    let scored = |words: &[ScoredToken]| -> Vec<Value> {
        words.iter().map(|w| with(explorer.word(w.id), [("logit", w.logit)])).collect()
    };
    let sense = |view: &SenseView| {
        json!({
            "sense": view.sense,
            "norm": view.norm,
            "raises": scored(&view.raises),
            "lowers": scored(&view.lowers),
        })
    };
    let mut answer = explorer.word(token);
    answer["senses"] = views.iter().map(sense).collect();
    Ok(answer)
}

pub(crate) fn reading(explorer: &mut AppState, asked: PositionRequest) -> Result<Value, ApiError> {
    check_number("top", asked.top, MOST_WORDS)?;
    let edits = explorer.edits(asked.edits.as_ref())?;
    let context = explorer.context(asked.text, asked.ids)?;
    let position = asked.position.unwrap_or(context.ids.len() - 1);
    let next = explorer.model.with_edits(&edits, |model| {
        evals::TextAnalysis::at_position(model, &context, position)?.next_tokens(position, asked.top)
    })?;
    Ok(json!({
        "tokens": words(explorer, &context.ids),
        "position": position,
        "next": next.into_iter().map(|next| candidate(explorer, next)).collect::<Vec<_>>(),
        "weights": rows(&weights_at(&context, position), 4)?,
    }))
}

pub(crate) fn weights(explorer: &mut AppState, asked: WeightsRequest) -> Result<Value, ApiError> {
    let num_senses = explorer.model.config().num_senses as usize;
    let senses = asked.senses.unwrap_or_else(|| (0..num_senses).collect());
    if let Some(sense) = senses.iter().find(|sense| **sense >= num_senses) {
        return Err(ApiError::bad(format!("there is no sense {sense}: the model has 0 to {}", num_senses - 1)));
    }
    let ids = explorer.ids(asked.text, asked.ids)?;
    let length = ids.len();
    let each = length * (length + 1) / 2;
    if senses.len() * each > MOST_WEIGHTS {
        return Err(too_large(format!(
            "{} senses of {length} tokens have {} weights, more than the {MOST_WEIGHTS} of one answer: ask for fewer senses",
            senses.len(),
            senses.len() * each
        )));
    }
    let context = explorer.context(None, Some(ids))?;
    let one = |sense: usize| -> Result<Value, ApiError> {
        // The triangle of positions that a word can see.
        let mut square = rows(&context.weights.get(sense as i64), 4)?;
        square.iter_mut().enumerate().for_each(|(position, row)| row.truncate(position + 1));
        Ok(json!({ "sense": sense, "weights": square }))
    };
    let senses = senses.into_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "tokens": words(explorer, &context.ids), "senses": senses }))
}

pub(crate) fn contributions(explorer: &mut AppState, asked: ContributionsRequest) -> Result<Value, ApiError> {
    let edits = explorer.edits(asked.edits.as_ref())?;
    let token = explorer.token(asked.word, asked.token)?;
    let context = explorer.context(asked.text, asked.ids)?;
    let position = asked.position.unwrap_or(context.ids.len() - 1);
    let (next, parts) = explorer.model.with_edits(&edits, |model| {
        let reading = evals::TextAnalysis::at_position(model, &context, position)?;
        Ok((reading.candidate(position, token)?, reading.contributions(position, token)?))
    })?;
    Ok(json!({
        "tokens": words(explorer, &context.ids),
        "position": position,
        "next": candidate(explorer, next),
        "weights": rows(&weights_at(&context, position), 4)?,
        "contributions": rows(&parts.tr(), 7)?,
    }))
}

pub(crate) fn next(explorer: &mut AppState, asked: PositionRequest) -> Result<Value, ApiError> {
    check_number("top", asked.top, MOST_WORDS)?;
    let edits = explorer.edits(asked.edits.as_ref())?;
    let context = explorer.context(asked.text, asked.ids)?;
    let position = asked.position.unwrap_or(context.ids.len() - 1);
    let read = |model: &_| {
        let reading = evals::TextAnalysis::at_position(model, &context, position)?;
        let best = reading.next_tokens(position, asked.top)?.into_iter().map(|next| next.id).collect::<Vec<i64>>();
        Ok((best, reading.logits_after(position)?))
    };
    let (best_before, before) = read(&explorer.model)?;
    let (mut chosen, after) = explorer.model.with_edits(&edits, read)?;
    for id in best_before {
        if !chosen.contains(&id) {
            chosen.push(id);
        }
    }
    let (log_p, log_q) = (before.log_softmax(-1, Kind::Double), after.log_softmax(-1, Kind::Double));
    let divergence = (log_p.exp() * (&log_p - &log_q)).sum(Kind::Double).double_value(&[]);
    let word_of = |id: &i64| {
        let side = |logits: &Tensor, log: &Tensor| json!({ "logit": logits.double_value(&[*id]), "probability": log.double_value(&[*id]).exp() });
        let mut word = explorer.word(*id);
        word["before"] = side(&before, &log_p);
        word["after"] = side(&after, &log_q);
        word
    };
    Ok(json!({
        "tokens": words(explorer, &context.ids),
        "position": position,
        "words": chosen.iter().map(word_of).collect::<Vec<_>>(),
        // Rounding can leave a little less than nothing.
        "divergence": divergence.max(0.0),
    }))
}

pub(crate) fn generate(explorer: &mut AppState, asked: GenerateRequest) -> Result<Value, ApiError> {
    check_number("max_new_tokens", asked.max_new_tokens, MOST_NEW_TOKENS)?;
    let sampling = if asked.greedy {
        if asked.temperature.is_some() || asked.top_k.is_some() || asked.top_p.is_some() {
            return Err(ApiError::bad("\"greedy\" leaves temperature, top_k and top_p without effect: leave them out"));
        }
        Sampling::Greedy
    } else {
        let temperature = asked.temperature.unwrap_or(1.0);
        Sampling::Random { temperature, top_k: asked.top_k, top_p: asked.top_p, seed: asked.seed }
    };
    sampling.validate()?;
    let edits = explorer.edits(asked.edits.as_ref())?;
    let ids = explorer.ids(asked.text, asked.ids)?;
    let (length, context) = (ids.len(), explorer.model.config().n_positions as usize);
    // Past the context the window slides and nothing that is kept can be used: each token would take a whole pass.
    if length + asked.max_new_tokens > context {
        return Err(too_large(format!(
            "the text has {length} tokens, after which the model's context of {context} has room for {}: shorten it, or ask for fewer new tokens",
            context - length
        )));
    }
    let new =
        explorer.model.with_edits(&edits, |model| model::generate(model, &ids, asked.max_new_tokens, sampling))?;
    Ok(json!({
        "prompt": words(explorer, &ids),
        "new": words(explorer, &new),
        "text": explorer.tokenizer.decode(&[ids, new].concat())?,
    }))
}

fn words(explorer: &AppState, ids: &[i64]) -> Vec<Value> {
    ids.iter().map(|&id| explorer.word(id)).collect()
}

fn candidate(explorer: &AppState, CandidateToken { id, logit, probability }: CandidateToken) -> Value {
    with(explorer.word(id), [("logit", logit), ("probability", probability)])
}

fn with<const N: usize>(mut word: Value, numbers: [(&str, f64); N]) -> Value {
    for (key, number) in numbers {
        word[key] = number.into();
    }
    word
}

/// How much each sense of each word up to `position` counts there, `[L, position + 1]`.
fn weights_at(context: &TextContext, position: usize) -> Tensor {
    context.weights.select(1, position as i64).narrow(1, 0, position as i64 + 1)
}

/// A matrix row by row, to so many decimals.
fn rows(matrix: &Tensor, decimals: i32) -> Result<Vec<Vec<f64>>, ApiError> {
    let (width, scale) = (matrix.size()[1] as usize, 10f64.powi(decimals));
    let numbers = Vec::<f64>::try_from(matrix.to_kind(Kind::Double).reshape([-1])).map_err(anyhow::Error::from)?;
    let round = |number: &f64| (number * scale).round() / scale;
    Ok(numbers.chunks(width).map(|row| row.iter().map(round).collect()).collect())
}
