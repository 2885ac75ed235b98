//! What a training step holds at once, by kind: an estimate by counting what each operation
//! keeps for its backward pass (docs/speed.md and docs/gpu.md say where the counts are from).

use model::{Architecture, Kernels, LOGIT_ROWS, ModelConfig};
use serde::Serialize;

use crate::config::{Config, Precision};

/// Bytes that one process holds at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// fp32 parameters, and the copies of them in the type of products.
    pub weights: u64,
    /// fp32.
    pub gradients: u64,
    /// AdamW's two moments, fp32.
    pub optimizer: u64,
    /// What the forward pass of a micro-batch keeps for its backward pass, which lets go of it as
    /// gradients come.
    pub activations: u64,
    /// A chunk of logits with its gradient, and the gradient of the embedding that comes of it.
    pub logits: u64,
    /// The copy of weights and moments from which checkpoints are written, in the host's memory:
    /// 0 on a GPU.
    pub checkpoint: u64,
    /// Libraries, and what the allocator holds beside what is in use; 0 on a GPU, whose context is
    /// not counted.
    pub overhead: u64,
    /// All kinds together, at the moment when they are most. With one pass a step that is the
    /// end of the forward pass, where there are no gradients but the embedding's, or the end of
    /// the backward pass, where there are all and no activations.
    pub total: u64,
}

/// Measured: `backpack bench` of a model of almost no size.
const LIBRARIES: u64 = 180_000_000;

/// What of the sense weights a kernel that works by blocks keeps: half, and the rest of the blocks
/// on the diagonal.
const CAUSAL: f64 = 0.62;

impl MemoryEstimate {
    /// Of a process of this configuration with so many passes a step over so many sequences.
    pub(crate) fn new(config: &Config, micro_batch: u64, passes: u64, on_gpu: bool) -> Self {
        let model = &config.model;
        let parameters = model.num_parameters() as u64;
        let element = if config.run.precision == Precision::Fp32 { 4 } else { 2 };
        // Matrices alone are multiplied; the embedding is one of them, the positions are not.
        let matrices: i64 = model
            .parameters()
            .iter()
            .filter(|p| p.shape.len() == 2 && !p.name.ends_with("wpe.weight"))
            .map(|p| p.shape.iter().product::<i64>())
            .sum();
        let copies = if element == 2 { 2 * matrices as u64 } else { 0 };
        let rows = micro_batch * config.data.sequence_length as u64;
        let fused_on_cpu = config.run.kernels == Kernels::Fused && !on_gpu;
        let per_token = activations_per_token(config, element as f64, fused_on_cpu);
        let vocabulary = model.vocab_size as u64;
        let logits = match (config.run.kernels, fused_on_cpu) {
            // The gradient overwrites the logits where they stand.
            (Kernels::Fused, true) => (LOGIT_ROWS as u64).min(rows) * vocabulary * element,
            // Logits, their fp32 copy and its softmax.
            (Kernels::Fused, false) => (LOGIT_ROWS as u64).min(rows) * vocabulary * (element + 8),
            // The same for all rows, and the gradients of both.
            (Kernels::Reference, _) => rows * vocabulary * (2 * element + 8),
        };
        let mut memory = MemoryEstimate {
            weights: 4 * parameters + copies,
            gradients: 4 * parameters,
            optimizer: 8 * parameters,
            activations: (rows as f64 * per_token) as u64,
            logits: logits + 4 * vocabulary * model.n_embd as u64,
            checkpoint: if on_gpu { 0 } else { 12 * parameters },
            overhead: if on_gpu { 0 } else { LIBRARIES },
            total: 0,
        };
        let forward = memory.activations + memory.logits;
        // Gradients of the passes before stay, and so do those that a GPU's allocator keeps apart.
        let together = passes > 1 || on_gpu;
        memory.total = memory.weights
            + memory.optimizer
            + memory.checkpoint
            + memory.overhead
            + if together { forward + memory.gradients } else { forward.max(memory.gradients) };
        memory
    }
}

