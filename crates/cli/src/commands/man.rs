use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Args, CommandFactory};
use clap_mangen::{Man as Page, generate_to};

use crate::Cli;

/// Write the manual pages, one a command, into a folder; without one, print backpack(1)
///
/// Example: backpack man ~/.local/share/man/man1
#[derive(Debug, Args)]
pub(crate) struct Man {
    /// Where backpack.1, backpack-train.1 and so on go
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
}

impl Man {
    pub(crate) fn run(self) -> Result<()> {
        let Some(folder) = self.folder else {
            let mut page = Vec::new();
            Page::new(Cli::command()).render(&mut page)?;
            return Ok(io::stdout().lock().write_all(&page)?);
        };
        fs::create_dir_all(&folder).with_context(|| format!("{} cannot be made", folder.display()))?;
        generate_to(Cli::command(), &folder)
            .with_context(|| format!("no manual pages can be written in {}", folder.display()))
    }
}
