//! Output directories that appear only when they are complete.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use data_prep::fs::{parent, sync_dir};

/// A new output directory. It is filled under a hidden name and then renamed.
#[derive(Debug)]
pub(crate) struct AtomicDir {
    path: PathBuf,
    /// The hidden path, in the same directory as `path`.
    partial: PathBuf,
}

impl AtomicDir {
    /// Checks, before the work starts, that the directory `path` can be created. Creates its
    /// parent.
    ///
    /// # Errors
    /// If `path` is a file, is a directory with contents, has no name (as `..`), or if its parent
    /// cannot be written.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let has_contents = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
        ensure!(!has_contents, "--output {} is not empty: choose a new directory", path.display());
        ensure!(!path.is_file(), "--output {} is a file: choose a new directory", path.display());
        let name = path
            .file_name()
            .with_context(|| format!("--output {} has no directory name: choose a new directory", path.display()))?;
        let partial = path.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        fs::create_dir_all(&partial).with_context(|| format!("cannot create --output {}", path.display()))?;
        // Fails if a killed process has left files there; `fill` deletes them.
        let _ = fs::remove_dir(&partial);
        Ok(AtomicDir { path: path.to_owned(), partial })
    }

    /// Calls `fill` with the hidden directory, syncs the directory and its files to disk, and
    /// renames it. On failure the hidden directory is deleted.
    ///
    /// # Errors
    /// If `fill` fails, or if the directory cannot be written. If only the sync after the rename fails,
    /// the directory exists.
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
            sync_dir(&self.partial)?;
            fs::rename(&self.partial, &self.path)?;
            Ok(sync_dir(&parent(&self.path))?)
        };
        write().with_context(|| format!("cannot write {}", self.path.display())).inspect_err(|_| {
            let _ = fs::remove_dir_all(&self.partial);
        })
    }
}
