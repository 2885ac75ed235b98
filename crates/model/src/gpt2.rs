//! The GPT-2 body (reference points 1 to 5): token ids in, contextual hidden states out.

use tch::Tensor;
use torch_ext::ResidualBranch;
use torch_ext::profiler::mark;

use crate::config::ModelConfig;
use crate::layers::{AddLayerNorm, ForwardOptions, LayerNorm, Linear, Mlp, sure};
use crate::parameters::Parameters;

#[derive(Debug)]
struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    n_head: i64,
    scale: f64,
}

impl Attention {
    fn new(config: &ModelConfig, parameters: &Parameters, name: &str, layer: i64) -> Self {
        // The inverse-layer scale is in the baseline too.
        let depth = if config.scale_attn_by_inverse_layer_idx { layer + 1 } else { 1 };
        Attention {
            c_attn: Linear::conv1d(parameters, &format!("{name}.c_attn")),
            c_proj: Linear::conv1d(parameters, &format!("{name}.c_proj")),
            n_head: config.n_head,
            scale: (config.head_size() as f64).powf(-0.5) / depth as f64,
        }
    }

    /// Queries, keys and values of `[B T, D]`: `[3, B, H, T, D/H]`.
    fn qkv(&self, x: &Tensor, sequences: i64, pass: ForwardOptions) -> Tensor {
        let (rows, d) = (x.size()[0], x.size()[1]);
        let shape = [sequences, rows / sequences, 3, self.n_head, d / self.n_head];
        self.c_attn.forward(x, pass).view(shape).permute([2, 0, 3, 1, 4])
    }

    /// `[B, H, T, D/H]` each -> `[B T, D]`. libtorch picks the flash kernel where it has one.
    fn mix(&self, query: &Tensor, key: &Tensor, value: &Tensor, causal: bool, pass: ForwardOptions) -> Tensor {
        let none = None::<Tensor>;
        let mixed =
            Tensor::scaled_dot_product_attention(query, key, value, none, pass.dropout, causal, self.scale, false);
        mixed.transpose(1, 2).flatten(2, 3).flatten(0, 1)
    }

    /// `[B T, D] -> [B T, D]`, causal in each of the `sequences`.
    fn forward(&self, x: &Tensor, sequences: i64, pass: ForwardOptions) -> ResidualBranch {
        let mixed = if pass.is_fused_on(x.device()) {
            let qkv = self.c_attn.product(x, pass);
            let bias = self.c_attn.bias();
            sure(torch_ext::attention(&qkv, bias, sequences, self.n_head, self.scale, pass.dropout))
        } else {
            let qkv = self.qkv(x, sequences, pass);
            self.mix(&qkv.get(0), &qkv.get(1), &qkv.get(2), true, pass)
        };
        self.c_proj.branch(&mixed, pass)
    }

    /// The same for the positions `[T, D]` of one sequence that follow those in the cache:
    /// all of it at first, then one at a time.
    fn extend(&self, x: &Tensor, cache: &mut Option<[Tensor; 2]>, pass: ForwardOptions) -> ResidualBranch {
        let qkv = self.qkv(x, 1, pass);
        let (key, value, causal) = match cache.take() {
            None => (qkv.get(1), qkv.get(2), true),
            // The only new position sees all others.
            Some([key, value]) => (Tensor::cat(&[key, qkv.get(1)], 2), Tensor::cat(&[value, qkv.get(2)], 2), false),
        };
        let mixed = self.mix(&qkv.get(0), &key, &value, causal, pass);
        *cache = Some([key, value]);
        self.c_proj.branch(&mixed, pass)
    }
}

#[derive(Debug)]
struct Block {
    ln_1: LayerNorm,
    attention: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(config: &ModelConfig, parameters: &Parameters, name: &str, layer: i64) -> Self {
        let ln = |which: &str| LayerNorm::new(parameters, &format!("{name}.{which}"), config.layer_norm_epsilon);
        Block {
            ln_1: ln("ln_1"),
            attention: Attention::new(config, parameters, &format!("{name}.attn"), layer),
            ln_2: ln("ln_2"),
            mlp: Mlp::new(parameters, &format!("{name}.mlp")),
        }
    }

