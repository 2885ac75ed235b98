use std::io;

use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::{Shell, generate};

use crate::Cli;

/// Print the completions of a shell
///
/// Example: backpack completions bash > ~/.local/share/bash-completion/completions/backpack
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(self) -> Result<()> {
        // In one write: a reader that goes away is then an error and no panic.
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "backpack", &mut script);
        Ok(io::Write::write_all(&mut io::stdout().lock(), &script)?)
    }
}
