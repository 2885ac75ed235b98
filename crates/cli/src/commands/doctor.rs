//! The command `doctor`.

use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use evals::Tokenizer;
use tch::{Device, Kind};
use torch_ext::{LoadCudaError, cuda_memory, distributed, nccl};
use trainer::gigabytes;

/// Print the detected libtorch, CPU features, CUDA, distributed backends and tokenizer
///
/// Use it to check an installation, and include its output in a bug report.
///
/// Example: backpack doctor
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

impl Doctor {
    /// Prints what was detected.
    pub(crate) fn run(self) -> Result<()> {
        let threads = trainer::set_threads(0, true, trainer::LocalRanks::from_environment()?)?;
        let torch = torch_ext::build_info()?;
        let mut out = io::stdout().lock();
        writeln!(out, "backpack     {}", env!("BACKPACK_VERSION"))?;
        writeln!(out, "libtorch     {} from {}", torch.version, library("libtorch_cpu.so"))?;
        writeln!(out, "             {}; {}", torch.onednn, torch.mkl)?;
        writeln!(out, "CPU          {threads}, {}, fused kernels for {}", torch.cpu_capability, torch.kernels)?;
        for (name, kind) in [("fp32", Kind::Float), ("bf16", Kind::BFloat16)] {
            writeln!(
                out,
                "             {name} matrix products at {:.0} GFLOP/s",
                trainer::matmul_peak(kind, Device::Cpu)? / 1e9
            )?;
        }
        for (heading, lines) in [
            ("CUDA", [cuda(), vec![tf32(), cuda_kernels()]].concat()),
            ("driver", driver()),
            ("NCCL", vec![nccl()]),
            ("Gloo", gloo()),
        ] {
            for (i, line) in lines.iter().enumerate() {
                writeln!(out, "{:13}{line}", if i == 0 { heading } else { "" })?;
            }
        }
        let path = Path::new(Tokenizer::DEFAULT);
        match Tokenizer::open(path) {
            Ok(tokenizer) => writeln!(out, "tokenizer    {} with {} ids", path.display(), tokenizer.vocab_size())?,
            Err(error) => writeln!(out, "tokenizer    not found in the working directory ({error:#})")?,
        }
        Ok(())
    }
}

/// The CUDA libraries of libtorch and the usable GPUs.
fn cuda() -> Vec<String> {
    let count = match torch_ext::usable_gpus() {
        Ok(count) => count,
        Err(LoadCudaError::Library(error)) => {
            return vec![format!("not loaded ({error}); `scripts/setup.sh --cuda` fetches it")];
        }
        Err(error @ LoadCudaError::TooLate) => return vec![format!("not usable ({error}); report this as a bug")],
    };
    let from = library("libtorch_cuda.so");
    if count == 0 {
        return vec![format!("libraries loaded from {from}, but no GPU or driver found")];
    }
    let gpus = (0..count).map(|index| match cuda_memory::device_memory(Device::Cuda(index)) {
        Ok(Some(memory)) => {
            format!("GPU {index}: {:.1} of {:.1} GB free", gigabytes(memory.free), gigabytes(memory.total))
        }
        Ok(None) => format!("GPU {index}"),
        Err(error) => format!("GPU {index}: {error}"),
    });
    [format!("{count} GPU(s), libraries from {from}")].into_iter().chain(gpus).collect()
}

/// The compiler of the CUDA kernels.
fn cuda_kernels() -> String {
    match torch_ext::cuda_kernels::compiler_version() {
        Ok(version) => format!("NVRTC {version} compiles the CUDA kernels of this program"),
        Err(error) => format!("without NVRTC ({error}), operations of libtorch replace the CUDA kernels"),
    }
}

/// Whether fp32 products on a GPU would be rounded to TF32.
fn tf32() -> String {
    match torch_ext::allows_tf32() {
        Ok(false) => "fp32 matrix products do not use TF32".to_owned(),
        Ok(true) => {
            "warning: fp32 matrix products would use TF32, so no GPU is used: unset TORCH_ALLOW_TF32_CUBLAS_OVERRIDE"
                .to_owned()
        }
        Err(error) => format!("TF32: {error}"),
    }
}

/// The NVIDIA driver and all GPUs of this machine, usable or not.
fn driver() -> Vec<String> {
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let Some(version) = version.lines().next() else {
        return vec!["no NVIDIA driver (/proc/driver/nvidia/version does not exist)".to_owned()];
    };
    let gpus = std::fs::read_dir("/proc/driver/nvidia/gpus").into_iter().flatten().flatten();
    let models = gpus.filter_map(|gpu| {
        let text = std::fs::read_to_string(gpu.path().join("information")).ok()?;
        let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned();
        Some(format!("{model} at {}", gpu.file_name().to_string_lossy()))
    });
    let mut models: Vec<String> = models.collect();
    models.sort();
    [version.split_whitespace().collect::<Vec<_>>().join(" ")].into_iter().chain(models).collect()
}

/// NCCL, the communication library for GPUs.
fn nccl() -> String {
    match (nccl::plugin(), nccl::version()) {
        (Err(error), _) => error.to_string(),
        (Ok(path), Ok(version)) => format!("{version}, plug-in {}", path.display()),
        (Ok(path), Err(error)) => format!("plug-in {}, not loaded ({error})", path.display()),
    }
}

/// Gloo, the communication library for CPU processes: network interfaces and own address.
fn gloo() -> Vec<String> {
    let host = distributed::host_name();
    let own = distributed::local_address();
    let resolved = own.map_or("no address".to_owned(), |address| address.to_string());
    let interfaces = match distributed::interfaces() {
        Ok(list) => list.iter().map(|(name, address)| format!("{name} {address}")).collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    };
    let mut lines = vec![
        "uses the network interface with the route to rank 0, or distributed.interface".to_owned(),
        format!("interfaces: {interfaces}"),
        format!("host name {host} resolves to {resolved}"),
    ];
    if own.is_none_or(|address: IpAddr| address.is_loopback()) {
        lines.push(
            "warning: if rank 0 runs here, other machines cannot reach it by this name: set distributed.interface, or MASTER_ADDR to an address"
                .to_owned(),
        );
    }
    lines
}

/// Path from which the library was loaded.
fn library(name: &str) -> String {
    torch_ext::loaded_library(name).map_or("an unknown path".to_owned(), |path| path.display().to_string())
}
