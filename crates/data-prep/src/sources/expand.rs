//! From what the command line names to files in their order.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{STANDARD_INPUT, SourceFile, format};

/// The files that the inputs stand for, in order. With `skip_bad` a file whose size cannot
/// be asked for is taken too: reading it will fail, and it is left out then.
///
/// # Errors
/// When an input names nothing, or a file of a kind that is not read here.
pub(crate) fn expand(inputs: &[String], skip_bad: bool) -> Result<Vec<SourceFile>> {
    ensure!(!inputs.is_empty(), "there is no input: name at least one file, folder or glob");
    let mut files = Vec::new();
    for input in inputs {
        let path = Path::new(input);
        if input == STANDARD_INPUT {
            files.push(SourceFile::standard_input());
        } else if path.is_dir() {
            files.extend(expand_folder(path, skip_bad)?);
        } else if path.exists() {
            ensure!(path.is_file(), "{input} is no regular file: hand a pipe over as standard input, with --input -");
            files.push(SourceFile::new(path.to_owned(), format::of(path)?, skip_bad)?);
        } else if input.contains(['*', '?', '[']) {
            files.extend(expand_glob(input, skip_bad)?);
        } else {
            bail!("no such file or folder: {input}");
        }
    }
    ensure!(
        files.iter().filter(|f| f.is_standard_input()).count() <= 1,
        "{STANDARD_INPUT} is named twice: standard input can be read once"
    );
    Ok(files)
}

fn expand_glob(pattern: &str, skip_bad: bool) -> Result<Vec<SourceFile>> {
    let paths = glob::glob(pattern).with_context(|| format!("{pattern} is no glob"))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.with_context(|| format!("a folder of the glob {pattern} cannot be read"))?;
        if !path.is_dir() {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "the glob {pattern} matches no file (folders it matches are not read: name them)");
    sort(&mut found);
    found.into_iter().map(|path| format::of(&path).and_then(|format| SourceFile::new(path, format, skip_bad))).collect()
}

/// All files below a folder whose names say what they are: a folder holds other things too.
fn expand_folder(folder: &Path, skip_bad: bool) -> Result<Vec<SourceFile>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let cannot = || format!("the folder {} cannot be read", folder.display());
        for entry in fs::read_dir(&folder).with_context(cannot)? {
            let entry = entry.with_context(cannot)?;
            // A link to a folder is left out: it may lead back here.
            match entry.file_type().with_context(cannot)? {
                kind if kind.is_dir() => folders.push(entry.path()),
                _ if entry.path().is_dir() => {}
                _ => files.push(entry.path()),
            }
        }
    }
    sort(&mut files);
    let known = files.into_iter().filter_map(|path| Some((format::by_name(&path)?, path)));
    let found: Vec<SourceFile> =
        known.map(|(format, path)| SourceFile::new(path, format, skip_bad)).collect::<Result<_>>()?;
    ensure!(
        !found.is_empty(),
        "the folder {} holds no file that can be read ({})",
        folder.display(),
        format::endings()
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
    fn folders_and_globs_expand_by_byte_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        for name in ["b/z.txt", "a.txt", "B.txt", "c.jsonl.gz", "notes.md", "a-1.txt"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        std::os::unix::fs::symlink(folder.path(), folder.path().join("b/loop")).unwrap();
        let root = folder.path().display().to_string();
        assert_eq!(names(std::slice::from_ref(&root)), ["B.txt", "a-1.txt", "a.txt", "z.txt", "c.jsonl.gz"]);
        assert_eq!(names(&[format!("{root}/*.txt"), format!("{root}/B.txt")]), ["B.txt", "a-1.txt", "a.txt", "B.txt"]);
    }

    #[test]
    fn inputs_that_name_nothing_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        fs::write(folder.path().join("notes.md"), "x").unwrap();
        let error = |inputs: &[&str]| {
            let inputs: Vec<String> = inputs.iter().map(|&i| i.to_owned()).collect();
            expand(&inputs, false).unwrap_err().to_string()
        };
        assert!(error(&[&format!("{root}/none.txt")]).starts_with("no such file or folder"));
        assert!(error(&[&format!("{root}/*.txt")]).contains("matches no file"));
        assert!(error(&[&root]).contains("holds no file that can be read (.jsonl"));
        assert!(error(&[&format!("{root}/notes.md")]).contains("is of no kind that can be read"));
        assert!(error(&["-", "-"]).contains("named twice"));
        assert!(expand(&[], false).is_err());
    }
}
