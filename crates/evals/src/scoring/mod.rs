//! Log-probabilities of many short texts. Texts of about one length go through the model together,
//! and a beginning that several share is multiplied by the head once.

pub(crate) mod input_files;
pub(crate) mod requests;

use anyhow::{Result, ensure};
use model::{ForwardOptions, LanguageModel};
use tch::{Kind, Tensor};

use crate::scoring::requests::ScoringRequest;

/// What a model makes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Score {
    /// Summed over the predicted tokens, in nats.
    pub(crate) log_probability: f64,
    /// Whether each of them is the most probable one.
    pub(crate) is_greedy: bool,
}

/// How requests are computed, and who hears of it.
pub struct Scorer<'a> {
    /// The model.
    pub model: &'a LanguageModel,
    /// Tokens that go through it at once, padding included; a longer request goes alone.
    pub batch_tokens: usize,
    /// Called with the tokens that are done, and all.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

/// What is wrong with a model whose answers are infinite or undefined.
pub(crate) const NO_NUMBERS: &str = "the model gives probabilities that are no numbers: its weights are broken";

/// Rows of logits that exist at once: 256 x 50,264 fp32 are 51 MB.
const POSITIONS_PER_PRODUCT: usize = 256;

impl Scorer<'_> {
    /// The scores of requests, in their order. Equal requests have equal scores.
    ///
    /// # Errors
    /// When libtorch refuses, or the model's answer is no number.
    pub(crate) fn score(&mut self, requests: &[ScoringRequest]) -> Result<Vec<Score>> {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        // Long ones first, so that a lack of memory shows at once; then those that begin alike side by side.
        order.sort_by(|&a, &b| {
            let (a, b) = (&requests[a], &requests[b]);
            b.inputs().len().cmp(&a.inputs().len()).then_with(|| a.cmp(b))
        });
        let distinct: Vec<&[usize]> = order.chunk_by(|&a, &b| requests[a] == requests[b]).collect();
        let all = distinct.iter().map(|same| requests[same[0]].inputs().len() as u64).sum();
        let (mut scores, mut done, mut left) = (vec![Score::default(); requests.len()], 0, &distinct[..]);
        while let Some(longest) = left.first() {
            (self.progress)(done, all);
            let count = (self.batch_tokens / requests[longest[0]].inputs().len()).clamp(1, left.len());
            let (now, later) = left.split_at(count);
            let batch: Vec<&ScoringRequest> = now.iter().map(|same| &requests[same[0]]).collect();
            for (same, score) in now.iter().zip(score_batch(self.model, &batch)?) {
                same.iter().for_each(|&place| scores[place] = score);
            }
            done += batch.iter().map(|request| request.inputs().len() as u64).sum::<u64>();
            left = later;
        }
        Ok(scores)
    }
}

/// Which hidden states the head sees, and what is asked of its rows.
#[derive(Debug, Default)]
struct ScoredRows {
    /// Indices into the batch's `B T` positions.
    places: Vec<i64>,
    /// In the order of rows.
    asked: Vec<PendingRequest>,
}

/// The log-probability of one token.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PendingRequest {
    row: usize,
    target: i64,
    request: usize,
}

impl ScoredRows {
    /// Of requests that are padded to `length`. A position that has the same tokens up to it as
    /// the request before has the same hidden state, and shares its row.
    fn of(requests: &[&ScoringRequest], length: usize) -> Self {
        let mut rows = ScoredRows::default();
        let (mut before, mut row_at): (&[i64], Vec<Option<usize>>) = (&[], Vec::new());
        for (number, request) in requests.iter().enumerate() {
            let inputs = request.inputs();
            let shared = inputs.iter().zip(before).take_while(|(a, b)| a == b).count();
            row_at.truncate(shared);
            row_at.resize(inputs.len(), None);
            let first = inputs.len() - request.targets().len();
            for (position, &target) in (first..).zip(request.targets()) {
                let row = *row_at[position].get_or_insert_with(|| {
                    rows.places.push((number * length + position) as i64);
                    rows.places.len() - 1
                });
                rows.asked.push(PendingRequest { row, target, request: number });
            }
            before = inputs;
        }
        rows.asked.sort_by_key(|asked| asked.row);
        rows
    }
}

