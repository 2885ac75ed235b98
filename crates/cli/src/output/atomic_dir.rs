//! Output folders that are complete or not there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// A folder to be made, which holds nothing yet.
#[derive(Debug)]
pub(crate) struct AtomicDir {
    path: PathBuf,
    /// The hidden name under which it is filled.
    partial: PathBuf,
}

impl AtomicDir {
    /// Checks, before any work is done, that `path` can become a new folder; makes the one above it.
    ///
    /// # Errors
    /// When something is there already, `path` has no name, or the folder above it takes nothing.
    pub(crate) fn at(path: &Path) -> Result<Self> {
        let occupied = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
        ensure!(!occupied && !path.is_file(), "{} already holds something: name another --output", path.display());
        let name = path
            .file_name()
            .with_context(|| format!("--output {} has no name of its own: name a new folder", path.display()))?;
        let partial = path.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        fs::create_dir_all(&partial).with_context(|| format!("--output {} cannot be made", path.display()))?;
        // Holds something where an earlier call was killed; filling clears it.
        let _ = fs::remove_dir(&partial);
        Ok(AtomicDir { path: path.to_owned(), partial })
    }

    /// Fills the folder under its hidden name, waits for the disk, and renames it; leaves
    /// nothing when that fails.
    ///
    /// # Errors
    /// What `fill` says, or that the disk refuses.
    pub(crate) fn fill(&self, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let write = || -> Result<()> {
            if self.partial.exists() {
                fs::remove_dir_all(&self.partial)?;
            }
            fs::create_dir_all(&self.partial)?;
            fill(&self.partial)?;
            for entry in fs::read_dir(&self.partial)? {
                File::open(entry?.path())?.sync_all()?;
            }
            fs::rename(&self.partial, &self.path)?;
            Ok(())
        };
        write().with_context(|| format!("{} cannot be written", self.path.display())).inspect_err(|_| {
            let _ = fs::remove_dir_all(&self.partial);
        })
    }
}

/// The bytes alone: the copy is the user's, whatever the source's permissions.
///
/// # Errors
/// Naming the file.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("{} cannot be read", from.display()))?;
    fs::write(to, bytes).with_context(|| format!("{} cannot be written", to.display()))
}
