//! The GPT-2 body (reference points 1 to 5): token ids in, contextual hidden states out.

use tch::Tensor;

use crate::config::ModelConfig;
use crate::layers::{LayerNorm, Linear, Mlp, Pass};
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

    /// Queries, keys and values of `[B, T, D]`: `[3, B, H, T, D/H]`.
    fn qkv(&self, x: &Tensor, pass: Pass) -> Tensor {
        let size = x.size();
        let (b, t, d) = (size[0], size[1], size[2]);
        self.c_attn.forward(x, pass).view([b, t, 3, self.n_head, d / self.n_head]).permute([2, 0, 3, 1, 4])
    }

    /// `[B, H, T, D/H]` each -> `[B, T, D]`. libtorch picks the flash kernel where it has one.
    fn mix(&self, query: &Tensor, key: &Tensor, value: &Tensor, causal: bool, pass: Pass) -> Tensor {
        let none = None::<Tensor>;
        let mixed =
            Tensor::scaled_dot_product_attention(query, key, value, none, pass.dropout, causal, self.scale, false);
        self.c_proj.forward(&mixed.transpose(1, 2).flatten(2, 3), pass)
    }

    /// `[B, T, D] -> [B, T, D]`, causal.
    fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        let qkv = self.qkv(x, pass);
        self.mix(&qkv.get(0), &qkv.get(1), &qkv.get(2), true, pass)
    }

    /// The same for positions that follow those in the cache: all of a sequence at first,
    /// then one at a time.
    fn extend(&self, x: &Tensor, cache: &mut Option<[Tensor; 2]>, pass: Pass) -> Tensor {
        let qkv = self.qkv(x, pass);
        let (key, value, causal) = match cache.take() {
            None => (qkv.get(1), qkv.get(2), true),
            // The only new position sees all others.
            Some([key, value]) => (Tensor::cat(&[key, qkv.get(1)], 2), Tensor::cat(&[value, qkv.get(2)], 2), false),
        };
        let mixed = self.mix(&qkv.get(0), &key, &value, causal, pass);
        *cache = Some([key, value]);
        mixed
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

    /// `[B, T, D] -> [B, T, D]`; the sum stays fp32.
    fn forward(&self, x: &Tensor, pass: Pass) -> Tensor {
        self.add(x, self.attention.forward(&self.ln_1.forward(x), pass), pass)
    }

    /// The same for positions that follow those in the cache.
    fn extend(&self, x: &Tensor, cache: &mut Option<[Tensor; 2]>, pass: Pass) -> Tensor {
        self.add(x, self.attention.extend(&self.ln_1.forward(x), cache, pass), pass)
    }

    /// What the attention found, and the MLP, onto the residual stream.
    fn add(&self, x: &Tensor, attended: Tensor, pass: Pass) -> Tensor {
        let x = x + pass.drop(attended);
        &x + pass.drop(self.mlp.forward(&self.ln_2.forward(&x), pass))
    }
}

/// Keys and values `[B, H, T, D/H]` of the positions so far, for each block.
#[derive(Debug, Default)]
pub(crate) struct BodyCache {
    blocks: Vec<Option<[Tensor; 2]>>,
    length: i64,
}

/// A GPT-2 without its head.
#[derive(Debug)]
pub struct Body {
    wte: Tensor,
    wpe: Tensor,
    blocks: Vec<Block>,
    ln_f: LayerNorm,
}

impl Body {
    pub(crate) fn new(config: &ModelConfig, parameters: &Parameters) -> Self {
        let prefix = config.body_prefix();
        Body {
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

    /// `[B, T]` int64 -> `[B, T, D]` fp32, after the last LayerNorm.
    pub fn forward(&self, ids: &Tensor, pass: Pass) -> Tensor {
        let positions = self.wpe.narrow(0, 0, ids.size()[1]);
        let mut x = pass.drop(embed(&self.wte, ids) + positions);
        for block in &self.blocks {
            x = block.forward(&x, pass);
        }
        self.ln_f.forward(&x)
    }

    /// `[B, T]` int64 that follow what is in the cache -> their `[B, T, D]` fp32. More than
    /// one at a time only into an empty cache.
    pub(crate) fn extend(&self, ids: &Tensor, cache: &mut BodyCache, pass: Pass) -> Tensor {
        let new = ids.size()[1];
        cache.blocks.resize_with(self.blocks.len(), || None);
        let mut x = embed(&self.wte, ids) + self.wpe.narrow(0, cache.length, new);
        for (block, cache) in self.blocks.iter().zip(&mut cache.blocks) {
            x = block.extend(&x, cache, pass);
        }
        cache.length += new;
        self.ln_f.forward(&x)
    }
}

/// Rows of `weight [V, D]`: `[..]` -> `[.., D]`.
pub(crate) fn embed(weight: &Tensor, ids: &Tensor) -> Tensor {
    Tensor::embedding(weight, ids, -1, false, false)
}
