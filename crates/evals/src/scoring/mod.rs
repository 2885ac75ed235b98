//! Log-probabilities of many short texts, the requests for them, and the files that they come from.
//!
//! Texts of similar length are computed together, and the head computes a prefix that several texts
//! share only once.

pub(crate) mod input_files;
pub(crate) mod requests;

use anyhow::{Result, ensure};
use model::LanguageModel;
use tch::{Kind, Tensor};

use crate::scoring::requests::ScoringRequest;

/// The score of a request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Score {
    /// The sum of the log-probabilities of the predicted tokens, in nats.
    pub(crate) log_probability: f64,
    /// Whether every predicted token is the most probable one.
    pub(crate) is_greedy: bool,
}

/// Computes the scores of requests in batches and reports the progress.
pub struct Scorer<'a> {
    /// The model that scores the requests, with its
    /// [evaluation options](LanguageModel::evaluation_options).
    pub model: &'a LanguageModel,
    /// The maximum number of tokens per forward pass, including padding. A longer request is
    /// computed alone.
    pub batch_tokens: usize,
    /// Receives the number of processed tokens and the total.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

/// The error message for a model with infinite or undefined outputs.
pub(crate) const NOT_FINITE: &str = "the model's outputs are not finite: its weights are damaged";

/// The number of rows of logits that are computed at once: 256 x 50,264 fp32 numbers are 51 MB.
const POSITIONS_PER_PRODUCT: usize = 256;

impl Scorer<'_> {
    /// Returns the scores of requests, in the order of the requests. Equal requests have equal
    /// scores.
    ///
    /// # Errors
    /// A score is not finite, or a libtorch call fails.
    pub(crate) fn score(&mut self, requests: &[ScoringRequest]) -> Result<Vec<Score>> {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        // Long requests come first, so that a lack of memory shows at once. Among equal lengths,
        // requests with a common prefix are adjacent.
        order.sort_by(|&a, &b| {
            let (a, b) = (&requests[a], &requests[b]);
            b.inputs().len().cmp(&a.inputs().len()).then_with(|| a.cmp(b))
        });
        let distinct: Vec<&[usize]> = order.chunk_by(|&a, &b| requests[a] == requests[b]).collect();
        let total = distinct.iter().map(|same| requests[same[0]].inputs().len() as u64).sum();
        let (mut scores, mut done, mut left) = (vec![Score::default(); requests.len()], 0, &distinct[..]);
        while let Some(longest) = left.first() {
            (self.progress)(done, total);
            let count = (self.batch_tokens / requests[longest[0]].inputs().len()).clamp(1, left.len());
            let (now, later) = left.split_at(count);
            let batch: Vec<&ScoringRequest> = now.iter().map(|same| &requests[same[0]]).collect();
            for (same, score) in now.iter().zip(score_batch(self.model, &batch)?) {
                same.iter().for_each(|&index| scores[index] = score);
            }
            done += batch.iter().map(|request| request.inputs().len() as u64).sum::<u64>();
            left = later;
        }
        Ok(scores)
    }
}

/// The hidden states that the head computes logits for, and the tokens to score in these logits.
#[derive(Debug, Default)]
struct ScoredRows {
    /// For each row, its index among the `B T` positions of the batch.
    positions: Vec<i64>,
    /// The tokens to score, sorted by row.
    targets: Vec<ScoredTarget>,
}

/// A token whose log-probability is part of the score of a request.
#[derive(Debug, Clone, Copy, PartialEq)]
struct ScoredTarget {
    row: usize,
    token: i64,
    request: usize,
}

