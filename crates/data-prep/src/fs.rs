//! Atomic replacement of files, and syncing of directories.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Whether a write waits until its data is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Waits (`fsync`). The file survives a power failure.
    Synced,
    /// Does not wait. Meant for files that are rewritten every few seconds.
    Buffered,
}

/// Replaces the file at `path` with `bytes`. Readers see the old or the new content, never a part
/// of it, even if the process is killed: the bytes are written to `.NAME.partial` in the same
/// directory, which is then renamed.
///
/// # Errors
/// The temporary file cannot be written, synced or renamed; it may then remain, and the old file is
/// unchanged. Or the directory cannot be synced after the rename; a power failure may then restore
/// the old file.
pub fn write_atomic(path: &Path, bytes: impl AsRef<[u8]>, durability: Durability) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no file name"))?;
    let temporary = path.with_file_name(format!(".{}.partial", name.to_string_lossy()));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes.as_ref())?;
    if durability == Durability::Synced {
        file.sync_all()?;
    }
    drop(file);
    fs::rename(&temporary, path)?;
    if durability == Durability::Synced {
        sync_dir(&parent(path))?;
    }
    Ok(())
}

/// Waits until the entries of a directory (new and renamed files) are on disk.
///
/// # Errors
/// The directory cannot be opened or synced.
pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Returns the directory that contains `path`: `.` for a bare file name.
pub fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for durability in [Durability::Synced, Durability::Buffered] {
            write_atomic(&path, "old", durability).unwrap();
            fs::create_dir(dir.path().join(".file.partial")).unwrap();
            assert!(write_atomic(&path, "new", durability).is_err());
            assert_eq!(fs::read_to_string(&path).unwrap(), "old");
            fs::remove_dir(dir.path().join(".file.partial")).unwrap();
            write_atomic(&path, "new", durability).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        }
        assert_eq!(parent(Path::new("file")), Path::new("."));
    }
}
