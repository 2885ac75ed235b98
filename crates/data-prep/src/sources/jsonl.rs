//! `.jsonl`, plain or compressed: one JSON object per line, with its text under one key.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::counting_reader::CountingReader;
use super::format::Compression;
use super::item::{Sink, SourceItem};

/// Path that stands for standard input.
pub(super) const STANDARD_INPUT: &str = "-";

/// Reads the lines of a file or of standard input.
pub(super) fn read(path: &Path, compression: Compression, key: &str, sink: &mut Sink) -> Result<()> {
    let failed = || format!("cannot read {}", path.display());
    let position = Rc::new(Cell::new(0));
    let file: Box<dyn Read> = if path == Path::new(STANDARD_INPUT) {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(path).with_context(failed)?)
    };
    let file = CountingReader::new(file, &position);
    let reader: Box<dyn Read> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).with_context(failed)?),
    };
    let mut reader = BufReader::with_capacity(1 << 20, reader);
    let (mut line, mut number, mut start) = (Vec::new(), 0u64, 0u64);
    loop {
        line.clear();
        number += 1;
        let length = reader.read_until(b'\n', &mut line).with_context(|| {
            format!(
                "cannot read {} at line {number} (byte {start} of its text): the file is damaged or truncated",
                path.display()
            )
        })?;
        if length == 0 {
            return Ok(());
        }
        // A blank line is not a document. Files often end with one.
        if !line.iter().all(u8::is_ascii_whitespace) {
            // Some editors write a byte-order mark at the start of a file.
            let json = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(&line);
            let item = match text_of(json, key) {
                Ok(text) => SourceItem::Text(text),
                Err(e) => {
                    SourceItem::Malformed(e.context(format!("{} line {number} (from byte {start})", path.display())))
                }
            };
            if sink(item, position.get()).is_break() {
                return Ok(());
            }
        }
        start += length as u64;
    }
}

/// Parses a line of `.jsonl`, which contains one JSON object.
///
/// # Errors
/// The line is not UTF-8, not JSON, or not an object. The error contains the first wrong byte.
pub fn json_object(line: &[u8]) -> Result<Map<String, Value>> {
    let line = std::str::from_utf8(line.trim_ascii_end())
        .map_err(|e| anyhow!("is not UTF-8 at byte {} of the line: convert the file first", e.valid_up_to()))?;
    let value: Value = serde_json::from_str(line).map_err(|e| {
        // serde_json appends "at line 1 column 7", which would be a second line number.
        let message = e.to_string();
        let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
        anyhow!("is not JSON at byte {} of the line: {what}", e.column())
    })?;
    match value {
        Value::Object(object) => Ok(object),
        _ => bail!("is not a JSON object"),
    }
}

fn text_of(line: &[u8], key: &str) -> Result<String> {
    let mut object = json_object(line)?;
    match object.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Null) => bail!("has null under \"{key}\": expected a string"),
        Some(_) => bail!("has no string under \"{key}\""),
        None => bail!("has no key \"{key}\" (its keys: {}): select one with --text-column", keys(&object)),
    }
}

fn keys(object: &Map<String, Value>) -> String {
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn documents(bytes: &[u8], compression: Compression) -> (Vec<String>, Vec<String>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        std::fs::write(&path, bytes).unwrap();
        crate::sources::item::collect(|sink| read(&path, compression, "text", sink))
    }

    const TWO: &[u8] = b"{\"text\": \"one\"}\r\n\n{\"id\": 3, \"text\": \"tw\\u00f6\"}";

    #[test]
    fn plain_and_compressed_files_give_the_same_texts() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(TWO).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(TWO, 3).unwrap();
        for (bytes, compression) in [(TWO, Compression::None), (&gzip, Compression::Gzip), (&zstd, Compression::Zstd)] {
            let (texts, bad, error) = documents(bytes, compression);
            assert_eq!((texts, bad.len(), error), (vec!["one".to_owned(), "tw\u{f6}".to_owned()], 0, None));
        }
        let cut = |bytes: &[u8], compression| documents(bytes, compression).2.unwrap();
        assert!(cut(&gzip[..gzip.len() - 9], Compression::Gzip).contains("truncated"));
        assert!(cut(&zstd[..zstd.len() - 3], Compression::Zstd).contains("truncated"));
    }

    #[test]
    fn malformed_line_is_named_and_the_next_line_is_read() {
        let bad = |second: &[u8]| {
            let bytes = [b"{\"text\":\"one\"}\n", second, b"\n{\"text\":\"three\"}"].concat();
            let (texts, mut bad, error) = documents(&bytes, Compression::None);
            assert_eq!((texts, bad.len(), error), (vec!["one".to_owned(), "three".to_owned()], 1, None));
            bad.remove(0)
        };
        assert!(bad(b"{\"text\": ").contains("x.jsonl line 2 (from byte 15): is not JSON at byte 8"));
        assert!(bad(b"{\"text\": \"\xff\"}").contains("is not UTF-8 at byte 10 of the line"));
        assert!(bad(b"[1]").contains("line 2 (from byte 15): is not a JSON object"));
        assert!(bad(b"{\"txt\": \"a\"}").contains("has no key \"text\" (its keys: txt)"));
        assert!(bad(b"{\"text\": null}").contains("has null under \"text\""));
        assert!(bad(b"{\"text\": 3}").contains("has no string under \"text\""));
    }
}
