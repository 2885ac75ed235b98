//! Evaluation files: which one is meant, and its lines.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// What `of` makes of the first `most` lines of a `.jsonl` file; blank lines are none.
///
/// # Errors
/// Naming the file and the line that is no JSON object, or that `of` refuses, and when there is no line.
pub(crate) fn read_jsonl<T>(
    path: &Path,
    most: usize,
    mut of: impl FnMut(&Map<String, Value>) -> Result<T>,
) -> Result<Vec<T>> {
    let cannot = || format!("{} cannot be read", path.display());
    let mut reader = BufReader::new(File::open(path).with_context(cannot)?);
    let (mut records, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    while records.len() < most {
        line.clear();
        number += 1;
        if reader.read_until(b'\n', &mut line).with_context(cannot)? == 0 {
            break;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        // Some editors begin a file with a byte-order mark.
        let json = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(&line);
        let record = data_prep::json_object(json).and_then(|object| of(&object));
        records.push(record.with_context(|| format!("{} line {number}", path.display()))?);
    }
    ensure!(!records.is_empty(), "{} is empty: it should hold one JSON object a line", path.display());
    Ok(records)
}

/// The text under a key.
///
/// # Errors
/// When there is none.
pub(crate) fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    let Some(value) = object.get(key) else {
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        bail!("has no key \"{key}\" (it has {})", if keys.is_empty() { "none".to_owned() } else { keys.join(", ") });
    };
    value.as_str().with_context(|| format!("has no text under \"{key}\""))
}

/// The files of a folder that end in one of `endings` (without the dot), by name; a file stands for itself.
///
/// # Errors
/// When nothing is there, or no such file in it.
pub(crate) fn files(path: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    if path.is_file() {
        return Ok(vec![path.to_owned()]);
    }
    ensure!(path.exists(), "{} is not there: name a file or a folder", path.display());
    let cannot = || format!("{} cannot be read", path.display());
    let mut files = Vec::new();
    for entry in fs::read_dir(path).with_context(cannot)? {
        let file = entry.with_context(cannot)?.path();
        if file.is_file() && endings.iter().any(|ending| ends_in(&file, ending)) {
            files.push(file);
        }
    }
    ensure!(!files.is_empty(), "{} holds no file that ends in .{}", path.display(), endings.join(" or ."));
    files.sort();
    Ok(files)
}

/// The one file that is meant by a path: itself, or what a folder holds of the first ending that
/// it has files of; of several, the one with "test" in its name.
///
/// # Errors
/// When there is none, or more than one.
pub(crate) fn the_file(path: &Path, endings: &[&str]) -> Result<PathBuf> {
    let all = files(path, endings)?;
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let of_ending = |ending: &&str| all.iter().filter(|file| ends_in(file, ending)).collect::<Vec<_>>();
    let mut meant = endings.iter().map(of_ending).find(|files| !files.is_empty()).unwrap_or_default();
    if meant.len() > 1 {
        meant.retain(|file| file.file_name().is_some_and(|name| name.to_string_lossy().contains("test")));
    }
    match meant[..] {
        [file] => Ok(file.clone()),
        _ => bail!("{} holds several files that could be meant: name the one to measure on", path.display()),
    }
}

/// Whether a file's name ends in a dot and `ending`, in either case.
pub(crate) fn ends_in(file: &Path, ending: &str) -> bool {
    file.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::write;

    #[test]
    fn a_malformed_line_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let read = |bytes: &[u8]| {
            let path = folder.path().join("x.jsonl");
            fs::write(&path, bytes).unwrap();
            read_jsonl(&path, 2, |object| text(object, "text").map(str::to_owned))
        };
        assert_eq!(read(b"\xef\xbb\xbf{\"text\": \"a\"}\r\n\n{\"text\": \"\\u00e9\"}\n{").unwrap(), ["a", "\u{e9}"]);
        for (bytes, why) in [
            (&b"{\"text\": \"a\"}\n{\"text\": "[..], "x.jsonl line 2: is not JSON at byte 8"),
            (b"\n\"a\"", "x.jsonl line 2: is not a JSON object"),
            (b"{\"text\": \"\xff\"}", "x.jsonl line 1: is not UTF-8 at byte 10"),
            (b"{\"a\": 1, \"b\": 2}", "x.jsonl line 1: has no key \"text\" (it has a, b)"),
            (b"{\"text\": 3}", "x.jsonl line 1: has no text under \"text\""),
            (b"\n", "x.jsonl is empty"),
        ] {
            let error = format!("{:#}", read(bytes).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn a_folder_stands_for_the_file_that_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let meant = || {
            let file = the_file(folder.path(), &["jsonl", "raw", "txt"]);
            file.map(|file| file.file_name().unwrap().to_string_lossy().into_owned()).map_err(|e| e.to_string())
        };
        assert!(meant().unwrap_err().ends_with("holds no file that ends in .jsonl or .raw or .txt"));
        for (name, want) in [
            ("notes.md", Err("holds no file that ends in")),
            ("valid.txt", Ok("valid.txt")),
            ("b.RAW", Ok("b.RAW")),
            ("a.test.raw", Ok("a.test.raw")),
            ("b.test.raw", Err("holds several files that could be meant")),
            ("pages.jsonl", Ok("pages.jsonl")),
        ] {
            write(folder.path(), name, "");
            match (meant(), want) {
                (Ok(file), Ok(want)) => assert_eq!(file, want),
                (Err(error), Err(why)) => assert!(error.contains(why), "{error}"),
                (got, want) => panic!("{name}: {got:?}, expected {want:?}"),
            }
        }
        let file = folder.path().join("notes.md");
        assert_eq!(the_file(&file, &["jsonl"]).unwrap(), file);
        assert!(files(&folder.path().join("none"), &["txt"]).unwrap_err().to_string().contains("is not there"));
    }
}
