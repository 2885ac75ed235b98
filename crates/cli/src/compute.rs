//! The arguments of every command that computes with a model.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use model::LanguageModel;
use trainer::LocalRanks;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceName {
    /// A GPU where one can be used, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

#[derive(Debug, Args)]
pub(crate) struct Compute {
    /// A model folder (config.json and model.safetensors) or a training checkpoint
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    machine: Machine,
}

#[derive(Debug, Args)]
pub(crate) struct Machine {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceName,
    /// CPU threads; 0 for the physical cores by the local ranks
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl Compute {
    /// Loads the model; a checkpoint's files are checked against their hashes first.
    pub(crate) fn load(&self) -> Result<LanguageModel> {
        self.machine.load(&self.model)
    }
}

impl Machine {
    pub(crate) fn load(&self, folder: &Path) -> Result<LanguageModel> {
        let local = LocalRanks::from_environment()?;
        trainer::set_threads(self.threads, true, local)?;
        let device = match self.device {
            DeviceName::Auto => trainer::Device::Auto,
            DeviceName::Cpu => trainer::Device::Cpu,
            DeviceName::Cuda => trainer::Device::Cuda,
        };
        let device = trainer::select_device(device, local)?;
        trainer::verify_model(folder)?;
        model::load_folder(folder, device)
    }
}

/// Ids from a command line: whole numbers with commas between them.
///
/// # Errors
/// Naming what is none.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<i64>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let id = |word: &str| {
        word.trim().parse().with_context(|| format!("\"{word}\" is no id: give whole numbers, as in 1,2,3"))
    };
    text.split(',').map(id).collect()
}
