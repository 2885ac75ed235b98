//! Arguments of the commands that read a run's configuration.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::{Config, DeviceKind};

/// The configuration file and its overrides.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConfigArgs {
    /// Configuration file (TOML); docs/config.md describes every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override a key of the configuration, as in optimizer.learning_rate=1e-3; may be repeated
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// CPU threads of this process, overrides run.threads; 0: all physical cores, shared among the
    /// processes on this machine [default: run.threads]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl ConfigArgs {
    /// Loads the configuration for a command that reads prepared data. `--threads` overrides
    /// `--set run.threads`.
    pub(crate) fn load(self) -> Result<Config> {
        let (file, overrides) = self.file_and_overrides();
        Config::load(&file, &overrides)
    }

    /// Loads the configuration for a command that needs no prepared data.
    pub(crate) fn load_without_data(self) -> Result<Config> {
        let (file, overrides) = self.file_and_overrides();
        Config::load_without_data(&file, &overrides)
    }

    /// Returns `run.device`, or `None` if the configuration cannot be read. Also returns `None` for a
    /// pipe, because it can be read only once and the ranks read it.
    pub(crate) fn device(&self) -> Option<DeviceKind> {
        if !self.config.is_file() {
            return None;
        }
        self.clone().load_without_data().ok().map(|config| config.run.device)
    }

    fn file_and_overrides(mut self) -> (PathBuf, Vec<String>) {
        self.overrides.extend(self.threads.map(|n| format!("run.threads={n}")));
        (self.config, self.overrides)
    }
}