    /// Adds what `attend` finds, and the MLP, to the residual stream.
    fn add(&self, x: &mut AddLayerNorm, attend: impl FnOnce(&Tensor) -> ResidualBranch, pass: ForwardOptions) {
        let normed = x.normalise(&self.ln_1, pass.kind, pass);
        x.push(attend(&normed));
        let normed = x.normalise(&self.ln_2, pass.kind, pass);
        x.push(self.mlp.branch(&normed, pass));
    }
}

/// Keys and values `[B, H, T, D/H]` of the positions so far, for each block.
#[derive(Debug, Default)]
pub(crate) struct KvCache {
    blocks: Vec<Option<[Tensor; 2]>>,
    length: i64,
}

/// A GPT-2 without its head.
#[derive(Debug)]
pub struct Gpt2 {
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
}

impl Gpt2 {
    pub(crate) fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        let prefix = config.body_prefix();
        Gpt2 {
            wte: parameters.get(&format!("{prefix}.wte.weight")),
            wpe: parameters.get(&format!("{prefix}.wpe.weight")),
            blocks: (0..config.n_layer)
                .map(|layer| Block::new(config, parameters, &format!("{prefix}.h.{layer}"), layer))
                .collect(),
            ln_f: LayerNorm::new(parameters, &format!("{prefix}.ln_f"), config.layer_norm_epsilon),
        }
    }

    /// The token embedding `[V, D]`, which senses and head share.
    pub fn wte(&self) -> &Tensor {
        &self.wte
    }

    /// The token embedding for all that uses it in one pass: rows, and the head's product.
    pub(crate) fn tied(&self, pass: ForwardOptions) -> Tensor {
        if pass.is_fused_on(self.wte.device()) { sure(torch_ext::tie(&self.wte)) } else { self.wte.shallow_clone() }
    }

    /// `[B, T]` int64 -> `[B T, D]`, fp32 or of the pass's type, after the last LayerNorm.
    pub fn forward(&self, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        self.forward_from(&self.tied(pass), ids, pass)
    }

    /// The same where `wte`, [`Gpt2::tied`], has other uses in this pass.
    pub(crate) fn forward_from(&self, wte: &Tensor, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        let (sequences, length) = (ids.size()[0], ids.size()[1]);
        let x = embed(wte, ids, pass) + self.wpe.narrow(0, 0, length);
        let x = mark(&pass.drop(x).flatten(0, 1), "embedding", "body backward");
        let mut x = AddLayerNorm::new(x);
        for block in &self.blocks {
            block.add(&mut x, |normed| block.attention.forward(normed, sequences, pass), pass);
        }
        x.normalise(&self.ln_f, pass.kind, pass)
    }

    /// `[T]` int64 of one sequence that follow what is in the cache -> their `[T, D]`. More
    /// than one at a time only into an empty cache.
    pub(crate) fn extend(&self, ids: &Tensor, cache: &mut KvCache, pass: ForwardOptions) -> Tensor {
        let new = ids.size()[0];
        cache.blocks.resize_with(self.blocks.len(), || None);
        let mut x = AddLayerNorm::new(embed(&self.tied(pass), ids, pass) + self.wpe.narrow(0, cache.length, new));
        for (block, cache) in self.blocks.iter().zip(&mut cache.blocks) {
            block.add(&mut x, |normed| block.attention.extend(normed, cache, pass), pass);
        }
        cache.length += new;
        x.normalise(&self.ln_f, pass.kind, pass)
    }
}

/// Rows of [`Gpt2::tied`] `[V, D]`: `[..]` -> `[.., D]`.
pub(crate) fn embed(wte: &Tensor, ids: &Tensor, pass: ForwardOptions) -> Tensor {
    if pass.is_fused_on(wte.device()) {
        sure(torch_ext::embedding(wte, ids))
    } else {
        Tensor::embedding(wte, ids, -1, false, false)
    }
}
