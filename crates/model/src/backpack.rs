//! The Backpack (Hewitt et al., ACL 2023; reference points 6 to 12): each word has L sense
//! vectors that know nothing of their context, and what is predicted at a position is the
//! sum of the senses of the words so far, weighted by what the body makes of the context.

use tch::{Kind, Tensor};
use torch_ext::ResidualBranch;
use torch_ext::profiler::mark;

use crate::config::ModelConfig;
use crate::gpt2::{Gpt2, embed};
use crate::layers::{AddLayerNorm, ForwardOptions, LayerNorm, Linear, Mlp, sure};
use crate::parameters::Parameters;
use crate::sense_table::SenseTable;
use crate::senses::edits::EditedSenses;

/// C(x): the sense vectors of words, from their embeddings alone.
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
        let ln = |which: &str| {
            LayerNorm::new(parameters, &format!("backpack.sense_network.{which}"), config.layer_norm_epsilon)
        };
        SenseNetwork {
            ln: ln("ln"),
            ln_1: ln("block.ln_1"),
            mlp: Mlp::new(parameters, "backpack.sense_network.block.mlp"),
            ln_2: ln("block.ln_2"),
            final_mlp: Mlp::new(parameters, "backpack.sense_network.final_mlp"),
        }
    }

    /// Embeddings `[N, D]` -> what the last MLP makes its senses of, `[N, D]`. A block of the
    /// body without attention: the normalised embedding stands where the attention's output
    /// would.
    fn hidden(&self, embeddings: Tensor, pass: ForwardOptions) -> Tensor {
        let mut x = AddLayerNorm::new(pass.drop(embeddings));
        let normed = x.normalise(&self.ln, Kind::Float, pass);
        x.push(ResidualBranch { value: normed, bias: None });
        let normed = x.normalise(&self.ln_1, pass.kind, pass);
        x.push(self.mlp.branch(&normed, pass));
        x.normalise(&self.ln_2, pass.kind, pass)
    }

    /// Embeddings `[N, D]` -> senses `[N, L D]`.
    fn forward(&self, embeddings: Tensor, pass: ForwardOptions) -> Tensor {
        self.final_mlp.forward(&self.hidden(embeddings, pass), pass)
    }
}

/// alpha: how much each sense of each earlier word counts at each position.
#[derive(Debug)]
struct SenseWeightNetwork {
    c_attn: Linear,
    num_senses: i64,
}

impl SenseWeightNetwork {
    fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        SenseWeightNetwork {
            c_attn: Linear::nn_linear(parameters, "backpack.sense_weight_net.c_attn"),
            num_senses: config.num_senses,
        }
    }

    /// Queries and keys of hidden states `[B T, D]`: `[2, B, L, T, D/L]`.
    fn qk(&self, hidden: &Tensor, sequences: i64, pass: ForwardOptions) -> Tensor {
        let (rows, d) = (hidden.size()[0], hidden.size()[1]);
        let shape = [sequences, rows / sequences, 2, self.num_senses, d / self.num_senses];
        self.c_attn.forward(hidden, pass).view(shape).permute([2, 0, 3, 1, 4])
    }

    /// `[B, L, T, D/L]` and `[B, L, S, D/L]` -> `[B, L, T, S]` fp32.
    fn scores(query: &Tensor, key: &Tensor) -> Tensor {
        let channels = query.size()[3];
        query.matmul(&key.transpose(2, 3)).to_kind(Kind::Float) * (channels as f64).powf(-0.5)
    }

    /// Hidden states `[B T, D]` -> weights `[B, L, T, T]` fp32, each row a distribution
    /// over positions up to its own.
    fn forward(&self, hidden: &Tensor, sequences: i64, pass: ForwardOptions) -> Tensor {
        let (t, qk) = (hidden.size()[0] / sequences, self.qk(hidden, sequences, pass));
        let scores = Self::scores(&qk.get(0), &qk.get(1));
        let future = Tensor::ones([t, t], (Kind::Bool, hidden.device())).triu(1);
        scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, Kind::Float)
    }
}

/// The network without its head: the logits are its output times the embedding.
#[derive(Debug)]
pub struct Backpack {
    body: Gpt2,
    sense_network: SenseNetwork,
    sense_weight_network: SenseWeightNetwork,
    /// Stands where the sense network would, in evaluation.
    table: Option<SenseTable>,
    edited: Option<EditedSenses>,
}

/// The number of words whose senses are made is a multiple of it.
const WORDS_UNIT: i64 = 64;

