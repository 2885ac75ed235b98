//! The handlers of the API's endpoints.
//!
//! Weights are rounded to four decimals and contributions to seven, to shorten the responses. The
//! sum of contributions equals the logit up to this rounding.

use evals::{CandidateToken, ScoredToken, SenseView, TextContext};
use model::Sampling;
use serde_json::{Value, json};
use tch::{Kind, Tensor};

use crate::api::{
    self, ContributionsRequest, Endpoint, GenerateRequest, MAX_NEW_TOKENS, MAX_TOP, MAX_WEIGHTS, PositionRequest,
    SensesRequest, WeightsRequest, check_number, parse_body,
};
use crate::error::{ApiError, ApiResult};
use crate::state::AppState;

/// Handles a request to an endpoint.
pub(crate) fn handle(state: &mut AppState, endpoint: Endpoint, body: &[u8]) -> ApiResult {
    let response = match endpoint {
        Endpoint::Model => Ok(model_description(state)),
        Endpoint::Senses => senses(state, parse_body(body)?),
        Endpoint::Reading => reading(state, parse_body(body)?),
        Endpoint::Weights => weights(state, parse_body(body)?),
        Endpoint::Contributions => contributions(state, parse_body(body)?),
        Endpoint::Next => next(state, parse_body(body)?),
        Endpoint::Generate => generate(state, parse_body(body)?),
    }?;
    Ok(response.to_string().into_bytes())
}

fn model_description(state: &AppState) -> Value {
    let config = state.model.config();
    let edited = state.model.edited_tokens();
    let parameters: i64 = state.model.parameters().iter().map(|(_, tensor)| tensor.numel() as i64).sum();
    json!({
        "name": state.name,
        "parameters": parameters,
        "num_senses": config.num_senses,
        "n_embd": config.n_embd,
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_positions": config.n_positions,
        "vocab_size": config.vocab_size,
        "edited": edited.iter().map(|&id| state.token_json(id)).collect::<Vec<_>>(),
        "limits": api::limits(),
    })
}

fn senses(state: &mut AppState, request: SensesRequest) -> Result<Value, ApiError> {
    check_number("top", request.top, MAX_TOP)?;
    let edits = state.parse_edits(request.edits.as_ref())?;
    let token = state.parse_token(request.word, request.token)?;
    let views = state.model.with_edits(&edits, |model| evals::sense_views(model, token, request.top))?;
    let scored = |words: &[ScoredToken]| -> Vec<Value> {
        words.iter().map(|w| with_numbers(state.token_json(w.id), [("logit", w.logit)])).collect()
    };
    let sense = |view: &SenseView| {
        json!({
            "sense": view.sense,
            "norm": view.norm,
            "raises": scored(&view.raises),
            "lowers": scored(&view.lowers),
        })
    };
    let mut response = state.token_json(token);
    response["senses"] = views.iter().map(sense).collect();
    Ok(response)
}

fn reading(state: &mut AppState, request: PositionRequest) -> Result<Value, ApiError> {
    check_number("top", request.top, MAX_TOP)?;
    let edits = state.parse_edits(request.edits.as_ref())?;
    let context = state.text_context(request.text, request.ids)?;
    let position = request.position.unwrap_or(context.ids.len() - 1);
    let next = state.model.with_edits(&edits, |model| {
        evals::TextAnalysis::at_position(model, &context, position)?.next_tokens(position, request.top)
    })?;
    Ok(json!({
        "tokens": tokens_json(state, &context.ids),
        "position": position,
        "next": next.into_iter().map(|next| candidate_json(state, next)).collect::<Vec<_>>(),
        "weights": rounded_rows(&weights_at(&context, position), 4)?,
    }))
}

fn weights(state: &mut AppState, request: WeightsRequest) -> Result<Value, ApiError> {
    let num_senses = state.model.config().num_senses as usize;
    let senses = request.senses.unwrap_or_else(|| (0..num_senses).collect());
    if let Some(sense) = senses.iter().find(|sense| **sense >= num_senses) {
        return Err(ApiError::bad_request(format!("there is no sense {sense}: the model has 0 to {}", num_senses - 1)));
    }
    let ids = state.parse_text(request.text, request.ids)?;
    let length = ids.len();
    let each = length * (length + 1) / 2;
    if senses.len() * each > MAX_WEIGHTS {
        return Err(ApiError::too_large(format!(
            "{} senses of {length} tokens have {} weights, more than the limit of {MAX_WEIGHTS} per response: ask for fewer senses",
            senses.len(),
            senses.len() * each
        )));
    }
    let context = state.text_context(None, Some(ids))?;
    let one = |sense: usize| -> Result<Value, ApiError> {
        // Only the lower triangle: the weights of later positions are 0.
        let mut square = rounded_rows(&context.weights.get(sense as i64), 4)?;
        square.iter_mut().enumerate().for_each(|(position, row)| row.truncate(position + 1));
        Ok(json!({ "sense": sense, "weights": square }))
    };
    let senses = senses.into_iter().map(one).collect::<Result<Vec<_>, _>>()?;
    Ok(json!({ "tokens": tokens_json(state, &context.ids), "senses": senses }))
}

