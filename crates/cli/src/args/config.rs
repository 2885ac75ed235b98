//! The arguments of every command that takes a run's configuration.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use trainer::Config;

#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The configuration; docs/config.md lists every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Override one key, read as the key's type; may be repeated
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    overrides: Vec<String>,
    /// CPU threads of this process, for run.threads; 0 for the physical cores by the local ranks
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

impl ConfigArgs {
    /// The file with its overrides; a flag wins over `--set`.
    pub(crate) fn load(self) -> Result<Config> {
        let (file, overrides) = self.overridden();
        Config::load(&file, &overrides)
    }

    /// The same for what reads no prepared data.
    pub(crate) fn load_without_data(self) -> Result<Config> {
        let (file, overrides) = self.overridden();
        Config::load_without_data(&file, &overrides)
    }

    fn overridden(mut self) -> (PathBuf, Vec<String>) {
        self.overrides.extend(self.threads.map(|n| format!("run.threads={n}")));
        (self.config, self.overrides)
    }
}
