use std::io::{self, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use evals::Tokenizer;
use tch::{Cuda, Device, Kind};
use torch_ext::{cuda_memory, distributed, nccl};

/// Show what this program runs on: libtorch, threads, devices, distributed backends, tokenizer
///
/// Example: backpack doctor
#[derive(Debug, Args)]
pub(crate) struct Doctor {}

impl Doctor {
    pub(crate) fn run(self) -> Result<()> {
        let threads = trainer::set_threads(0, true, trainer::LocalRanks::from_environment()?)?;
        let torch = torch_ext::build_info()?;
        let mut out = io::stdout().lock();
        writeln!(out, "backpack     {}", crate::VERSION)?;
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
        for (head, rest) in [("CUDA", cuda()), ("driver", driver()), ("NCCL", vec![nccl()]), ("Gloo", gloo())] {
            for (i, line) in rest.iter().enumerate() {
                writeln!(out, "{:13}{line}", if i == 0 { head } else { "" })?;
            }
        }
        let path = Path::new(Tokenizer::DEFAULT);
        match Tokenizer::open(path) {
            Ok(found) => writeln!(out, "tokenizer    {} with {} ids", path.display(), found.vocab_size())?,
            Err(error) => writeln!(out, "tokenizer    none below this folder ({error:#})")?,
        }
        Ok(())
    }
}

/// libtorch's CUDA half, and the GPUs that it can use.
fn cuda() -> Vec<String> {
    if let Err(error) = torch_ext::load_cuda() {
        return vec![format!("not loaded ({error}); `scripts/setup.sh --cuda` fetches it")];
    }
    let from = library("libtorch_cuda.so");
    if !Cuda::is_available() {
        return vec![format!("libraries loaded from {from}, but no GPU or driver found")];
    }
    let gigabytes = |bytes: u64| bytes as f64 / 1e9;
    let count = Cuda::device_count().max(0) as usize;
    let gpus = (0..count).map(|index| match cuda_memory::device_memory(Device::Cuda(index)) {
        Ok(Some(memory)) => {
            format!("GPU {index}: {:.1} of {:.1} GB free", gigabytes(memory.free), gigabytes(memory.total))
        }
        Ok(None) => format!("GPU {index}"),
        Err(error) => format!("GPU {index}: {error}"),
    });
    [format!("{count} GPU(s), libraries from {from}")].into_iter().chain(gpus).collect()
}

/// NVIDIA's driver, and the GPUs of this machine, whether or not they can be used.
fn driver() -> Vec<String> {
    let version = std::fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default();
    let Some(version) = version.lines().next() else {
        return vec!["no NVIDIA driver (/proc/driver/nvidia/version is not there)".to_owned()];
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

/// What several GPUs speak by.
fn nccl() -> String {
    match (nccl::plugin(), nccl::version()) {
        (Err(error), _) => error.to_string(),
        (Ok(path), Ok(version)) => format!("{version}, plug-in {}", path.display()),
        (Ok(path), Err(error)) => format!("plug-in {}, not loaded ({error})", path.display()),
    }
}

/// What several processes speak by: where others would look for this machine.
fn gloo() -> Vec<String> {
    let host = distributed::host_name();
    let own = distributed::local_address();
    let stands_for = own.map_or("no address of its own".to_owned(), |address| address.to_string());
    let interfaces = match distributed::interfaces() {
        Ok(list) => list.iter().map(|(name, address)| format!("{name} {address}")).collect::<Vec<_>>().join(", "),
        Err(error) => error.to_string(),
    };
    let mut lines = vec![
        "over the interface that leads to rank 0, unless distributed.interface names another".to_owned(),
        format!("interfaces: {interfaces}"),
        format!("host name {host} stands for {stands_for}"),
    ];
    if own.is_none_or(|address: IpAddr| address.is_loopback()) {
        lines.push(
            "warning: where rank 0 is named so, runs on several machines need distributed.interface, or an address as MASTER_ADDR"
                .to_owned(),
        );
    }
    lines
}

/// Where the loader found a library.
fn library(name: &str) -> String {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = maps.lines().filter_map(|line| line.split_whitespace().last()).find(|path| path.ends_with(name));
    path.unwrap_or("an unknown place").to_owned()
}
