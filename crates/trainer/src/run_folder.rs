//! A run's folder, held by one process at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    /// The kernel drops the lock with the process, however it ends.
    _lock: File,
}

impl RunFolder {
    /// Makes the folder where it is not there, and takes its lock.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("the run folder {} cannot be made", path.display()))?;
        let lock_path = path.join(".lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("{} cannot be written", lock_path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(RunFolder { path: path.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "the run folder {} is in use by another process: wait for it, or use another --run-dir",
                    path.display()
                )
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("{} cannot be locked", lock_path.display())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Replaces a file in one move.
    pub(crate) fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!(".{name}.partial"));
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("{} cannot be written", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::RunFolder;

    #[test]
    fn a_folder_in_use_is_refused_until_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        let first = RunFolder::open(folder.path()).unwrap();
        let error = RunFolder::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is in use by another process"), "{error}");
        drop(first);
        RunFolder::open(folder.path()).unwrap();
    }
}
