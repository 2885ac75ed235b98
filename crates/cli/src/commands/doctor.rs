use std::io::{self, Write};
use std::path::Path;

use anyhow::Result;
use clap::Args;
use tch::{Cuda, Device, Kind};
use trainer::LocalRanks;

use crate::tokenizer;

/// Show what this program runs on: libtorch, threads, devices, tokenizer
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) fn run(self) -> Result<()> {
        let threads = trainer::set_threads(0, true, LocalRanks::from_environment()?)?;
        let torch = torch_ext::describe()?;
        let mut out = io::stdout().lock();
        writeln!(out, "backpack     {}", env!("CARGO_PKG_VERSION"))?;
        writeln!(out, "libtorch     {} from {}", torch.version, library("libtorch_cpu.so"))?;
        writeln!(out, "             {}; {}", torch.onednn, torch.mkl)?;
        writeln!(out, "CPU          {threads}, {}, own kernels for {}", torch.cpu_capability, torch.kernels)?;
        for (name, kind) in [("fp32", Kind::Float), ("bf16", Kind::BFloat16)] {
            writeln!(
                out,
                "             {name} matrix products at {:.0} GFLOP/s",
                trainer::matmul_peak(kind, Device::Cpu)? / 1e9
            )?;
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
