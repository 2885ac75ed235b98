//! `.jsonl`, plain or compressed: one JSON object a line, its text under one key.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use super::format::Compression;
use super::{Item, STANDARD_INPUT, Sink};

/// Counts what is read of the file itself, under the decompression.
struct CountingReader<R> {
    inner: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

pub(super) fn read(path: &Path, compression: Compression, key: &str, sink: &mut Sink) -> Result<()> {
    let cannot = || format!("{} cannot be read", path.display());
    let position = Rc::new(Cell::new(0));
    let file: Box<dyn Read> = match path == Path::new(STANDARD_INPUT) {
        true => Box::new(io::stdin()),
        false => Box::new(File::open(path).with_context(cannot)?),
    };
    let file = CountingReader { inner: file, read: Rc::clone(&position) };
    let reader: Box<dyn Read> = match compression {
        Compression::None => Box::new(file),
        Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
        Compression::Zstd => Box::new(zstd::Decoder::new(file).with_context(cannot)?),
    };
    let mut reader = BufReader::with_capacity(1 << 20, reader);
    let (mut line, mut number, mut start) = (Vec::new(), 0u64, 0u64);
    loop {
        line.clear();
        number += 1;
        let length = reader.read_until(b'\n', &mut line).with_context(|| {
            format!(
                "{} cannot be read at line {number} (byte {start} of its text): it is damaged or cut short",
                path.display()
            )
        })?;
        if length == 0 {
            return Ok(());
        }
        // A blank line is no document: files often end with one.
        if !line.iter().all(u8::is_ascii_whitespace) {
            // Some editors begin a file with a byte-order mark.
            let json = line.strip_prefix(b"\xef\xbb\xbf").filter(|_| number == 1).unwrap_or(&line);
            let item = match text_of(json, key) {
                Ok(text) => Item::Text(text),
                Err(e) => Item::Bad(e.context(format!("{} line {number} (from byte {start})", path.display()))),
            };
            if sink(item, position.get()).is_break() {
                return Ok(());
            }
        }
        start += length as u64;
    }
}

/// The JSON object that a line of `.jsonl` holds.
///
/// # Errors
/// Saying what is wrong with the line, from its first byte that is.
pub fn json_object(line: &[u8]) -> Result<Map<String, Value>> {
    let line = std::str::from_utf8(line.trim_ascii_end())
        .map_err(|e| anyhow!("is not UTF-8 at byte {} of the line: convert the file first", e.valid_up_to()))?;
    let value: Value = serde_json::from_str(line).map_err(|e| {
        // Its own "at line 1 column 7" would be a second line number.
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
        Some(Value::Null) => bail!("has null under \"{key}\": it must be a string"),
        Some(_) => bail!("has no string under \"{key}\""),
        None => bail!("has no key \"{key}\" (it has {}): name the right one with --text-column", keys(&object)),
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.jsonl");
        std::fs::write(&path, bytes).unwrap();
        super::super::collect(|sink| read(&path, compression, "text", sink))
    }

    const TWO: &[u8] = b"{\"text\": \"one\"}\r\n\n{\"id\": 3, \"text\": \"tw\\u00f6\"}";

    #[test]
    fn plain_and_compressed_files_read_alike() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(TWO).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(TWO, 3).unwrap();
        for (bytes, compression) in [(TWO, Compression::None), (&gzip, Compression::Gzip), (&zstd, Compression::Zstd)] {
            let (texts, bad, error) = documents(bytes, compression);
            assert_eq!((texts, bad.len(), error), (vec!["one".to_owned(), "tw\u{f6}".to_owned()], 0, None));
        }
        let cut = |bytes: &[u8], compression| documents(bytes, compression).2.unwrap();
        assert!(cut(&gzip[..gzip.len() - 9], Compression::Gzip).contains("cut short"));
        assert!(cut(&zstd[..zstd.len() - 3], Compression::Zstd).contains("cut short"));
    }

    #[test]
    fn a_bad_line_is_named_and_the_next_one_read() {
        let bad = |second: &[u8]| {
            let bytes = [b"{\"text\":\"one\"}\n", second, b"\n{\"text\":\"three\"}"].concat();
            let (texts, mut bad, error) = documents(&bytes, Compression::None);
            assert_eq!((texts, bad.len(), error), (vec!["one".to_owned(), "three".to_owned()], 1, None));
            bad.remove(0)
        };
        assert!(bad(b"{\"text\": ").contains("x.jsonl line 2 (from byte 15): is not JSON at byte 8"));
        assert!(bad(b"{\"text\": \"\xff\"}").contains("is not UTF-8 at byte 10 of the line"));
        assert!(bad(b"[1]").contains("line 2 (from byte 15): is not a JSON object"));
        assert!(bad(b"{\"txt\": \"a\"}").contains("has no key \"text\" (it has txt)"));
        assert!(bad(b"{\"text\": null}").contains("has null under \"text\""));
        assert!(bad(b"{\"text\": 3}").contains("has no string under \"text\""));
    }
}