impl ScoredRows {
    /// Assigns rows to the requests of a batch, which are padded to `length`. If the tokens up to a
    /// position are those of the previous request, the hidden states are equal and share a row.
    fn new(requests: &[&ScoringRequest], length: usize) -> Self {
        let mut rows = ScoredRows::default();
        let (mut previous, mut row_at): (&[i64], Vec<Option<usize>>) = (&[], Vec::new());
        for (number, request) in requests.iter().enumerate() {
            let inputs = request.inputs();
            let shared = inputs.iter().zip(previous).take_while(|(a, b)| a == b).count();
            row_at.truncate(shared);
            row_at.resize(inputs.len(), None);
            let first = inputs.len() - request.targets().len();
            for (position, &token) in (first..).zip(request.targets()) {
                let row = *row_at[position].get_or_insert_with(|| {
                    rows.positions.push((number * length + position) as i64);
                    rows.positions.len() - 1
                });
                rows.targets.push(ScoredTarget { row, token, request: number });
            }
            previous = inputs;
        }
        rows.targets.sort_by_key(|target| target.row);
        rows
    }
}

/// Scores requests in one forward pass. The first request must be the longest.
fn score_batch(model: &LanguageModel, requests: &[&ScoringRequest]) -> Result<Vec<Score>> {
    let length = requests.first().map_or(0, |longest| longest.inputs().len());
    let mut ids: Vec<i64> = Vec::with_capacity(requests.len() * length);
    for request in requests {
        let inputs = request.inputs();
        ids.extend(inputs);
        // The model is causal, so padding does not change the text before it. A word of the text is
        // used, because its senses are computed anyway.
        ids.extend(std::iter::repeat_n(inputs[0], length - inputs.len()));
    }
    let rows = ScoredRows::new(requests, length);
    let mut scores = vec![Score { log_probability: 0.0, is_greedy: true }; requests.len()];
    tch::no_grad(|| -> Result<()> {
        let (device, forward, vocab_size) = (model.device(), model.evaluation_options(), model.config().vocab_size);
        let ids = Tensor::f_from_slice(&ids)?.f_view([-1, length as i64])?.f_to_device(device)?;
        let hidden = model.hidden(&ids, forward).f_flatten(0, 1)?;
        let mut left = &rows.targets[..];
        for (chunk, positions) in rows.positions.chunks(POSITIONS_PER_PRODUCT).enumerate() {
            let positions = Tensor::f_from_slice(positions)?.f_to_device(device)?;
            let mut logits = model.head(&hidden.f_index_select(0, &positions)?, forward);
            let (first, end) = (chunk * POSITIONS_PER_PRODUCT, (chunk + 1) * POSITIONS_PER_PRODUCT);
            let (scored, later) = left.split_at(left.partition_point(|target| target.row < end));
            left = later;
            let flat: Vec<i64> =
                scored.iter().map(|target| (target.row - first) as i64 * vocab_size + target.token).collect();
            let taken = logits.f_take(&Tensor::f_from_slice(&flat)?.f_to_device(device)?)?;
            let target_logits: Vec<f32> = Vec::try_from(&taken)?;
            let maxima = logits.f_amax([1i64].as_slice(), true)?;
            // In place, because allocating a second matrix would take as long as the softmax.
            let sums = logits.f_sub_(&maxima)?.f_exp_()?.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Float)?;
            let log_sums: Vec<f32> = Vec::try_from(&(sums.f_log()? + &maxima).f_squeeze_dim(1)?)?;
            let maxima: Vec<f32> = Vec::try_from(&maxima.f_squeeze_dim(1)?)?;
            for (target, logit) in scored.iter().zip(target_logits) {
                let (score, row) = (&mut scores[target.request], target.row - first);
                score.log_probability += f64::from(logit) - f64::from(log_sums[row]);
                score.is_greedy &= logit == maxima[row];
            }
        }
        Ok(())
    })?;
    ensure!(scores.iter().all(|score| score.log_probability.is_finite()), NOT_FINITE);
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use model::{ForwardOptions, Kernels};

    use super::*;
    use crate::testing;

    fn request(before: &[i64], after: &[i64]) -> ScoringRequest {
        ScoringRequest::new(before.to_vec(), after.to_vec(), 8).unwrap()
    }

    /// Scores one request alone with the reference kernels.
    fn reference_score(model: &LanguageModel, request: &ScoringRequest) -> Score {
        let ids = Tensor::from_slice(request.inputs()).unsqueeze(0);
        let reference = ForwardOptions { kernels: Kernels::Reference, ..ForwardOptions::evaluation() };
        let log_probabilities = tch::no_grad(|| model.logits(&ids, reference)).get(0).log_softmax(-1, Kind::Double);
        let mut score = Score { log_probability: 0.0, is_greedy: true };
        let first = (request.inputs().len() - request.targets().len()) as i64;
        for (position, &target) in (first..).zip(request.targets()) {
            score.log_probability += log_probabilities.double_value(&[position, target]);
            score.is_greedy &= log_probabilities.get(position).argmax(-1, false).int64_value(&[]) == target;
        }
        score
    }

    #[test]
    fn scores_do_not_depend_on_the_batch() {
        for architecture in [model::Architecture::Backpack, model::Architecture::Gpt2] {
            let model = testing::model(architecture);
            let mut requests = vec![
                request(&[1], &[2, 3, 4]),
                request(&[1, 2], &[3]),
                request(&[1], &[2, 3, 5]),
                request(&[1, 2, 3], &[7]),
                request(&[1], &[2, 3, 4]),
                request(&[9, 9, 9, 9, 9, 9, 9], &[1, 2]),
                request(&[5], &[50_263]),
            ];
            // The most probable token of the model, to have a greedy request.
            let ids = Tensor::from_slice(&[1i64, 2]).unsqueeze(0);
            let next =
                model.logits(&ids, ForwardOptions::evaluation()).get(0).get(-1).argmax(-1, false).int64_value(&[]);
            requests.push(request(&[1, 2], &[next]));
            let want: Vec<Score> = requests.iter().map(|request| reference_score(&model, request)).collect();
            assert!(want[7].is_greedy && !want[1].is_greedy);
            for batch_tokens in [1, 6, 1000] {
                let (mut calls, mut last) = (Vec::new(), 0);
                let mut progress = |done, all| {
                    calls.push(done);
                    last = all;
                };
                let mut scorer = Scorer { model: &model, batch_tokens, progress: &mut progress };
                let scores = scorer.score(&requests).unwrap();
                for (score, want) in scores.iter().zip(&want) {
                    assert!((score.log_probability - want.log_probability).abs() < 1e-4, "{score:?} {want:?}");
                    assert_eq!(score.is_greedy, want.is_greedy);
                }
                assert_eq!(scores[0], scores[4]);
                // Equal requests are computed once.
                assert!(calls[0] == 0 && calls.is_sorted() && last == 3 + 2 + 3 + 3 + 8 + 1 + 2, "{calls:?} {last}");
            }
        }
    }

    #[test]
    fn shared_prefixes_share_a_row() {
        let (a, b, c) = (request(&[1], &[2, 3, 4]), request(&[1], &[2, 5, 6]), request(&[1, 2], &[5]));
        let rows = ScoredRows::new(&[&a, &b, &c], 3);
        // a has the rows of 1, 1 2 and 1 2 3. b adds only its third position. c shares 1 2 with a.
        assert_eq!(rows.positions, [0, 1, 2, 5]);
        let targets: Vec<_> = rows.targets.iter().map(|target| (target.row, target.token, target.request)).collect();
        assert_eq!(targets, [(0, 2, 0), (0, 2, 1), (1, 3, 0), (1, 5, 1), (1, 5, 2), (2, 4, 0), (3, 6, 1)]);
        // If c comes first, a needs its own row for the position that c does not score.
        assert_eq!(ScoredRows::new(&[&c, &a], 3).positions, [1, 3, 5]);
    }

    #[test]
    fn non_finite_outputs_are_an_error() {
        let model = testing::model(model::Architecture::Gpt2);
        let mut weight = model.parameters().get("transformer.ln_f.weight");
        let _ = tch::no_grad(|| weight.fill_(f64::NAN));
        let error = testing::with_scorer(&model, |scorer| scorer.score(&[request(&[1], &[2])])).unwrap_err();
        assert!(error.to_string().contains("outputs are not finite"), "{error}");
    }
}
