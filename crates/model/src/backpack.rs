//! The Backpack (Hewitt et al., ACL 2023). Each token x has L sense vectors C(x), which do not
//! depend on the context. The output at position i is the sum of the senses of the tokens up to i,
//! weighted by the contextualization weights alpha of the GPT-2 trunk:
//!
//! o_i = sum over j <= i and l of alpha_lij C(x_j)_l

use tch::{Device, Kind, Tensor};
use torch_ext::LayerOutput;
use torch_ext::profiler::{Section, mark};

use crate::batch::{DistinctTokens, TokenBatch};
use crate::config::ModelConfig;
use crate::gpt2::{Gpt2, KvCache};
use crate::layers::{LayerNorm, Linear, Mlp};
use crate::ops::{ForwardOptions, Ops, TokenSenses};
use crate::parameters::Parameters;
use crate::residual_stream::ResidualStream;
use crate::senses::edits::EditedSenses;
use crate::senses::table::SenseTable;

/// The sense network C: sense vectors of tokens, from their embeddings.
#[derive(Debug)]
struct SenseNetwork {
    ln: LayerNorm,
    ln_1: LayerNorm,
    mlp: Mlp,
    ln_2: LayerNorm,
    final_mlp: Mlp,
}

impl SenseNetwork {
    fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        let ln =
            |ln: &str| LayerNorm::new(parameters, &format!("backpack.sense_network.{ln}"), config.layer_norm_epsilon);
        SenseNetwork {
            ln: ln("ln"),
            ln_1: ln("block.ln_1"),
            mlp: Mlp::new(parameters, "backpack.sense_network.block.mlp"),
            ln_2: ln("block.ln_2"),
            final_mlp: Mlp::new(parameters, "backpack.sense_network.final_mlp"),
        }
    }

    /// Embeddings `[U, D]` -> senses `[U, L D]`. The block is one of the trunk without attention:
    /// it adds the normalized embedding where the other adds the output of attention.
    fn forward(&self, embeddings: Tensor, ops: Ops) -> LayerOutput {
        let mut x = ResidualStream::new(ops.dropout(embeddings));
        let normed = x.normalize(&self.ln, Kind::Float, ops);
        x.add(LayerOutput { value: normed, bias: None });
        let normed = x.normalize(&self.ln_1, ops.kind(), ops);
        x.add(ops.mlp(&normed, &self.mlp));
        let normed = x.normalize(&self.ln_2, ops.kind(), ops);
        ops.mlp(&normed, &self.final_mlp)
    }
}

/// A Backpack without its output head: its outputs times the embedding are the logits.
#[derive(Debug)]
pub struct Backpack {
    body: Gpt2,
    sense_network: SenseNetwork,
    /// Projects hidden states to the queries and keys of the contextualization weights.
    c_attn: Linear,
    num_senses: i64,
    /// Replaces the sense network in evaluation.
    table: Option<SenseTable>,
    edited: Option<EditedSenses>,
}