/// Scores requests of which the first is the longest, in one pass.
fn score_batch(model: &LanguageModel, requests: &[&ScoringRequest]) -> Result<Vec<Score>> {
    let length = requests.first().map_or(0, |longest| longest.inputs().len());
    let mut ids: Vec<i64> = Vec::with_capacity(requests.len() * length);
    for request in requests {
        let inputs = request.inputs();
        ids.extend(inputs);
        // What follows a text does not reach back; a word that is there has its senses made already.
        ids.extend(std::iter::repeat_n(inputs[0], length - inputs.len()));
    }
    let rows = ScoredRows::of(requests, length);
    let mut scores = vec![Score { log_probability: 0.0, is_greedy: true }; requests.len()];
    tch::no_grad(|| -> Result<()> {
        let (device, options, vocab_size) = (model.device(), ForwardOptions::evaluation(), model.config().vocab_size);
        let ids = Tensor::f_from_slice(&ids)?.f_view([-1, length as i64])?.f_to_device(device)?;
        let hidden = model.hidden(&ids, options).f_flatten(0, 1)?;
        let mut left = &rows.asked[..];
        for (chunk, places) in rows.places.chunks(POSITIONS_PER_PRODUCT).enumerate() {
            let places = Tensor::f_from_slice(places)?.f_to_device(device)?;
            let mut logits = model.head(&hidden.f_index_select(0, &places)?, options);
            let (first, end) = (chunk * POSITIONS_PER_PRODUCT, (chunk + 1) * POSITIONS_PER_PRODUCT);
            let (asked, later) = left.split_at(left.partition_point(|asked| asked.row < end));
            left = later;
            let flat: Vec<i64> =
                asked.iter().map(|asked| (asked.row - first) as i64 * vocab_size + asked.target).collect();
            let targets = logits.f_take(&Tensor::f_from_slice(&flat)?.f_to_device(device)?)?;
            let targets: Vec<f32> = Vec::try_from(&targets)?;
            let most = logits.f_amax([1i64].as_slice(), true)?;
            // Where the logits stand: a second matrix of them would cost as much as the softmax.
            let sums = logits.f_sub_(&most)?.f_exp_()?.f_sum_dim_intlist([1i64].as_slice(), true, Kind::Float)?;
            let log_sums: Vec<f32> = Vec::try_from(&(sums.f_log()? + &most).f_squeeze_dim(1)?)?;
            let most: Vec<f32> = Vec::try_from(&most.f_squeeze_dim(1)?)?;
            for (asked, logit) in asked.iter().zip(targets) {
                let (score, row) = (&mut scores[asked.request], asked.row - first);
                score.log_probability += f64::from(logit) - f64::from(log_sums[row]);
                score.is_greedy &= logit == most[row];
            }
        }
        Ok(())
    })?;
    ensure!(scores.iter().all(|score| score.log_probability.is_finite()), NO_NUMBERS);
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use model::Kernels;

    use super::*;
    use crate::testing;

    fn request(before: &[i64], after: &[i64]) -> ScoringRequest {
        ScoringRequest::of(before.to_vec(), after.to_vec(), 8).unwrap()
    }

    /// Each request by itself, by the definition.
    fn alone(model: &LanguageModel, request: &ScoringRequest) -> Score {
        let ids = Tensor::from_slice(request.inputs()).unsqueeze(0);
        let options = ForwardOptions { kernels: Kernels::Reference, ..ForwardOptions::evaluation() };
        let log_probabilities = tch::no_grad(|| model.logits(&ids, options)).get(0).log_softmax(-1, Kind::Double);
        let mut score = Score { log_probability: 0.0, is_greedy: true };
        let first = (request.inputs().len() - request.targets().len()) as i64;
        for (position, &target) in (first..).zip(request.targets()) {
            score.log_probability += log_probabilities.double_value(&[position, target]);
            score.is_greedy &= log_probabilities.get(position).argmax(-1, false).int64_value(&[]) == target;
        }
        score
    }

    #[test]
    fn scores_do_not_depend_on_what_is_computed_together() {
        for kind in [model::Architecture::Backpack, model::Architecture::Gpt2] {
            let model = testing::model(kind);
            let mut requests = vec![
                request(&[1], &[2, 3, 4]),
                request(&[1, 2], &[3]),
                request(&[1], &[2, 3, 5]),
                request(&[1, 2, 3], &[7]),
                request(&[1], &[2, 3, 4]),
                request(&[9, 9, 9, 9, 9, 9, 9], &[1, 2]),
                request(&[5], &[50_263]),
            ];
            // What the model itself would say.
            let ids = Tensor::from_slice(&[1i64, 2]).unsqueeze(0);
            let next =
                model.logits(&ids, ForwardOptions::evaluation()).get(0).get(-1).argmax(-1, false).int64_value(&[]);
            requests.push(request(&[1, 2], &[next]));
            let want: Vec<Score> = requests.iter().map(|request| alone(&model, request)).collect();
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
                // The equal ones are computed once.
                assert!(calls[0] == 0 && calls.is_sorted() && last == 3 + 2 + 3 + 3 + 8 + 1 + 2, "{calls:?} {last}");
            }
        }
    }

    #[test]
    fn a_shared_beginning_is_one_row() {
        let (a, b, c) = (request(&[1], &[2, 3, 4]), request(&[1], &[2, 5, 6]), request(&[1, 2], &[5]));
        let rows = ScoredRows::of(&[&a, &b, &c], 3);
        // a: 1, 1 2, 1 2 3; b: its third alone; c: 1 2 again, of a.
        assert_eq!(rows.places, [0, 1, 2, 5]);
        let asked: Vec<_> = rows.asked.iter().map(|asked| (asked.row, asked.target, asked.request)).collect();
        assert_eq!(asked, [(0, 2, 0), (0, 2, 1), (1, 3, 0), (1, 5, 1), (1, 5, 2), (2, 4, 0), (3, 6, 1)]);
        // c comes first: what it does not ask of is a row of its own.
        assert_eq!(ScoredRows::of(&[&c, &a], 3).places, [1, 3, 5]);
    }

    #[test]
    fn a_model_that_gives_no_numbers_is_told_of() {
        let model = testing::model(model::Architecture::Gpt2);
        let mut weight = model.parameters().get("transformer.ln_f.weight");
        let _ = tch::no_grad(|| weight.fill_(f64::NAN));
        let error = testing::scored(&model, |scorer| scorer.score(&[request(&[1], &[2])])).unwrap_err();
        assert!(error.to_string().contains("probabilities that are no numbers"), "{error}");
    }
}