fn contributions(state: &mut AppState, request: ContributionsRequest) -> Result<Value, ApiError> {
    let edits = state.parse_edits(request.edits.as_ref())?;
    let token = state.parse_token(request.word, request.token)?;
    let context = state.text_context(request.text, request.ids)?;
    let position = request.position.unwrap_or(context.ids.len() - 1);
    let (next, parts) = state.model.with_edits(&edits, |model| {
        let analysis = evals::TextAnalysis::at_position(model, &context, position)?;
        Ok((analysis.candidate(position, token)?, analysis.contributions(position, token)?))
    })?;
    Ok(json!({
        "tokens": tokens_json(state, &context.ids),
        "position": position,
        "next": candidate_json(state, next),
        "weights": rounded_rows(&weights_at(&context, position), 4)?,
        "contributions": rounded_rows(&parts.tr(), 7)?,
    }))
}

fn next(state: &mut AppState, request: PositionRequest) -> Result<Value, ApiError> {
    check_number("top", request.top, MAX_TOP)?;
    let edits = state.parse_edits(request.edits.as_ref())?;
    let context = state.text_context(request.text, request.ids)?;
    let position = request.position.unwrap_or(context.ids.len() - 1);
    let measure = |model: &_| {
        let analysis = evals::TextAnalysis::at_position(model, &context, position)?;
        let best = analysis.next_tokens(position, request.top)?.into_iter().map(|next| next.id).collect::<Vec<i64>>();
        Ok((best, analysis.logits_after(position)?))
    };
    let (best_before, before) = measure(&state.model)?;
    let (mut chosen, after) = state.model.with_edits(&edits, measure)?;
    for id in best_before {
        if !chosen.contains(&id) {
            chosen.push(id);
        }
    }
    let (log_p, log_q) = (before.log_softmax(-1, Kind::Double), after.log_softmax(-1, Kind::Double));
    let divergence = (log_p.exp() * (&log_p - &log_q)).sum(Kind::Double).double_value(&[]);
    let word = |id: &i64| {
        let side = |logits: &Tensor, log: &Tensor| json!({ "logit": logits.double_value(&[*id]), "probability": log.double_value(&[*id]).exp() });
        let mut word = state.token_json(*id);
        word["before"] = side(&before, &log_p);
        word["after"] = side(&after, &log_q);
        word
    };
    Ok(json!({
        "tokens": tokens_json(state, &context.ids),
        "position": position,
        "words": chosen.iter().map(word).collect::<Vec<_>>(),
        // Rounding errors can make the sum slightly negative.
        "divergence": divergence.max(0.0),
    }))
}

fn generate(state: &mut AppState, request: GenerateRequest) -> Result<Value, ApiError> {
    check_number("max_new_tokens", request.max_new_tokens, MAX_NEW_TOKENS)?;
    let sampling = if request.greedy {
        if request.temperature.is_some() || request.top_k.is_some() || request.top_p.is_some() {
            return Err(ApiError::bad_request(
                "\"temperature\", \"top_k\" and \"top_p\" have no effect with \"greedy\": remove them",
            ));
        }
        Sampling::Greedy
    } else {
        let temperature = request.temperature.unwrap_or(1.0);
        Sampling::Random { temperature, top_k: request.top_k, top_p: request.top_p, seed: request.seed }
    };
    sampling.validate()?;
    let edits = state.parse_edits(request.edits.as_ref())?;
    let ids = state.parse_text(request.text, request.ids)?;
    let (length, context) = (ids.len(), state.model.config().n_positions as usize);
    // Beyond the context length the window slides and the cache of the decoder is invalid, so that
    // every token would need a full forward pass.
    if length + request.max_new_tokens > context {
        return Err(ApiError::too_large(format!(
            "the text has {length} tokens, after which the model's context of {context} has room for {}: shorten it, or ask for fewer new tokens",
            context - length
        )));
    }
    let new = state.model.with_edits(&edits, |model| model::generate(model, &ids, request.max_new_tokens, sampling))?;
    Ok(json!({
        "prompt": tokens_json(state, &ids),
        "new": tokens_json(state, &new),
        "text": state.tokenizer.decode(&[ids, new].concat())?,
    }))
}

fn tokens_json(state: &AppState, ids: &[i64]) -> Vec<Value> {
    ids.iter().map(|&id| state.token_json(id)).collect()
}

fn candidate_json(state: &AppState, CandidateToken { id, logit, probability }: CandidateToken) -> Value {
    with_numbers(state.token_json(id), [("logit", logit), ("probability", probability)])
}

fn with_numbers<const N: usize>(mut word: Value, numbers: [(&str, f64); N]) -> Value {
    for (key, number) in numbers {
        word[key] = number.into();
    }
    word
}

/// Returns the contextualization weights at a position, `[L, position + 1]`.
fn weights_at(context: &TextContext, position: usize) -> Tensor {
    context.weights.select(1, position as i64).narrow(1, 0, position as i64 + 1)
}

/// Returns the rows of a matrix, rounded to a number of decimals.
fn rounded_rows(matrix: &Tensor, decimals: i32) -> Result<Vec<Vec<f64>>, ApiError> {
    let (width, scale) = (matrix.size()[1] as usize, 10f64.powi(decimals));
    let numbers = Vec::<f64>::try_from(matrix.to_kind(Kind::Double).reshape([-1])).map_err(anyhow::Error::from)?;
    let round = |number: &f64| (number * scale).round() / scale;
    Ok(numbers.chunks(width).map(|row| row.iter().map(round).collect()).collect())
}
