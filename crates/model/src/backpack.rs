//! The Backpack (Hewitt et al., ACL 2023; reference points 6 to 12): each word has L sense
//! vectors that know nothing of their context, and what is predicted at a position is the
//! sum of the senses of the words so far, weighted by what the body makes of the context.

use tch::{Kind, Tensor};

use crate::body::{Body, embed};
use crate::config::ModelConfig;
use crate::layers::{Kernels, LayerNorm, Linear, Mlp, Pass};
use crate::parameters::Parameters;

/// C(x): the sense vectors of words, from their embeddings alone.
#[derive(Debug)]
struct SenseNetwork {
    ln: LayerNorm,
    ln_1: LayerNorm,
    mlp: Mlp,
    ln_2: LayerNorm,
    final_mlp: Mlp,
    num_senses: i64,
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
            num_senses: config.num_senses,
        }
    }

    /// Embeddings `[N, D]` -> senses `[N, L, D]`. A block of the body without attention:
    /// the normalised embedding stands where the attention's output would.
    fn forward(&self, embeddings: Tensor, pass: Pass) -> Tensor {
        let size = embeddings.size();
        let x = pass.drop(embeddings);
        let x = &x + pass.drop(self.ln.forward(&x));
        let x = &x + pass.drop(self.mlp.forward(&self.ln_1.forward(&x), pass));
        let senses = self.final_mlp.forward(&self.ln_2.forward(&x), pass);
        senses.view([size[0], self.num_senses, size[1]])
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

    /// Queries and keys of hidden states `[B, T, D]`: `[2, B, L, T, D/L]`.
    fn qk(&self, hidden: &Tensor, pass: Pass) -> Tensor {
        let size = hidden.size();
        let (b, t, d) = (size[0], size[1], size[2]);
        let shape = [b, t, 2, self.num_senses, d / self.num_senses];
        self.c_attn.forward(hidden, pass).view(shape).permute([2, 0, 3, 1, 4])
    }

    /// `[B, L, T, D/L]` and `[B, L, S, D/L]` -> `[B, L, T, S]` fp32.
    fn scores(query: &Tensor, key: &Tensor) -> Tensor {
        let channels = query.size()[3];
        query.matmul(&key.transpose(2, 3)).to_kind(Kind::Float) * (channels as f64).powf(-0.5)
    }

    /// Hidden states `[B, T, D]` -> weights `[B, L, T, T]` fp32, each row a distribution
    /// over positions up to its own.
    fn forward(&self, hidden: &Tensor, pass: Pass) -> Tensor {
        let (t, qk) = (hidden.size()[1], self.qk(hidden, pass));
        let scores = Self::scores(&qk.get(0), &qk.get(1));
        let future = Tensor::ones([t, t], (Kind::Bool, hidden.device())).triu(1);
        scores.masked_fill(&future, f64::NEG_INFINITY).softmax(-1, Kind::Float)
    }
}

/// The network without its head: the logits are its output times the embedding.
#[derive(Debug)]
pub struct Backpack {
    body: Body,
    sense_network: SenseNetwork,
    sense_weight_network: SenseWeightNetwork,
}

impl Backpack {
    pub(crate) fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        Backpack {
            body: Body::new(config, parameters),
            sense_network: SenseNetwork::new(config, parameters),
            sense_weight_network: SenseWeightNetwork::new(config, parameters),
        }
    }

    /// The body that makes the context.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Sense vectors of ids `[B, T]` -> `[B, T, L, D]`, of the pass's type.
    pub fn senses(&self, ids: &Tensor, pass: Pass) -> Tensor {
        let size = ids.size();
        let by_word = |words: &Tensor| self.sense_network.forward(embed(self.body.wte(), words), pass);
        let senses = if pass.kernels == Kernels::Fused && pass.dropout == 0.0 {
            let (distinct, place, _) = ids.internal_unique2(true, true, false);
            by_word(&distinct).index_select(0, &place.flatten(0, -1))
        } else {
            by_word(&ids.flatten(0, -1))
        };
        let each = senses.size();
        senses.view([size[0], size[1], each[1], each[2]])
    }

    /// Contextualization weights of ids `[B, T]` -> `[B, L, T, T]` fp32.
    pub fn contextualization(&self, ids: &Tensor, pass: Pass) -> Tensor {
        self.sense_weight_network.forward(&self.body.forward(ids, pass), pass)
    }

    /// Weights `[B, L, T, T]` and senses `[B, T, L, D]` -> outputs `[B, T, D]`: one matrix
    /// product over (position, sense) pairs, so that no sense's own output exists.
    pub fn combine(&self, weights: &Tensor, senses: &Tensor, pass: Pass) -> Tensor {
        let size = senses.size();
        let (b, t, l, d) = (size[0], size[1], size[2], size[3]);
        let weights = weights.to_kind(pass.kind).permute([0, 2, 3, 1]).reshape([b, t, t * l]);
        weights.matmul(&senses.reshape([b, t * l, d]))
    }

    /// Weights `[L, S]` fp32 of the last of S positions, the last T of which have the hidden
    /// states `[1, T, D]` and the others their keys in `keys`.
    pub(crate) fn extend_weights(&self, hidden: &Tensor, keys: &mut Option<Tensor>, pass: Pass) -> Tensor {
        let qk = self.sense_weight_network.qk(hidden, pass);
        let all = match keys.take() {
            Some(keys) => Tensor::cat(&[keys, qk.get(1)], 2),
            None => qk.get(1),
        };
        let last = qk.get(0).narrow(2, hidden.size()[1] - 1, 1);
        let weights = SenseWeightNetwork::scores(&last, &all).softmax(-1, Kind::Float);
        *keys = Some(all);
        weights.squeeze_dim(2).squeeze_dim(0)
    }

    /// `[B, T]` int64 -> `[B, T, D]`, to be multiplied by the embedding.
    pub fn forward(&self, ids: &Tensor, pass: Pass) -> Tensor {
        self.combine(&self.contextualization(ids, pass), &self.senses(ids, pass), pass)
    }
}
