//! The run directory, which one process at a time holds.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

/// The name of the locked file.
const LOCK_FILE: &str = ".lock";
/// Attempts to take the lock: `backpack status` may hold it for a moment.
const LOCK_ATTEMPTS: u32 = 5;
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Returns whether a process holds the run directory. Only processes on this machine are detected,
/// unless the file system shares locks between machines.
pub(crate) fn is_held(path: &Path) -> bool {
    // A shared lock that is released at once: two callers do not block each other.
    File::open(path.join(LOCK_FILE)).is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// Returns when the lock was last taken, or `None` if the file system does not record it.
pub(crate) fn taken_at(path: &Path) -> Option<SystemTime> {
    path.join(LOCK_FILE).metadata().and_then(|lock| lock.modified()).ok()
}

/// A run directory, locked for the lifetime of this value.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// The kernel releases the lock when the process ends, even if it is killed.
    _lock: File,
}

impl RunDir {
    /// Creates the directory if necessary and takes its lock.
    ///
    /// # Errors
    /// Another process holds the directory, or it cannot be written.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("the run directory {} cannot be created", path.display()))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("{} cannot be written", lock_path.display()))?;
        let mut locked = lock.try_lock();
        for _ in 1..LOCK_ATTEMPTS {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            sleep(LOCK_RETRY_DELAY);
            locked = lock.try_lock();
        }
        match locked {
            Ok(()) => {
                // Read by `taken_at` only, so a failure does not matter here.
                let _ = lock.set_modified(SystemTime::now());
                Ok(RunDir { path: path.to_owned(), _lock: lock })
            }
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "the run directory {} is in use by another process: wait for it, or use another --run-dir",
                    path.display()
                )
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("{} cannot be locked", lock_path.display())),
        }
    }

    /// Returns the path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::{RunDir, is_held};

    #[test]
    fn a_directory_in_use_is_an_error_until_it_is_released() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_held(dir.path()));
        let first = RunDir::open(dir.path()).unwrap();
        assert!(is_held(dir.path()));
        let error = RunDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("is in use by another process"), "{error}");
        drop(first);
        assert!(!is_held(dir.path()));
        RunDir::open(dir.path()).unwrap();
    }
}