impl Backpack {
    pub(crate) fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        Backpack {
            body: Gpt2::new(config, parameters),
            sense_network: SenseNetwork::new(config, parameters),
            sense_weight_network: SenseWeightNetwork::new(config, parameters),
            table: None,
            edited: None,
        }
    }

    pub(crate) fn use_table(&mut self, table: SenseTable) {
        self.table = Some(table);
    }

    /// What is edited of its senses.
    pub fn edited(&self) -> Option<&EditedSenses> {
        self.edited.as_ref()
    }

    /// Puts these edits in the place of those that were there.
    pub(crate) fn set_edited(&mut self, edited: Option<EditedSenses>) {
        self.edited = edited;
    }

    /// The body that makes the context.
    pub fn body(&self) -> &Gpt2 {
        &self.body
    }

    /// Sense vectors of ids `[B, T]` -> `[B, T, L, D]`, of the pass's type.
    pub fn senses(&self, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        let (words, place) = self.words(ids, pass);
        let senses = self.word_senses(&words, pass);
        let senses = if pass.shares_senses() { senses.index_select(0, &place) } else { senses };
        let (size, num_senses) = (ids.size(), self.sense_weight_network.num_senses);
        senses.view([size[0], size[1], num_senses, self.body.wte().size()[1]])
    }

    /// Sense vectors of words `[U]` -> `[U, L D]`, of the pass's type: the network's or the table's, or as edited.
    pub(crate) fn word_senses(&self, words: &Tensor, pass: ForwardOptions) -> Tensor {
        let senses = match &self.table {
            Some(table) => table.rows(words).to_device(words.device()).to_kind(pass.kind),
            None => {
                let embeddings = embed(&self.body.tied(pass), words, pass);
                self.sense_network.forward(mark(&embeddings, "embedding", "senses backward"), pass)
            }
        };
        match &self.edited {
            Some(edited) => edited.put(words, senses),
            None => senses,
        }
    }

    /// The words whose senses are made, `[U]`, and which one each token is, `[B T]`: each
    /// distinct token once where nothing tells its places apart, else every token by itself.
    fn words(&self, ids: &Tensor, pass: ForwardOptions) -> (Tensor, Tensor) {
        let ids = ids.flatten(0, -1);
        if pass.shares_senses() {
            let (distinct, place, _) = ids.internal_unique2(true, true, false);
            // A number of rows that products have met before: oneDNN writes code for each new one.
            // What is added is nobody's sense.
            let spare = (-distinct.size()[0]).rem_euclid(WORDS_UNIT);
            (distinct.constant_pad_nd([0, spare]), place)
        } else {
            let place = Tensor::arange(ids.size()[0], (Kind::Int64, ids.device()));
            (ids, place)
        }
    }

    /// Contextualization weights of ids `[B, T]` -> `[B, L, T, T]` fp32.
    pub fn contextualization(&self, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        self.sense_weight_network.forward(&self.body.forward(ids, pass), ids.size()[0], pass)
    }

    /// Weights `[B, L, R, T]` of R positions and senses `[B, T, L, D]` -> outputs `[B, R, D]`: one
    /// matrix product over (position, sense) pairs, so that no sense's own output exists.
    pub fn combine(&self, weights: &Tensor, senses: &Tensor, pass: ForwardOptions) -> Tensor {
        let size = senses.size();
        let (b, t, l, d) = (size[0], size[1], size[2], size[3]);
        let rows = weights.size()[2];
        let weights = weights.to_kind(pass.kind).permute([0, 2, 3, 1]).reshape([b, rows, t * l]);
        weights.matmul(&senses.reshape([b, t * l, d]))
    }

    /// Weights `[L, S]` fp32 of the last of S positions, the last T of which have the hidden
    /// states `[T, D]` and the others their keys in `keys`.
    pub(crate) fn extend_weights(&self, hidden: &Tensor, keys: &mut Option<Tensor>, pass: ForwardOptions) -> Tensor {
        let qk = self.sense_weight_network.qk(hidden, 1, pass);
        let all = match keys.take() {
            Some(keys) => Tensor::cat(&[keys, qk.get(1)], 2),
            None => qk.get(1),
        };
        let last = qk.get(0).narrow(2, hidden.size()[0] - 1, 1);
        let weights = SenseWeightNetwork::scores(&last, &all).softmax(-1, Kind::Float);
        *keys = Some(all);
        weights.squeeze_dim(2).squeeze_dim(0)
    }

    /// `[B, T]` int64 -> `[B T, D]`, to be multiplied by the embedding `wte` ([`Gpt2::tied`]).
    pub(crate) fn forward(&self, wte: &Tensor, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        let sequences = ids.size()[0];
        let weights = &self.sense_weight_network;
        let mixed = if pass.is_fused_on(ids.device()) && weights.num_senses <= torch_ext::MOST_SENSES {
            // The senses first: backward passes run in the opposite order, so that the senses' weights,
            // a quarter of all, get their gradients when the body has let go of what it kept.
            let (words, place) = self.words(ids, pass);
            let last = self.sense_network.final_mlp.bias();
            let (senses, bias) = if self.table.is_none() && self.edited.is_none() {
                let words = mark(&embed(wte, &words, pass), "embedding", "senses backward");
                let hidden = self.sense_network.hidden(words, pass);
                (self.sense_network.final_mlp.branch(&hidden, pass).value, last.shallow_clone())
            } else {
                (self.word_senses(&words, pass), last.zeros_like())
            };
            let senses = mark(&senses, "senses", "embedding backward");
            let hidden = mark(&self.body.forward_from(wte, ids, pass), "body", "mixing backward");
            let qk = weights.c_attn.product(&hidden, pass);
            let qk_bias = weights.c_attn.bias();
            sure(torch_ext::mix_senses(&qk, qk_bias, &senses, &bias, &place, sequences, weights.num_senses))
        } else {
            let hidden = mark(&self.body.forward_from(wte, ids, pass), "body", "embedding backward");
            let senses = mark(&self.senses(ids, pass), "senses", "mixing backward");
            self.combine(&weights.forward(&hidden, sequences, pass), &senses, pass).flatten(0, 1)
        };
        mark(&mixed, "mixing", "head and loss backward")
    }
}
