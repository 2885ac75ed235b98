//! Expansion of the inputs on the command line to an ordered list of files.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::format;
use super::jsonl::STANDARD_INPUT;
use super::source_file::SourceFile;

/// Returns the files of all inputs, in order. With `skip_bad`, the result includes files whose size
/// cannot be read. Reading such a file fails later, and the file is then skipped.
///
/// # Errors
/// An input matches no file, or a file has an unknown format.
pub(crate) fn expand(inputs: &[String], skip_bad: bool) -> Result<Vec<SourceFile>> {
    ensure!(!inputs.is_empty(), "no input: at least one file, directory or glob is needed");
    let mut files = Vec::new();
    for input in inputs {
        let path = Path::new(input);
        if input == STANDARD_INPUT {
            files.push(SourceFile::standard_input());
        } else if path.is_dir() {
            files.extend(expand_dir(path, skip_bad)?);
        } else if path.exists() {
            ensure!(path.is_file(), "{input} is not a regular file: read a pipe from standard input with --input -");
            files.push(SourceFile::new(path.to_owned(), format::detect(path)?, skip_bad)?);
        } else if input.contains(['*', '?', '[']) {
            files.extend(expand_glob(input, skip_bad)?);
        } else {
            bail!("no such file or directory: {input}");
        }
    }
    ensure!(
        files.iter().filter(|f| f.is_standard_input()).count() <= 1,
        "the input {STANDARD_INPUT} is given twice: standard input can be read only once"
    );
    Ok(files)
}

fn expand_glob(pattern: &str, skip_bad: bool) -> Result<Vec<SourceFile>> {
    let paths = glob::glob(pattern).with_context(|| format!("{pattern} is not a valid glob"))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.with_context(|| format!("cannot read a directory of the glob {pattern}"))?;
        if !path.is_dir() {
            found.push(path);
        }
    }
    ensure!(
        !found.is_empty(),
        "the glob {pattern} matches no file (matching directories are ignored: give them as inputs)"
    );
    sort(&mut found);
    found
        .into_iter()
        .map(|path| format::detect(&path).and_then(|format| SourceFile::new(path, format, skip_bad)))
        .collect()
}

/// Returns all files below a directory that have a known extension.
fn expand_dir(dir: &Path, skip_bad: bool) -> Result<Vec<SourceFile>> {
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        let failed = || format!("cannot read the directory {}", dir.display());
        for entry in fs::read_dir(&dir).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            // Skips links to directories, which may form a cycle.
            match entry.file_type().with_context(failed)? {
                file_type if file_type.is_dir() => dirs.push(entry.path()),
                _ if entry.path().is_dir() => {}
                _ => files.push(entry.path()),
            }
        }
    }
    sort(&mut files);
    let known = files.into_iter().filter_map(|path| Some((format::from_name(&path)?, path)));
    let found: Vec<SourceFile> =
        known.map(|(format, path)| SourceFile::new(path, format, skip_bad)).collect::<Result<_>>()?;
    ensure!(
        !found.is_empty(),
        "the directory {} contains no file with a known extension ({})",
        dir.display(),
        format::extensions()
    );
    Ok(found)
}

fn sort(paths: &mut [PathBuf]) {
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(inputs: &[String]) -> Vec<String> {
        let name = |f: &SourceFile| f.path.file_name().unwrap().to_string_lossy().into_owned();
        expand(inputs, false).unwrap().iter().map(name).collect()
    }

    #[test]
    fn directories_and_globs_expand_in_byte_order() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for name in ["b/z.txt", "a.txt", "B.txt", "c.jsonl.gz", "notes.md", "a-1.txt"] {
            fs::write(dir.path().join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("b/loop")).unwrap();
        let root = dir.path().display().to_string();
        assert_eq!(names(std::slice::from_ref(&root)), ["B.txt", "a-1.txt", "a.txt", "z.txt", "c.jsonl.gz"]);
        assert_eq!(names(&[format!("{root}/*.txt"), format!("{root}/B.txt")]), ["B.txt", "a-1.txt", "a.txt", "B.txt"]);
    }

    #[test]
    fn inputs_without_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display().to_string();
        fs::write(dir.path().join("notes.md"), "x").unwrap();
        let error = |inputs: &[&str]| {
            let inputs: Vec<String> = inputs.iter().map(|&i| i.to_owned()).collect();
            expand(&inputs, false).unwrap_err().to_string()
        };
        assert!(error(&[&format!("{root}/none.txt")]).starts_with("no such file or directory"));
        assert!(error(&[&format!("{root}/*.txt")]).contains("matches no file"));
        assert!(error(&[&root]).contains("contains no file with a known extension (.jsonl"));
        assert!(error(&[&format!("{root}/notes.md")]).contains("unknown format of"));
        assert!(error(&["-", "-"]).contains("given twice"));
        assert!(expand(&[], false).is_err());
    }
}
