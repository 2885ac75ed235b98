//! The model one token after another: what of the past stays the same is kept. The body
//! keeps the keys and values of each block, the sense weights their keys, and the senses are
//! kept by token, since they know nothing of their place.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use crate::backpack::Backpack;
use crate::gpt2::KvCache;
use crate::language_model::{LanguageModel, Network};
use crate::layers::ForwardOptions;

/// What the weights of senses are multiplied by when a text's next token is predicted: given the ids of the window
/// `[T]`, a factor for each position and sense, fp32 `[T, L]` on the model's device.
pub type SenseScale<'a> = dyn FnMut(&[i64]) -> Tensor + 'a;

/// A sequence that grows by tokens and slides past the context.
#[derive(Debug)]
pub struct IncrementalDecoder<'m> {
    model: &'m LanguageModel,
    pass: ForwardOptions,
    /// All tokens so far.
    ids: Vec<i64>,
    body: KvCache,
    /// `[1, L, T, D/L]`.
    sense_keys: Option<Tensor>,
    senses: SenseCache,
}

impl<'m> IncrementalDecoder<'m> {
    /// An empty sequence.
    pub fn new(model: &'m LanguageModel, pass: ForwardOptions) -> Self {
        IncrementalDecoder {
            model,
            pass,
            ids: Vec::new(),
            body: KvCache::default(),
            sense_keys: None,
            senses: SenseCache::default(),
        }
    }

    /// Appends at least one id; gives the logits `[V]` fp32 of what follows. Past the context
    /// the last `n_positions` tokens count, positions from 0: all is computed anew for each
    /// token then, save for the senses.
    pub fn push(&mut self, new: &[i64]) -> Tensor {
        self.push_scaled(new, None)
    }

    /// The same with the weights of senses multiplied, of a Backpack.
    pub fn push_scaled(&mut self, new: &[i64], mut scale: Option<&mut SenseScale<'_>>) -> Tensor {
        if let [before @ .., last] = new
            && !before.is_empty()
            && !self.ids.is_empty()
        {
            // What is kept takes one at a time.
            before.iter().for_each(|id| drop(self.push(&[*id])));
            return self.push_scaled(&[*last], scale);
        }
        self.ids.extend(new);
        let context = self.model.config().n_positions as usize;
        let window = if self.ids.len() > context {
            self.body = KvCache::default();
            self.sense_keys = None;
            &self.ids[self.ids.len() - context..]
        } else {
            new
        };
        let input = Tensor::from_slice(window).to_device(self.model.device());
        tch::no_grad(|| {
            let hidden = match self.model.network() {
                Network::Gpt2(body) => body.extend(&input, &mut self.body, self.pass).narrow(0, -1, 1),
                Network::Backpack(backpack) => {
                    let hidden = backpack.body().extend(&input, &mut self.body, self.pass);
                    let mut weights = backpack.extend_weights(&hidden, &mut self.sense_keys, self.pass);
                    let seen = &self.ids[self.ids.len().saturating_sub(context)..];
                    if let Some(scale) = &mut scale {
                        weights *= scale(seen).tr();
                    }
                    self.senses.mix(backpack, seen, &weights, self.pass)
                }
            };
            self.model.head(&hidden, self.pass).view([-1])
        })
    }
}

/// Sense vectors of the tokens seen, each once.
#[derive(Debug, Default)]
struct SenseCache {
    rows: HashMap<i64, i64>,
    /// `[rows, L D]`.
    senses: Option<Tensor>,
}

/// Tokens whose senses are kept: a long text forgets those of its beginning.
const MOST_ROWS: usize = 4_096;

impl SenseCache {
    /// The senses of `ids [T]` summed with `weights [L, T]`: `[1, D]`. The weights of a
    /// token's places are added up first, so that no place has a copy of its senses.
    fn mix(&mut self, backpack: &Backpack, ids: &[i64], weights: &Tensor, pass: ForwardOptions) -> Tensor {
        if self.rows.len() > MOST_ROWS {
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
            let new = backpack.word_senses(&Tensor::from_slice(&missing).to_device(weights.device()), pass);
            self.senses = Some(match self.senses.take() {
                Some(known) => Tensor::cat(&[known, new], 0),
                None => new,
            });
        }
        let Some(senses) = &self.senses else { unreachable!("a decoder is pushed at least one token") };
        let places: Vec<i64> = ids.iter().map(|id| self.rows[id]).collect();
        let places = Tensor::from_slice(&places).to_device(weights.device());
        let (num_senses, rows) = (weights.size()[0], senses.size()[0]);
        let by_token = Tensor::zeros([rows, num_senses], (Kind::Float, weights.device()));
        let by_token = by_token.index_add(0, &places, &weights.tr());
        by_token.to_kind(pass.kind).view([1, rows * num_senses]).matmul(&senses.view([rows * num_senses, -1]))
    }
}
