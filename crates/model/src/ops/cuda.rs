//! The CUDA kernels of a model.

use torch_ext::cuda_kernels::{self, CudaKernel};

use super::{Implementation, Ops};
use crate::config::{Architecture, ModelConfig};

impl Ops {
    /// Compiles and loads the CUDA kernels of a model for sequences of `length` tokens. Returns one
    /// line per reason why kernels are not available.
    pub(crate) fn load_cuda_kernels(self, config: &ModelConfig, length: i64) -> Vec<String> {
        if self.implementation != Implementation::FusedCuda {
            return Vec::new();
        }
        let own = kernels_of(config, length);
        let missing: Vec<CudaKernel> = own.into_iter().filter(|kernel| !self.has_kernel(*kernel)).collect();
        let problems = cuda_kernels::problems().into_iter().filter(|(kernel, _)| missing.contains(kernel));
        lines(problems.map(|(kernel, error)| (kernel, error.to_string())).collect())
    }
}

fn kernels_of(config: &ModelConfig, length: i64) -> Vec<CudaKernel> {
    let mut kernels = vec![
        CudaKernel::CrossEntropy { vocab_size: config.vocab_size },
        CudaKernel::AddLayerNorm { width: config.n_embd },
        CudaKernel::BiasGelu,
    ];
    if config.architecture == Architecture::Backpack {
        kernels.push(CudaKernel::SenseWeights { num_senses: config.num_senses, length });
    }
    kernels
}

/// Describes the problems, with the kernels of a common reason in one line.
fn lines(problems: Vec<(CudaKernel, String)>) -> Vec<String> {
    let mut by_reason: Vec<(String, Vec<&str>)> = Vec::new();
    for (kernel, reason) in problems {
        match by_reason.iter_mut().find(|(other, _)| *other == reason) {
            Some((_, names)) => names.push(kernel.name()),
            None => by_reason.push((reason, vec![kernel.name()])),
        }
    }
    let line = |(reason, names): (String, Vec<&str>)| {
        format!(
            "the CUDA kernels for {} are not available ({reason}): slower operations of libtorch replace them",
            names.join(", ")
        )
    };
    by_reason.into_iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpt2_needs_no_sense_weights() {
        let config = ModelConfig::default();
        assert_eq!(kernels_of(&config, 8).len(), 4);
        assert_eq!(kernels_of(&ModelConfig { architecture: Architecture::Gpt2, ..config }, 8).len(), 3);
    }

    #[test]
    fn kernels_with_one_reason_share_a_line() {
        let missing = || "libnvrtc.so.13 cannot be loaded".to_owned();
        let problems = vec![
            (CudaKernel::BiasGelu, missing()),
            (CudaKernel::AddLayerNorm { width: 8_192 }, "the width 8192 is not in 1..=3072".to_owned()),
            (CudaKernel::CrossEntropy { vocab_size: 64 }, missing()),
        ];
        let lines = lines(problems);
        assert_eq!(
            lines[0],
            "the CUDA kernels for GELU, cross-entropy are not available (libnvrtc.so.13 cannot be loaded): slower operations of libtorch replace them"
        );
        assert!(lines.len() == 2 && lines[1].starts_with("the CUDA kernels for LayerNorm are not available"));
    }
}
