//! The command `completions`.

use std::io;

use anyhow::Result;
use clap::{Args, Command};
use clap_complete::{Shell, generate};

/// Print the completion script of a shell
///
/// Prints the script to stdout.
///
/// Example: backpack completions bash > ~/.local/share/bash-completion/completions/backpack
#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// Shell to complete in
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    /// Prints the completions of `program`.
    pub(crate) fn run(self, program: &mut Command) -> Result<()> {
        // `generate` panics if it cannot write, so it writes to memory.
        let mut script = Vec::new();
        generate(self.shell, program, "backpack", &mut script);
        Ok(io::Write::write_all(&mut io::stdout().lock(), &script)?)
    }
}
