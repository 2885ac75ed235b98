//! Compiled kernels in the cache directory of the user, so that only the first run on a GPU
//! compiles them.
//!
//! A file contains the code, followed by its SHA-256, because the driver cannot detect a truncated file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

/// Length of a SHA-256.
const HASH_BYTES: usize = 32;

/// Returns the path of the compiled code for these inputs of the compiler: `backpack/cuda-kernels`
/// in `XDG_CACHE_HOME` or `~/.cache`. `None` if neither variable is set.
pub(super) fn path(inputs: &[&str]) -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let root = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    let mut hash = Sha256::new();
    for input in inputs {
        hash.update((input.len() as u64).to_le_bytes());
        hash.update(input);
    }
    let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Some(root.join("backpack/cuda-kernels").join(name).with_extension("cubin"))
}

/// Reads code that [`write()`] has written. `None` if the file is missing or damaged.
pub(super) fn read(path: &Path) -> Option<Vec<u8>> {
    let mut code = std::fs::read(path).ok()?;
    let hash = code.split_off(code.len().checked_sub(HASH_BYTES)?);
    (!code.is_empty() && Sha256::digest(&code)[..] == hash[..]).then_some(code)
}

/// Writes compiled code. Another process reads either nothing or all of it.
///
/// # Errors
/// The directory or the file cannot be written.
pub(super) fn write(path: &Path, code: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(directory)?;
    let mut file = NamedTempFile::new_in(directory)?;
    file.write_all(code)?;
    file.write_all(&Sha256::digest(code))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_depends_on_every_input() {
        let paths = [path(&["ab", "c"]), path(&["a", "bc"]), path(&["ab", "c", ""])];
        assert!(paths[0] != paths[1] && paths[0] != paths[2] && paths[1] != paths[2]);
        assert_eq!(path(&["ab", "c"]), paths[0]);
    }

    #[test]
    fn only_the_last_written_code_remains() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cache/code.cubin");
        write(&path, b"first").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // A file is in the place of the directory.
        assert!(write(&path.join("code.cubin"), b"code").is_err());
    }

    #[test]
    fn damaged_code_is_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("code.cubin");
        assert!(read(&path).is_none());
        write(&path, b"code").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for damaged in [&whole[..0], &whole[..3], &whole[..whole.len() - 1], &whole[1..], &whole[4..]] {
            std::fs::write(&path, damaged).unwrap();
            assert!(read(&path).is_none(), "{} bytes", damaged.len());
        }
    }
}
