//! An estimate of the memory of a training step, from the tensors that each operation keeps for its
//! backward pass. docs/measurements/gpu-estimate.md contains the sources of the counts, and
//! docs/measurements/memory-estimate.md compares the results with measurements.

use model::{Architecture, ForwardOptions, Kernels, ModelConfig, logit_rows};
use serde::Serialize;
use tch::Device;

use crate::config::{Config, Precision};

/// The largest memory of one process in bytes, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryEstimate {
    /// Parameters in fp32, and their copies in the type of matrix products.
    pub weights: u64,
    /// Gradients in fp32.
    pub gradients: u64,
    /// The two moments of AdamW in fp32.
    pub optimizer: u64,
    /// Tensors that the forward pass of a micro-batch keeps for the backward pass.
    pub activations: u64,
    /// A chunk of logits with its gradient, and the resulting gradient of the embedding.
    pub logits: u64,
    /// Copy of weights and moments in host memory from which checkpoints are written. 0 on a GPU.
    pub checkpoint: u64,
    /// Libraries, and memory that the allocator holds but does not use. 0 on a GPU, whose context
    /// is not counted.
    pub overhead: u64,
    /// Largest sum of all kinds at one time.
    ///
    /// With one micro-batch per step, the maximum is at the end of the forward pass or at the end
    /// of the backward pass. The forward pass ends with all activations and only the gradient of
    /// the embedding. The backward pass ends with all gradients and no activations.
    pub total: u64,
}

/// Converts bytes to gigabytes (10^9 bytes).
pub fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

/// Memory of libraries and allocator, measured with `backpack bench` of a tiny model.
const RUNTIME_BYTES: u64 = 180_000_000;

/// Fraction of the contextualization weights that a blockwise kernel keeps: the causal half, and
/// the rest of the blocks on the diagonal.
const CAUSAL_FRACTION: f64 = 0.62;

impl MemoryEstimate {
    /// Estimates the memory of a process that runs `accumulation` micro-batches of `micro_batch`
    /// sequences per step.
    pub(crate) fn new(config: &Config, micro_batch: u64, accumulation: u64, for_gpu: bool) -> Self {
        let model = &config.model;
        let parameters = model.num_parameters() as u64;
        let element = if config.run.precision == Precision::Fp32 { 4 } else { 2 };
        // Only matrices have copies. The embedding has one, but the position embedding does not,
        // because it is not multiplied.
        let matrices: i64 = model
            .parameters()
            .iter()
            .filter(|p| p.shape.len() == 2 && !p.name.ends_with("wpe.weight"))
            .map(|p| p.shape.iter().product::<i64>())
            .sum();
        let copies = if element == 2 { 2 * matrices as u64 } else { 0 };
        let rows = micro_batch * config.data.sequence_length as u64;
        let device = if for_gpu { Device::Cuda(0) } else { Device::Cpu };
        let (kernels, kind) = (config.run.kernels, config.run.precision.kind());
        let options = ForwardOptions { kernels, kind, ..ForwardOptions::evaluation() };
        let layers = match (options.has_fused_layers(device), for_gpu) {
            (false, _) => Layers::Libtorch,
            (true, false) => Layers::FusedCpu,
            (true, true) => Layers::FusedGpu,
        };
        let per_token = activations_per_token(config, element as f64, layers);
        let vocabulary = model.vocab_size as u64;
        let chunk = (logit_rows(device) as u64).min(rows);
        let logits = match (kernels, layers) {
            // The gradient overwrites the logits.
            (Kernels::Fused, Layers::FusedCpu | Layers::FusedGpu) => chunk * vocabulary * element,
            // Logits, their copy in fp32 and its softmax.
            (Kernels::Fused, Layers::Libtorch) => chunk * vocabulary * (element + 8),
            // Logits and their copy in fp32 for all rows, and the gradients of both.
            (Kernels::Reference, _) => rows * vocabulary * (2 * element + 8),
        };
        let mut memory = MemoryEstimate {
            weights: 4 * parameters + copies,
            gradients: 4 * parameters,
            optimizer: 8 * parameters,
            activations: (rows as f64 * per_token) as u64,
            logits: logits + 4 * vocabulary * model.n_embd as u64,
            checkpoint: if for_gpu { 0 } else { 12 * parameters },
            overhead: if for_gpu { 0 } else { RUNTIME_BYTES },
            total: 0,
        };
        let forward = memory.activations + memory.logits;
        // All gradients exist during the forward pass if the step has several micro-batches. A
        // GPU's allocator keeps their memory separate.
        let gradients_during_forward = accumulation > 1 || for_gpu;
        memory.total = memory.weights
            + memory.optimizer
            + memory.checkpoint
            + memory.overhead
            + if gradients_during_forward { forward + memory.gradients } else { forward.max(memory.gradients) };
        memory
    }
}

/// What computes the layers, which decides the tensors that they keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layers {
    Libtorch,
    FusedCpu,
    FusedGpu,
}

