//! Evaluation files: selecting the files of a path, and reading their lines.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Parses the first `max_records` lines of a `.jsonl` file with `parse`. Blank lines are skipped.
///
/// # Errors
/// The file is empty, a line is not a JSON object, or `parse` fails; the error names file and line.
pub(crate) fn read_jsonl<T>(
    path: &Path,
    max_records: usize,
    mut parse: impl FnMut(&Map<String, Value>) -> Result<T>,
) -> Result<Vec<T>> {
    let cannot = || format!("{} cannot be read", path.display());
    let mut reader = BufReader::new(File::open(path).with_context(cannot)?);
    let (mut records, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    while records.len() < max_records {
        line.clear();
        number += 1;
        if reader.read_until(b'\n', &mut line).with_context(cannot)? == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        // Some editors write a byte-order mark at the start of a file.
        let json = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(&line);
        let record = data_prep::json_object(json).and_then(|object| parse(&object));
        records.push(record.with_context(|| format!("{} line {number}", path.display()))?);
    }
    ensure!(!records.is_empty(), "{} is empty: it must have one JSON object per line", path.display());
    Ok(records)
}

/// Returns the string under a key.
///
/// # Errors
/// The key is missing, or its value is not a string.
pub(crate) fn text_field<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    let Some(value) = object.get(key) else {
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        bail!("has no key \"{key}\" (it has {})", if keys.is_empty() { "none".to_owned() } else { keys.join(", ") });
    };
    value.as_str().with_context(|| format!("the value of \"{key}\" is not a string"))
}

/// Returns the files of a directory that have one of these suffixes (without the dot), sorted by
/// name. If `path` is a file, it is returned alone.
///
/// # Errors
/// The path does not exist, or the directory has no such file.
pub(crate) fn find_files(path: &Path, suffixes: &[&str]) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    ensure!(path.exists(), "{} does not exist: give a file or a directory", path.display());
    let cannot = || format!("{} cannot be read", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(cannot)? {
        let file = entry.with_context(cannot)?.path();
        if file.is_file() && suffixes.iter().any(|suffix| has_suffix(&file, suffix)) {
            files.push(file);
        }
    }
    ensure!(!files.is_empty(), "{} has no .{} file", path.display(), suffixes.join(" or ."));
    files.sort();
    Ok(files)
}

/// Returns the one evaluation file of a path. A file is returned as it is. In a directory, only the
/// files with the first suffix that occurs are considered; if there are several, the one with
/// "test" in its name is selected.
///
/// # Errors
/// There is no such file, or the selection is ambiguous.
pub(crate) fn find_one_file(path: &Path, suffixes: &[&str]) -> Result<PathBuf> {
    let all = find_files(path, suffixes)?;
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let with_suffix = |suffix: &&str| all.iter().filter(|file| has_suffix(file, suffix)).collect::<Vec<_>>();
    let mut candidates = suffixes.iter().map(with_suffix).find(|files| !files.is_empty()).unwrap_or_default();
    if candidates.len() > 1 {
        candidates.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().contains("test")));
    }
    match candidates[..] {
        [file] => Ok(file.clone()),
        _ => bail!("{} has several evaluation files: give the path of one", path.display()),
    }
}

/// Reports whether a file name has a suffix (without the dot), in upper or lower case.
pub(crate) fn has_suffix(file: &Path, suffix: &str) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case(suffix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write;

    #[test]
    fn errors_name_the_malformed_line() {
        let dir = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = dir.path().join("x.jsonl");
            fs::write(&path, bytes).unwrap();
            read_jsonl(&path, 2, |object| text_field(object, "text").map(str::to_owned))
        };
        assert_eq!(read(b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\n{\"text\": \"\\u00e9\"}\n{").unwrap(), ["a", "\u{e9}"]);
        for (bytes, why) in [
            (&b"{\"text\": \"a\"}\n{\"text\": "[..], "x.jsonl line 2: is not JSON at byte 8"),
            (b"\n\"a\"", "x.jsonl line 2: is not a JSON object"),
            (b"{\"text\": \"\xff\"}", "x.jsonl line 1: is not UTF-8 at byte 10"),
            (b"{\"a\": 1, \"b\": 2}", "x.jsonl line 1: has no key \"text\" (it has a, b)"),
            (b"{\"text\": 3}", "x.jsonl line 1: the value of \"text\" is not a string"),
            (b"\n", "x.jsonl is empty"),
        ] {
            let error = format!("{:#}", read(bytes).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn one_file_of_a_directory_is_selected() {
        let dir = tempfile::tempdir().unwrap();
        let select = || {
            let file = find_one_file(dir.path(), &["jsonl", "raw", "txt"]);
            file.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).map_err(|e| e.to_string())
        };
        assert!(select().unwrap_err().ends_with("has no .jsonl or .raw or .txt file"));
        for (name, want) in [
            ("notes.md", Err("has no .jsonl")),
            ("valid.txt", Ok("valid.txt")),
            ("b.RAW", Ok("b.RAW")),
            ("a.test.raw", Ok("a.test.raw")),
            ("b.test.raw", Err("has several evaluation files")),
            ("pages.jsonl", Ok("pages.jsonl")),
        ] {
            write(dir.path(), name, "");
            match (select(), want) {
                (Ok(file), Ok(want)) => assert_eq!(file, want),
                (Err(error), Err(why)) => assert!(error.contains(why), "{error}"),
                (got, want) => panic!("{name}: {got:?}, expected {want:?}"),
            }
        }
        let file = dir.path().join("notes.md");
        assert_eq!(find_one_file(&file, &["jsonl"]).unwrap(), file);
        assert!(find_files(&dir.path().join("none"), &["txt"]).unwrap_err().to_string().contains("does not exist"));
    }
}
