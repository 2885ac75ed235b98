//! Reading of the public lists of word pairs with human similarity ratings.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

/// Two words and their human similarity rating, on the scale of the list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WordPair {
    pub(crate) words: [String; 2],
    pub(crate) rating: f64,
}

/// Known file names, reduced to lower-case letters and digits without a leading "en", and the names
/// of their lists.
const KNOWN_FILES: [(&str, &str); 10] = [
    ("simlex999", "SimLex-999"),
    ("simverb3500", "SimVerb-3500"),
    ("rg65", "RG-65"),
    ("ws353", "WS-353"),
    ("ws353all", "WS-353"),
    ("wordsim353", "WS-353"),
    ("men", "MEN"),
    ("men3000", "MEN"),
    ("mentr3k", "MEN"),
    ("mendatasetnaturalformfull", "MEN"),
];

/// Returns the name of a list: the published name if the file name is known, else the file name.
pub(crate) fn list_name(file: &Path) -> String {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let normalized: String = stem.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let normalized = normalized.strip_prefix("en").unwrap_or(&normalized);
    let known = KNOWN_FILES.iter().find(|(name, _)| *name == normalized);
    known.map_or_else(|| stem.into_owned(), |(_, list)| (*list).to_owned())
}

/// Reads the first `limit` pairs of a list. A line has two words, optionally their part of speech,
/// and the rating, separated by tabs, semicolons, commas or spaces; further columns are ignored. A
/// first line that starts with "word" and has no rating is a header.
///
/// # Errors
/// A line is malformed; the error names file and line.
pub(crate) fn read_word_pairs(file: &Path, limit: usize) -> Result<Vec<WordPair>> {
    let bytes = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let text = String::from_utf8(bytes)
        .map_err(|e| anyhow!("{} is not UTF-8 at byte {}", file.display(), e.utf8_error().valid_up_to()))?;
    let lines = (1..).zip(text.trim_start_matches('\u{feff}').lines()).filter(|(_, line)| !line.trim().is_empty());
    let lines: Vec<(usize, &str)> = lines.collect();
    let separator = lines.first().and_then(|(_, line)| ['\t', ';', ','].into_iter().find(|&mark| line.contains(mark)));
    let rows: Vec<(usize, Vec<&str>)> = lines.iter().map(|(number, line)| (*number, fields(line, separator))).collect();
    let has_header = rows.first().is_some_and(|(_, fields)| {
        fields[0].to_lowercase().starts_with("word") && [2, 3].iter().all(|&column| rating(fields, column).is_err())
    });
    let rows = &rows[usize::from(has_header)..];
    // SimLex-999 and SimVerb-3500 have the part of speech before the rating.
    let column =
        if rows.first().is_some_and(|(_, fields)| fields.len() > 3 && rating(fields, 2).is_err()) { 3 } else { 2 };
    let pairs = rows.iter().take(limit).map(|(number, fields)| {
        let words = [0, 1].map(|column| fields.get(column).copied().unwrap_or_default().to_owned());
        let pair = rating(fields, column).and_then(|rating| {
            ensure!(words.iter().all(|word| !word.is_empty()), "one of the words is empty");
            Ok(WordPair { words, rating })
        });
        pair.with_context(|| format!("{} line {number}", file.display()))
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    ensure!(!pairs.is_empty(), "{} has no word pairs", file.display());
    Ok(pairs)
}

fn fields(line: &str, separator: Option<char>) -> Vec<&str> {
    match separator {
        Some(mark) => line.split(mark).map(str::trim).collect(),
        None => line.split_whitespace().collect(),
    }
}

fn rating(fields: &[&str], column: usize) -> Result<f64> {
    let field = fields
        .get(column)
        .with_context(|| format!("the line has {} columns: it needs two words and a rating", fields.len()))?;
    let rating = field.parse().ok().filter(|rating: &f64| rating.is_finite());
    rating.with_context(|| format!("column {} must be the rating, but is \"{field}\"", column + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<WordPair>> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(name);
        fs::write(&file, text).unwrap();
        read_word_pairs(&file, usize::MAX)
    }

    #[test]
    fn public_formats_are_read() {
        let want = [("old", "new", 1.58), ("Jerusalem", "Israel", 8.46)];
        for text in [
            "word1\tword2\tPOS\tSimLex999\tconc(w1)\r\nold\tnew\tA\t1.58\t2.72\r\nJerusalem\tIsrael\tN\t8.46\t1\r\n",
            "old\tnew\tV\t1.58\tANTONYMS\nJerusalem\tIsrael\tV\t8.46\tNONE\n",
            "Word 1,Word 2,Human (mean)\nold,new,1.58\n\nJerusalem,Israel,8.46",
            "\u{feff}old;new;1.58  \r\nJerusalem;Israel;8.46 \r\n",
            "old new 1.580000\nJerusalem Israel 8.46\n",
            "old new 1.58 word\nJerusalem Israel 8.46\n",
        ] {
            let got = read("x.txt", text).unwrap();
            let got: Vec<_> = got.iter().map(|p| (p.words[0].as_str(), p.words[1].as_str(), p.rating)).collect();
            assert_eq!(got, want, "{text}");
        }
    }

    #[test]
    fn errors_name_the_malformed_line() {
        for (text, why) in [
            ("a\tb\t1\na\tb\n", "x.csv line 2: the line has 2 columns: it needs two words and a rating"),
            ("a\tb\t1\n\na\tb\tN\t3\n", "x.csv line 3: column 3 must be the rating, but is \"N\""),
            ("a;b;nan\n", "x.csv line 1: column 3 must be the rating, but is \"nan\""),
            ("a;b\n", "x.csv line 1: the line has 2 columns"),
            ("a, ,3\n", "x.csv line 1: one of the words is empty"),
            ("Once upon a time\n", "x.csv line 1: column 4 must be the rating, but is \"time\""),
            ("word1,word2,mean\n", "x.csv has no word pairs"),
            ("", "x.csv has no word pairs"),
        ] {
            let error = format!("{:#}", read("x.csv", text).unwrap_err());
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn lists_are_recognized_by_file_name() {
        for (file, name) in [
            ("SimLex-999.txt", "SimLex-999"),
            ("EN-SimVerb-3500.txt", "SimVerb-3500"),
            ("d/RG65.csv", "RG-65"),
            ("WS353.csv", "WS-353"),
            ("EN-WS-353-REL.txt", "EN-WS-353-REL"),
            ("EN-MEN-TR-3k.txt", "MEN"),
            ("mine.txt", "mine"),
        ] {
            assert_eq!(list_name(Path::new(file)), name);
        }
    }
}
