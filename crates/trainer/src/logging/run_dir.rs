//! A run's folder, held by one process at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

/// The file that is locked.
const LOCK_FILE: &str = ".lock";
/// How often, and how long after one another, the lock is tried for: `backpack status` may hold
/// it for a moment.
const TRIES: u32 = 5;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// Whether a process on this machine (or, where the file system locks for all, on any) has the
/// folder.
pub(crate) fn is_held(path: &Path) -> bool {
    // Shared, and let go at once: two who ask do not see one another.
    File::open(path.join(LOCK_FILE)).is_ok_and(|lock| matches!(lock.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

/// When the process that has the folder took it; None where the file system does not say.
pub(crate) fn taken_at(path: &Path) -> Option<SystemTime> {
    path.join(LOCK_FILE).metadata().and_then(|lock| lock.modified()).ok()
}

/// The folder, locked for as long as this lives.
#[derive(Debug)]
pub(crate) struct RunDir {
    path: PathBuf,
    /// The kernel drops the lock with the process, however it ends.
    _lock: File,
}

impl RunDir {
    /// Makes the folder where it is not there, and takes its lock.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        fs::create_dir_all(path).with_context(|| format!("the run folder {} cannot be made", path.display()))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("{} cannot be written", lock_path.display()))?;
        let mut locked = lock.try_lock();
        for _ in 1..TRIES {
            if !matches!(locked, Err(TryLockError::WouldBlock)) {
                break;
            }
            sleep(BETWEEN_TRIES);
            locked = lock.try_lock();
        }
        match locked {
            Ok(()) => {
                // For `taken_at`; of no other use.
                let _ = lock.set_modified(SystemTime::now());
                Ok(RunDir { path: path.to_owned(), _lock: lock })
            }
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
    use super::{RunDir, is_held};

    #[test]
    fn a_folder_in_use_is_refused_until_it_is_let_go() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!is_held(folder.path()));
        let first = RunDir::open(folder.path()).unwrap();
        assert!(is_held(folder.path()));
        let error = RunDir::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("is in use by another process"), "{error}");
        drop(first);
        assert!(!is_held(folder.path()));
        RunDir::open(folder.path()).unwrap();
    }
}