/// Returns the bytes per token that are kept until the backward pass. `e` is the size of a value in
/// the type of matrix products.
fn activations_per_token(config: &Config, e: f64, layers: Layers) -> f64 {
    let model = &config.model;
    let (d, t) = (model.n_embd as f64, config.data.sequence_length as f64);
    let dropout = model.dropout > 0.0;
    // The fused kernels recompute a mask from its seed.
    let mask = if dropout && layers == Layers::Libtorch { 1.0 } else { 0.0 };
    // An MLP keeps the input of its GELU, and the output unless the backward pass recomputes it.
    let mlp = |width: i64| width as f64 * if layers == Layers::Libtorch { 2.0 * e } else { e };
    // Outputs of the LayerNorms, which the fused CPU kernels recompute.
    let normed = if layers == Layers::FusedCpu { 0.0 } else { 2.0 * e };
    // The inputs of both LayerNorms and their outputs, queries, keys and values, the output of
    // attention, and the masks. All kernels recompute the attention weights.
    let block = d * (8.0 + normed + 3.0 * e + e + 2.0 * mask) + mlp(model.inner_size());
    model.n_layer as f64 * block + senses_per_token(model, d, t, e, mlp, mask, layers)
}

/// Returns the bytes per token that the senses and their contextualization keep. The parameters are
/// those of [`activations_per_token`].
fn senses_per_token(
    model: &ModelConfig,
    d: f64,
    t: f64,
    e: f64,
    mlp: impl Fn(i64) -> f64,
    mask: f64,
    layers: Layers,
) -> f64 {
    if model.architecture == Architecture::Gpt2 {
        return 0.0;
    }
    let senses = model.num_senses as f64;
    // Three LayerNorms with their inputs, both MLPs, the senses and their gradient. Each token is
    // counted separately. Without dropout, equal tokens share their senses and the memory is
    // smaller.
    let network = d * (12.0 + 3.0 * e + 3.0 * mask)
        + mlp(model.sense_block_size())
        + mlp(model.sense_intermediate_scale * model.n_embd)
        + 2.0 * senses * d * e;
    let weights = match layers {
        Layers::FusedCpu => senses * t * e * CAUSAL_FRACTION,
        // The weights, and their gradient in the backward pass.
        Layers::FusedGpu => senses * t * 2.0 * e,
        // The softmax in fp32, its copy for the product, and the scores.
        Layers::Libtorch => senses * t * (4.0 + e + 4.0),
    };
    network + weights + 2.0 * d * e
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micro(micro_batch: u64, accumulation: u64, for_gpu: bool) -> MemoryEstimate {
        let mut config = Config::example();
        config.model = ModelConfig { n_embd: 384, n_head: 6, n_layer: 6, ..ModelConfig::default() };
        MemoryEstimate::new(&config, micro_batch, accumulation, for_gpu)
    }

    #[test]
    fn memory_of_parameters_is_exact() {
        let memory = micro(4, 1, false);
        assert_eq!((memory.gradients, memory.optimizer), (4 * 41_659_776, 8 * 41_659_776));
        // 41,659,776 without position embedding, biases and LayerNorms.
        assert_eq!(memory.weights, 4 * 41_659_776 + 2 * 41_419_776);
        assert_eq!(memory.checkpoint, 12 * 41_659_776);
    }

    /// The measured values are `peak_memory_bytes` of `backpack bench --config
    /// configs/owt/micro.toml --set batch.tokens_per_step=N --set batch.micro_batch_size=M
    /// --threads 1 --json` on two Zen 4 cores, 2026-11-25. The benchmark saves no checkpoint.
    #[test]
    fn estimate_is_close_to_measurements() {
        for (micro_batch, accumulation, measured) in
            [(1, 1, 1.031e9), (2, 1, 1.018e9), (4, 1, 1.111e9), (4, 2, 1.281e9)]
        {
            let memory = micro(micro_batch, accumulation, false);
            let estimate = (memory.total - memory.checkpoint) as f64;
            assert!(
                (estimate / measured - 1.0).abs() < 0.10,
                "{accumulation} x {micro_batch}: estimated {estimate:.3e}, measured {measured:.3e}"
            );
        }
    }

    #[test]
    fn only_activations_grow_with_the_micro_batch() {
        // All have at least one whole chunk of logits.
        let (one, four) = (micro(8, 1, true), micro(32, 1, true));
        assert_eq!(four.activations, 4 * one.activations);
        assert_eq!(four.total - one.total, 3 * one.activations);
        assert_eq!(
            MemoryEstimate { activations: 0, total: 0, ..one },
            MemoryEstimate { activations: 0, total: 0, ..four }
        );
    }

    /// docs/measurements/gpu-estimate.md derives 6.7 GB for the small model with 16 sequences per
    /// micro-batch, and 15.7 GB with 64.
    #[test]
    fn estimate_for_a_gpu_agrees_with_the_documentation() {
        for (micro_batch, gigabytes) in [(16, 6.7), (64, 15.7)] {
            let total = MemoryEstimate::new(&Config::example(), micro_batch, 1, true).total as f64 / 1e9;
            assert!((total - gigabytes).abs() < 0.06, "{micro_batch} sequences: {total:.2} GB");
        }
    }
}