/// Bytes that a token keeps until its backward pass. `e`: bytes of a value of the pass's type.
fn activations_per_token(config: &Config, e: f64, fused_on_cpu: bool) -> f64 {
    let model = &config.model;
    let (d, t) = (model.n_embd as f64, config.data.sequence_length as f64);
    let dropout = model.dropout > 0.0;
    // The fused kernels draw a mask again from its seed.
    let mask = if dropout && !fused_on_cpu { 1.0 } else { 0.0 };
    // Of an MLP, by the width of its middle: the sum before the GELU, and its result where the
    // backward pass does not make it again.
    let mlp = |width: i64| width as f64 * if fused_on_cpu { e } else { 2.0 * e };
    // The results of the norms, which the fused kernels make again.
    let normed = if fused_on_cpu { 0.0 } else { 2.0 * e };
    // The sums before both norms, their results, queries with keys and values, what attention
    // mixed (its weights are made again by all kernels), the masks.
    let block = d * (8.0 + normed + 3.0 * e + e + 2.0 * mask) + mlp(model.inner_size());
    model.n_layer as f64 * block + senses_per_token(model, d, t, e, mlp, mask, fused_on_cpu)
}

fn senses_per_token(
    model: &ModelConfig,
    d: f64,
    t: f64,
    e: f64,
    mlp: impl Fn(i64) -> f64,
    mask: f64,
    fused_on_cpu: bool,
) -> f64 {
    if model.architecture == Architecture::Gpt2 {
        return 0.0;
    }
    let senses = model.num_senses as f64;
    // Three sums and their norms, both MLPs, the senses themselves and their gradient. Every token
    // by itself: without dropout equal ones share theirs, and less is kept.
    let network = d * (12.0 + 3.0 * e + 3.0 * mask)
        + mlp(model.sense_block_size())
        + mlp(model.sense_intermediate_scale * model.n_embd)
        + 2.0 * senses * d * e;
    let weights = if fused_on_cpu {
        senses * t * e * CAUSAL
    } else {
        // The softmax in fp32, its copy for the product, and the scores on their way.
        senses * t * (4.0 + e + 4.0)
    };
    network + weights + 2.0 * d * e
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micro(micro_batch: u64, passes: u64, on_gpu: bool) -> MemoryEstimate {
        let mut config = Config::example();
        config.model = ModelConfig { n_embd: 384, n_head: 6, n_layer: 6, ..ModelConfig::default() };
        MemoryEstimate::new(&config, micro_batch, passes, on_gpu)
    }

    #[test]
    fn what_follows_from_the_parameters_is_exact() {
        let memory = micro(4, 1, false);
        assert_eq!((memory.gradients, memory.optimizer), (4 * 41_659_776, 8 * 41_659_776));
        // 41,659,776 less positions, biases and norms.
        assert_eq!(memory.weights, 4 * 41_659_776 + 2 * 41_419_776);
        assert_eq!(memory.checkpoint, 12 * 41_659_776);
    }

    /// `backpack bench --config configs/owt/micro.toml --set batch.tokens_per_step=N --set batch.micro_batch_size=M
    /// --threads 1 --json`, `peak_memory_bytes`: two Zen 4 cores, 2026-11-25. It saves no checkpoint.
    #[test]
    fn the_estimate_is_near_what_was_measured() {
        for (micro_batch, passes, measured) in [(1, 1, 1.031e9), (2, 1, 1.018e9), (4, 1, 1.111e9), (4, 2, 1.281e9)] {
            let memory = micro(micro_batch, passes, false);
            let estimate = (memory.total - memory.checkpoint) as f64;
            assert!(
                (estimate / measured - 1.0).abs() < 0.10,
                "{passes} times {micro_batch}: {estimate:.3e}, not {measured:.3e}"
            );
        }
    }

    #[test]
    fn only_activations_grow_with_the_micro_batch() {
        let (one, four) = (micro(4, 1, true), micro(16, 1, true));
        assert_eq!(four.activations, 4 * one.activations);
        assert_eq!(four.total - one.total, 3 * one.activations);
        assert_eq!(
            MemoryEstimate { activations: 0, total: 0, ..one },
            MemoryEstimate { activations: 0, total: 0, ..four }
        );
    }

    /// docs/gpu.md: 8 GB for the small model at 16 sequences a pass.
    #[test]
    fn a_gpu_keeps_what_docs_gpu_counts() {
        let total = MemoryEstimate::new(&Config::example(), 16, 1, true).total as f64;
        assert!((7e9..10e9).contains(&total), "{total:.3e}");
    }
}
