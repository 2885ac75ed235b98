//! Decoding of one token after another, with caches: keys and values of the trunk, keys of the
//! contextualization weights, and senses per token, which do not depend on the position.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use crate::backpack::Backpack;
use crate::gpt2::KvCache;
use crate::language_model::{LanguageModel, Network};
use crate::ops::{ForwardOptions, Ops};

/// A function that returns factors of the contextualization weights for the prediction of the next
/// token: given the ids of the window `[T]`, one factor per position and sense, fp32 `[T, L]` on
/// the device of the model.
pub type SenseScale<'a> = dyn FnMut(&[i64]) -> Tensor + 'a;

/// A sequence to which tokens are appended. It may become longer than the context.
#[derive(Debug)]
pub struct IncrementalDecoder<'m> {
    model: &'m LanguageModel,
    ops: Ops,
    /// All tokens so far.
    ids: Vec<i64>,
    body_cache: KvCache,
    /// Keys of the contextualization weights, `[1, L, T, D/L]`.
    sense_keys: Option<Tensor>,
    sense_cache: SenseCache,
}

impl<'m> IncrementalDecoder<'m> {
    /// Creates an empty sequence.
    pub fn new(model: &'m LanguageModel, options: ForwardOptions) -> Self {
        IncrementalDecoder {
            model,
            ops: model.ops(options),
            ids: Vec::new(),
            body_cache: KvCache::default(),
            sense_keys: None,
            sense_cache: SenseCache::default(),
        }
    }

    /// Appends at least one token and returns the logits `[V]` fp32 of the next one. If the
    /// sequence is longer than the context, the model reads the last `n_positions` tokens, at
    /// positions from 0. It then computes everything except the senses again for each token.
    pub fn append(&mut self, new: &[i64]) -> Tensor {
        self.append_scaled(new, None)
    }

    /// Appends like [`IncrementalDecoder::append`]. For a Backpack, `scale` multiplies the
    /// contextualization weights.
    pub fn append_scaled(&mut self, new: &[i64], mut scale: Option<&mut SenseScale<'_>>) -> Tensor {
        if let [before @ .., last] = new
            && !before.is_empty()
            && !self.ids.is_empty()
        {
            // Caches that are not empty take one token at a time.
            before.iter().for_each(|id| drop(self.append(&[*id])));
            return self.append_scaled(&[*last], scale);
        }
        self.ids.extend(new);
        let context = self.model.config().n_positions as usize;
        let input = if self.ids.len() > context {
            self.body_cache = KvCache::default();
            self.sense_keys = None;
            &self.ids[self.ids.len() - context..]
        } else {
            new
        };
        let input = Tensor::from_slice(input).to_device(self.model.device());
        tch::no_grad(|| {
            let output = match self.model.network() {
                Network::Gpt2(body) => body.decode_step(&input, &mut self.body_cache, self.ops).narrow(0, -1, 1),
                Network::Backpack(backpack) => {
                    let mut weights =
                        backpack.decode_step(&input, &mut self.body_cache, &mut self.sense_keys, self.ops);
                    let window = &self.ids[self.ids.len().saturating_sub(context)..];
                    if let Some(scale) = &mut scale {
                        weights *= scale(window).tr();
                    }
                    self.sense_cache.weighted_sum(backpack, window, &weights, self.ops)
                }
            };
            self.model.output_head(&output, self.ops).view([-1])
        })
    }
}

/// The senses of the tokens of a sequence, once per distinct token.
#[derive(Debug, Default)]
struct SenseCache {
    /// The row in `senses` of each token.
    rows: HashMap<i64, i64>,
    /// `[rows, L D]`.
    senses: Option<Tensor>,
}

/// Number of tokens whose senses are cached. If there are more, the cache starts again from empty.
const MAX_ROWS: usize = 4_096;

impl SenseCache {
    /// The sum of the senses of `ids [T]`, weighted by `weights [L, T]`: `[1, D]`. The weights of
    /// the positions of a token are added first, so that its senses are not copied per position.
    fn weighted_sum(&mut self, backpack: &Backpack, ids: &[i64], weights: &Tensor, ops: Ops) -> Tensor {
        if self.rows.len() > MAX_ROWS {
            *self = SenseCache::default();
        }
        let mut missing: Vec<i64> = ids.iter().copied().filter(|id| !self.rows.contains_key(id)).collect();
        missing.sort_unstable();
        missing.dedup();
        if !missing.is_empty() {
            for id in &missing {
                let row = self.rows.len() as i64;
                self.rows.insert(*id, row);
            }
            let new = backpack.senses_of_tokens(&Tensor::from_slice(&missing).to_device(weights.device()), ops);
            self.senses = Some(match self.senses.take() {
                Some(known) => Tensor::cat(&[known, new], 0),
                None => new,
            });
        }
        let Some(senses) = &self.senses else { unreachable!("at least one token is appended") };
        let row_of_position: Vec<i64> = ids.iter().map(|id| self.rows[id]).collect();
        let row_of_position = Tensor::from_slice(&row_of_position).to_device(weights.device());
        let (num_senses, rows) = (weights.size()[0], senses.size()[0]);
        let row_weights = Tensor::zeros([rows, num_senses], (Kind::Float, weights.device()));
        let row_weights = row_weights.index_add(0, &row_of_position, &weights.tr());
        row_weights.to_kind(ops.kind()).view([1, rows * num_senses]).matmul(&senses.view([rows * num_senses, -1]))
    }
}
