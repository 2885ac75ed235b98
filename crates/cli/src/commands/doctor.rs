use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use tch::{Cuda, Device, Kind, Tensor};

use crate::tokenizer;

/// Show what this program runs on: libtorch, threads, devices, tokenizer
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) fn run(self) -> Result<()> {
        let threads = trainer::set_threads(0, true)?;
        let torch = torch_ext::describe()?;
        let mut out = io::stdout().lock();
        writeln!(out, "backpack     {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "libtorch     {} from {}", torch.version, library("libtorch_cpu.so"))?;
        writeln!(out, "             {}; {}", torch.onednn, torch.mkl)?;
        writeln!(out, "CPU          {threads}, {}, own kernels for {}", torch.cpu_capability, torch.kernels)?;
        for (name, kind) in [("fp32", Kind::Float), ("bf16", Kind::BFloat16)] {
            writeln!(out, "             {name} matrix products at {:.0} GFLOP/s", products(kind) / 1e9)?;
        }
        match torch_ext::load_cuda() {
            Ok(()) if Cuda::is_available() => {
                writeln!(
                    out,
                    "CUDA         {} GPU(s), libraries from {}",
                    Cuda::device_count(),
                    library("libtorch_cuda.so")
                )?;
            }
            Ok(()) => writeln!(
                out,
                "CUDA         libraries loaded from {}, but no GPU or driver found",
                library("libtorch_cuda.so")
            )?,
            Err(error) => writeln!(out, "CUDA         not loaded ({error}); `scripts/setup.sh --cuda` fetches it")?,
        }
        let path = Path::new(tokenizer::DEFAULT);
        match tokenizer::open(path) {
            Ok(found) => writeln!(out, "tokenizer    {} with {} ids", path.display(), found.get_vocab_size(true))?,
            Err(error) => writeln!(out, "tokenizer    none below this folder ({error:#})")?,
        }
        Ok(())
    }
}

/// Where the loader found a library.
fn library(name: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.ends_with(name));
    path.unwrap_or("an unknown place").to_owned()
}

/// FLOP/s of a 2048-square product, the best of three.
fn products(kind: Kind) -> f64 {
    let a = Tensor::ones([2048, 2048], (Kind::Float, Device::Cpu)).to_kind(kind);
    let seconds = (0..3).map(|_| {
        let start = Instant::now();
        let _ = a.matmul(&a);
        start.elapsed().as_secs_f64()
    });
    2.0 * 2048f64.powi(3) / seconds.fold(f64::INFINITY, f64::min)
}
