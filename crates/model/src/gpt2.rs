//! GPT-2 without its output head: token ids in, contextual hidden states out.

use tch::Tensor;
use torch_ext::LayerOutput;
use torch_ext::profiler::{Section, mark};

use crate::config::ModelConfig;
use crate::layers::{LayerNorm, Linear, Mlp};
use crate::ops::{ForwardOptions, Ops};
use crate::parameters::Parameters;
use crate::residual_stream::ResidualStream;

/// Causal self-attention with H heads.
#[derive(Debug)]
struct Attention {
    c_attn: Linear,
    c_proj: Linear,
    n_head: i64,
    scale: f64,
}

impl Attention {
    fn new(config: &ModelConfig, parameters: &Parameters, name: &str, layer: i64) -> Self {
        // The published runs divide by the layer number in the GPT-2 baseline, too.
        let divisor = if config.scale_attn_by_inverse_layer_idx { layer + 1 } else { 1 };
        Attention {
            c_attn: Linear::conv1d(parameters, &format!("{name}.c_attn")),
            c_proj: Linear::conv1d(parameters, &format!("{name}.c_proj")),
            n_head: config.n_head,
            scale: (config.head_size() as f64).powf(-0.5) / divisor as f64,
        }
    }

    /// `[B T, D]` -> `[B T, D]`.
    fn forward(&self, x: &Tensor, sequences: i64, ops: Ops) -> LayerOutput {
        let attended = ops.causal_attention(x, &self.c_attn, self.n_head, sequences, self.scale);
        ops.linear_output(&attended, &self.c_proj)
    }

    /// [`Attention::forward`] for the positions `[T, D]` of one sequence that follow those in the
    /// cache. If the cache is not empty, T is 1.
    fn decode_step(&self, x: &Tensor, cache: &mut Option<[Tensor; 2]>, ops: Ops) -> LayerOutput {
        let [query, key, value] = ops.project_heads(x, &self.c_attn, self.n_head, 1);
        let (key, value, causal) = match cache.take() {
            None => (key, value, true),
            // The new position attends to all positions.
            Some([keys, values]) => (Tensor::cat(&[keys, key], 2), Tensor::cat(&[values, value], 2), false),
        };
        let attended = ops.attend(&query, &key, &value, causal, self.scale);
        *cache = Some([key, value]);
        ops.linear_output(&attended, &self.c_proj)
    }
}

/// A transformer block: x += Attention(LN1(x)); x += MLP(LN2(x)).
#[derive(Debug)]
struct Block {
    ln_1: LayerNorm,
    attention: Attention,
    ln_2: LayerNorm,
    mlp: Mlp,
}

impl Block {
    fn new(config: &ModelConfig, parameters: &Parameters, name: &str, layer: i64) -> Self {
        let ln = |ln: &str| LayerNorm::new(parameters, &format!("{name}.{ln}"), config.layer_norm_epsilon);
        Block {
            ln_1: ln("ln_1"),
            attention: Attention::new(config, parameters, &format!("{name}.attn"), layer),
            ln_2: ln("ln_2"),
            mlp: Mlp::new(parameters, &format!("{name}.mlp")),
        }
    }

    /// Applies the block to the residual stream; `attention` is [`Attention::forward`] or
    /// [`Attention::decode_step`].
    fn apply(&self, x: &mut ResidualStream, attention: impl FnOnce(&Tensor) -> LayerOutput, ops: Ops) {
        let normed = x.normalize(&self.ln_1, ops.kind(), ops);
        x.add(attention(&normed));
        let normed = x.normalize(&self.ln_2, ops.kind(), ops);
        x.add(ops.mlp(&normed, &self.mlp));
    }
}

/// The keys and values `[B, H, T, D/H]` of the positions so far, for each block.
#[derive(Debug, Default)]
pub(crate) struct KvCache {
    blocks: Vec<Option<[Tensor; 2]>>,
    length: i64,
}

/// A GPT-2 without its output head: the trunk of a Backpack, and of the baseline.
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

    /// The token embedding `[V, D]`, which the senses and the output head share.
    pub fn wte(&self) -> &Tensor {
        &self.wte
    }

    /// Hidden states after the last LayerNorm: ids `[B, T]` int64 -> `[B T, D]`, in fp32 or in the
    /// type of matrix products.
    pub fn forward(&self, ids: &Tensor, options: ForwardOptions) -> Tensor {
        let ops = Ops::new(self.wte.device(), options);
        self.hidden_states(&ops.shared_embedding(&self.wte), ids, ops)
    }

    /// [`Gpt2::forward`] with the shared embedding `wte` `[V, D]` of the forward pass.
    pub(crate) fn hidden_states(&self, wte: &Tensor, ids: &Tensor, ops: Ops) -> Tensor {
        let (sequences, length) = (ids.size()[0], ids.size()[1]);
        let x = ops.embedding(wte, ids) + self.wpe.narrow(0, 0, length); // [B, T, D]
        let x = mark(&ops.dropout(x).flatten(0, 1), Section::Embedding, Section::BodyBackward); // [B T, D]
        let mut x = ResidualStream::new(x); // moved, so that the first block can free it
        for block in &self.blocks {
            block.apply(&mut x, |normed| block.attention.forward(normed, sequences, ops), ops);
        }
        x.normalize(&self.ln_f, ops.kind(), ops)
    }

    /// Hidden states of the tokens of one sequence that follow those in the cache: ids `[T]` int64
    /// -> `[T, D]`. If the cache is not empty, T is 1.
    pub(crate) fn decode_step(&self, ids: &Tensor, cache: &mut KvCache, ops: Ops) -> Tensor {
        let new = ids.size()[0];
        cache.blocks.resize_with(self.blocks.len(), || None);
        let wte = ops.shared_embedding(&self.wte);
        let mut x = ResidualStream::new(ops.embedding(&wte, ids) + self.wpe.narrow(0, cache.length, new));
        for (block, cache) in self.blocks.iter().zip(&mut cache.blocks) {
            block.apply(&mut x, |normed| block.attention.decode_step(normed, cache, ops), ops);
        }
        cache.length += new;
        x.normalize(&self.ln_f, ops.kind(), ops)
    }
}
