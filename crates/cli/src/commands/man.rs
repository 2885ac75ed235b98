//! The command `man`.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_mangen::{Man as Page, generate_to};

/// Write the manual pages
///
/// With a directory, writes one page per command: backpack.1, backpack-train.1 and so on.
/// Without one, prints backpack(1) to stdout.
///
/// Example: backpack man ~/.local/share/man/man1
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Directory for the pages [default: print backpack(1)]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Man {
    /// Writes the manual pages of `program`.
    pub(crate) fn run(self, program: Command) -> Result<()> {
        let Some(directory) = self.directory else {
            let mut page = Vec::new();
            Page::new(program).render(&mut page)?;
            return Ok(io::stdout().lock().write_all(&page)?);
        };
        fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        generate_to(program, &directory)
            .with_context(|| format!("cannot write manual pages in {}", directory.display()))
    }
}
