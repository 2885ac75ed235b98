//! Documents in, whatever they are kept in.
//!
//! Documents number from 0 over the inputs in their order; a folder or a glob stands for
//! its files by byte order of their paths, and a file's documents come in its own order.

mod jsonl;
mod parquet_rows;
mod text;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// How a file is read, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Jsonl(jsonl::Compression),
    Parquet,
    /// One document.
    Text,
}

/// Endings and what they mean.
const FORMATS: [(&str, Format); 7] = [
    (".jsonl", Format::Jsonl(jsonl::Compression::None)),
    (".jsonl.gz", Format::Jsonl(jsonl::Compression::Gzip)),
    (".jsonl.zst", Format::Jsonl(jsonl::Compression::Zstd)),
    (".ndjson", Format::Jsonl(jsonl::Compression::None)),
    (".json", Format::Jsonl(jsonl::Compression::None)),
    (".parquet", Format::Parquet),
    (".txt", Format::Text),
];

/// One file to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SourceFile {
    pub path: PathBuf,
    pub bytes: u64,
    format: Format,
}

fn format_of(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    FORMATS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, format)| *format)
}

/// The files that the inputs stand for, in order.
///
/// # Errors
/// When an input names nothing, or a file of a kind that is not read here.
pub(crate) fn expand(inputs: &[String]) -> Result<Vec<SourceFile>> {
    ensure!(!inputs.is_empty(), "there is no input: name at least one file, folder or glob");
    let mut files = Vec::new();
    for input in inputs {
        let path = Path::new(input);
        if path.is_dir() {
            let before = files.len();
            for file in files_below(path)? {
                files.extend(source(file)?);
            }
            ensure!(files.len() > before, "the folder {input} holds no file that can be read ({})", endings());
        } else if path.is_file() {
            files.push(require_source(path)?);
        } else if input.contains(['*', '?', '[']) {
            files.extend(expand_glob(input)?);
        } else {
            bail!("no such file or folder: {input}");
        }
    }
    Ok(files)
}

fn expand_glob(pattern: &str) -> Result<Vec<SourceFile>> {
    let paths = glob::glob(pattern).with_context(|| format!("{pattern} is no glob"))?;
    let mut found = Vec::new();
    for path in paths {
        let path = path.with_context(|| format!("a folder of the glob {pattern} cannot be read"))?;
        if path.is_file() {
            found.push(path);
        }
    }
    ensure!(!found.is_empty(), "the glob {pattern} matches no file");
    sort(&mut found);
    found.iter().map(|path| require_source(path)).collect()
}

/// All files below a folder, by byte order of their paths.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("the folder {} cannot be read", folder.display()))?;
        for entry in entries {
            let path = entry.with_context(|| format!("the folder {} cannot be read", folder.display()))?.path();
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
    }
    sort(&mut files);
    Ok(files)
}

fn sort(paths: &mut [PathBuf]) {
    paths.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
}

/// A file of a folder, where it is of a known kind.
fn source(path: PathBuf) -> Result<Option<SourceFile>> {
    let Some(format) = format_of(&path) else { return Ok(None) };
    let bytes = fs::metadata(&path).with_context(|| format!("{} cannot be read", path.display()))?.len();
    Ok(Some(SourceFile { path, bytes, format }))
}

fn require_source(path: &Path) -> Result<SourceFile> {
    let found = source(path.to_owned())?;
    found.with_context(|| format!("{} is of no kind that can be read ({})", path.display(), endings()))
}

fn endings() -> String {
    FORMATS.map(|(ending, _)| ending).join(", ")
}

/// What a reader hands over: a document, and how much of the file it has read.
pub(crate) type Sink<'a> = dyn FnMut(String, u64) -> Result<()> + 'a;

impl SourceFile {
    /// Hands every document to `sink`, in order.
    ///
    /// # Errors
    /// Naming the file and the line, row or byte; or what `sink` gives.
    pub(crate) fn read(&self, text_column: &str, sink: &mut Sink) -> Result<()> {
        match self.format {
            Format::Jsonl(compression) => jsonl::read(&self.path, compression, text_column, sink),
            Format::Parquet => parquet_rows::read(&self.path, self.bytes, text_column, sink),
            Format::Text => text::read(&self.path, sink),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(inputs: &[String]) -> Vec<String> {
        let name = |f: &SourceFile| f.path.file_name().unwrap().to_string_lossy().into_owned();
        expand(inputs).unwrap().iter().map(name).collect()
    }

    #[test]
    fn folders_and_globs_expand_by_byte_order() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        for name in ["b/z.txt", "a.txt", "B.txt", "c.jsonl.gz", "notes.md", "a-1.txt"] {
            fs::write(folder.path().join(name), "x").unwrap();
        }
        let root = folder.path().display().to_string();
        assert_eq!(names(std::slice::from_ref(&root)), ["B.txt", "a-1.txt", "a.txt", "z.txt", "c.jsonl.gz"]);
        assert_eq!(names(&[format!("{root}/*.txt"), format!("{root}/B.txt")]), ["B.txt", "a-1.txt", "a.txt", "B.txt"]);
    }

    #[test]
    fn inputs_that_name_nothing_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display().to_string();
        fs::write(folder.path().join("notes.md"), "x").unwrap();
        let error = |input: String| expand(&[input]).unwrap_err().to_string();
        assert!(error(format!("{root}/none.txt")).starts_with("no such file or folder"));
        assert!(error(format!("{root}/*.txt")).ends_with("matches no file"));
        assert!(error(root.clone()).contains("holds no file that can be read (.jsonl"));
        assert!(error(format!("{root}/notes.md")).contains("is of no kind that can be read"));
        assert!(expand(&[]).is_err());
    }
}
