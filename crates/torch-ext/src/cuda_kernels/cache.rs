//! Compiled kernels in the cache directory of the user, so that only the first run on a GPU
//! compiles them.

use std::path::PathBuf;
use std::process;

use sha2::{Digest, Sha256};

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

/// Writes compiled code. Another process never reads a part of it. A failure is ignored, because
/// the next run then compiles the code again.
pub(super) fn write(path: &std::path::Path, code: &[u8]) {
    let Some(directory) = path.parent() else { return };
    let partial = path.with_extension(format!("partial-{}", process::id()));
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(&partial, code))
        .and_then(|()| std::fs::rename(&partial, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&partial);
    }
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
    fn written_code_is_complete_and_leaves_no_other_file() {
        let directory = std::env::temp_dir().join(format!("backpack-cache-{}", process::id()));
        let path = directory.join("code.cubin");
        write(&path, b"first");
        write(&path, b"second");
        assert_eq!(std::fs::read(&path).unwrap(), b"second");
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 1);
        std::fs::remove_dir_all(&directory).unwrap();
        // Ignored: a file is in the place of the directory.
        write(&PathBuf::from("/dev/null/code.cubin"), b"code");
    }
}