impl Backpack {
    pub(crate) fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        Backpack {
            body: Gpt2::new(config, parameters),
            sense_network: SenseNetwork::new(config, parameters),
            c_attn: Linear::nn_linear(parameters, "backpack.sense_weight_net.c_attn"),
            num_senses: config.num_senses,
            table: None,
            edited: None,
        }
    }

    pub(crate) fn set_table(&mut self, table: SenseTable) {
        self.table = Some(table);
    }

    /// The edited senses.
    pub(crate) fn edited(&self) -> Option<&EditedSenses> {
        self.edited.as_ref()
    }

    /// Replaces all edits of senses.
    pub(crate) fn set_edited(&mut self, edited: Option<EditedSenses>) {
        self.edited = edited;
    }

    /// The GPT-2 trunk, which computes the context.
    pub fn body(&self) -> &Gpt2 {
        &self.body
    }

    fn device(&self) -> Device {
        self.body.wte().device()
    }

    /// Sense vectors C(x) of the tokens of B sequences: ids `[B, T]` -> `[B, T, L, D]`, in the type
    /// of matrix products.
    pub fn senses(&self, ids: &Tensor, options: ForwardOptions) -> Tensor {
        let ops = Ops::new(self.device(), options);
        self.batch_senses(&ops.shared_embedding(self.body.wte()), &ids.into(), ops)
            .gather(self.num_senses, ids.size()[0])
    }

    /// Sense vectors of tokens `[U]` -> `[U, L D]`, in the type of matrix products.
    pub(crate) fn senses_of_tokens(&self, tokens: &Tensor, ops: Ops) -> Tensor {
        self.sense_output(&ops.shared_embedding(self.body.wte()), tokens, ops).into_tensor()
    }

    /// Contextualization weights alpha: ids `[B, T]` -> `[B, L, T, T]` fp32.
    pub fn contextualization(&self, ids: &Tensor, options: ForwardOptions) -> Tensor {
        let ops = Ops::new(self.device(), options);
        let hidden = self.body.hidden_states(&ops.shared_embedding(self.body.wte()), ids, ops);
        ops.sense_weights(&hidden, &self.c_attn, self.num_senses, ids.size()[0])
    }

    /// Outputs for R positions: weights `[B, L, R, T]` and senses `[B, T, L, D]` -> `[B, R, D]`.
    pub fn combine_senses(&self, weights: &Tensor, senses: &Tensor, options: ForwardOptions) -> Tensor {
        Ops::new(self.device(), options).combine_senses(weights, senses)
    }

    /// Outputs of B sequences: a batch with ids `[B, T]` -> `[B T, D]`, with the shared embedding
    /// `wte` `[V, D]` of the forward pass. [`Ops::weighted_sum_of_senses`] ends the profiler's
    /// sections of the trunk and of the senses.
    pub(crate) fn outputs(&self, wte: &Tensor, batch: &TokenBatch, ops: Ops) -> Tensor {
        let ids = batch.ids();
        let length = ids.size()[1];
        let senses = || {
            // The order in which the gradients of `wte` are added decides their last bits. Without
            // the fused sum, and with edits, those of the senses are first added to one another.
            let is_separate = !ops.fuses_sum_of_senses(self.num_senses, length) || self.edited.is_some();
            let own = is_separate.then(|| ops.shared_embedding(self.body.wte()));
            self.batch_senses(own.as_ref().unwrap_or(wte), batch, ops)
        };
        let hidden = || self.body.hidden_states(wte, ids, ops);
        let outputs = ops.weighted_sum_of_senses(senses, hidden, &self.c_attn, self.num_senses, length);
        mark(&outputs, Section::Mixing, Section::HeadAndLossBackward)
    }

    /// Weights alpha of the last position of one sequence, fp32 `[L, S]` over its S positions: ids
    /// `[T]` are the last T tokens, and the caches hold the keys of the others.
    pub(crate) fn decode_step(
        &self,
        ids: &Tensor,
        body_cache: &mut KvCache,
        sense_keys: &mut Option<Tensor>,
        ops: Ops,
    ) -> Tensor {
        let hidden = self.body.decode_step(ids, body_cache, ops); // [T, D]
        let [query, key] = ops.project_heads(&hidden, &self.c_attn, self.num_senses, 1); // [1, L, T, D/L]
        let keys = match sense_keys.take() {
            Some(keys) => Tensor::cat(&[keys, key], 2),
            None => key,
        };
        let last_query = query.narrow(2, hidden.size()[0] - 1, 1);
        let alpha = ops.sense_scores(&last_query, &keys).softmax(-1, Kind::Float); // [1, L, 1, S]
        *sense_keys = Some(keys);
        alpha.squeeze_dim(2).squeeze_dim(0)
    }

    fn batch_senses(&self, wte: &Tensor, batch: &TokenBatch, ops: Ops) -> TokenSenses {
        let (tokens, rows) = unique_tokens(batch, ops);
        TokenSenses { output: self.sense_output(wte, &tokens, ops), rows }
    }

    /// Senses of tokens `[U]` -> `[U, L D]`, with edits, from the table or from the sense network.
    fn sense_output(&self, wte: &Tensor, tokens: &Tensor, ops: Ops) -> LayerOutput {
        let output = match &self.table {
            Some(table) => {
                let senses = table.rows(tokens).to_device(tokens.device()).to_kind(ops.kind());
                LayerOutput { value: senses, bias: None }
            }
            None => {
                let embeddings = mark(&ops.embedding(wte, tokens), Section::Embedding, Section::SensesBackward);
                // Moved, so that the network can free it.
                self.sense_network.forward(embeddings, ops)
            }
        };
        match &self.edited {
            Some(edited) => LayerOutput { value: edited.apply(tokens, output.into_tensor()), bias: None },
            None => output,
        }
    }
}

/// Returns the tokens `[U]` of a batch whose senses are computed, and [`TokenSenses::rows`].
/// Each distinct token appears once if all its positions have the same senses: without dropout, or
/// with shared masks.
fn unique_tokens(batch: &TokenBatch, ops: Ops) -> (Tensor, Option<Tensor>) {
    if !ops.shares_senses() {
        return (batch.ids().flatten(0, -1), None);
    }
    // Padding, which no row refers to, follows the distinct tokens.
    let DistinctTokens { tokens, rows } = batch.distinct_tokens();
    (tokens, Some(rows))
}
