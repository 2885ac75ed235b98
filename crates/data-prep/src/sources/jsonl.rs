//! `.jsonl`, plain or compressed: one JSON object a line, its text under one key.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow, bail};
use flate2::read::MultiGzDecoder;
use serde_json::Value;

use super::Sink;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Counts what is read of the file itself, under the decompression.
struct Counted<R> {
    inner: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

pub(super) fn read(path: &Path, compression: Compression, key: &str, sink: &mut Sink) -> Result<()> {
    let cannot = || format!("{} cannot be read", path.display());
    let position = Rc::new(Cell::new(0));
    let file = Counted { inner: File::open(path).with_context(cannot)?, read: Rc::clone(&position) };
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
        let place = |e: anyhow::Error| e.context(format!("{} line {number} (from byte {start})", path.display()));
        // A blank line is no document: files often end with one.
        if !line.iter().all(u8::is_ascii_whitespace) {
            sink(text_of(&line, key).map_err(place)?, position.get())?;
        }
        start += length as u64;
    }
}

fn text_of(line: &[u8], key: &str) -> Result<String> {
    let line = std::str::from_utf8(line)
        .map_err(|e| anyhow!("is not UTF-8 at byte {} of the line: convert the file first", e.valid_up_to()))?;
    let mut value: Value = serde_json::from_str(line).map_err(|e| anyhow!("is not JSON: {e}"))?;
    let Some(object) = value.as_object_mut() else { bail!("is not a JSON object") };
    match object.remove(key) {
        Some(Value::String(text)) => Ok(text),
        Some(Value::Null) => bail!("has null under \"{key}\": it must be a string"),
        Some(_) => bail!("has no string under \"{key}\""),
        None => bail!("has no key \"{key}\" (it has {}): name the right one with --text-column", keys(object)),
    }
}

fn keys(object: &serde_json::Map<String, Value>) -> String {
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn documents(name: &str, bytes: &[u8], compression: Compression) -> Result<Vec<String>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut documents = Vec::new();
        let result = read(&path, compression, "text", &mut |text, _| {
            documents.push(text);
            Ok(())
        });
        result.map(|()| documents).map_err(|e| format!("{e:#}"))
    }

    const TWO: &[u8] = b"{\"text\": \"one\"}\r\n\n{\"id\": 3, \"text\": \"tw\\u00f6\"}";

    #[test]
    fn plain_and_compressed_files_read_alike() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(TWO).unwrap();
        let gzip = gzip.finish().unwrap();
        let zstd = zstd::encode_all(TWO, 3).unwrap();
        for (bytes, compression) in [(TWO, Compression::None), (&gzip, Compression::Gzip), (&zstd, Compression::Zstd)] {
            assert_eq!(documents("x", bytes, compression).unwrap(), ["one", "tw\u{f6}"]);
        }
        assert!(documents("x", &gzip[..gzip.len() - 9], Compression::Gzip).unwrap_err().contains("cut short"));
        assert!(documents("x", &zstd[..zstd.len() - 3], Compression::Zstd).unwrap_err().contains("cut short"));
    }

    #[test]
    fn a_bad_line_is_named() {
        let error = |second: &[u8]| {
            let bytes = [b"{\"text\":\"one\"}\n", second].concat();
            documents("x.jsonl", &bytes, Compression::None).unwrap_err()
        };
        assert!(error(b"{\"text\": ").contains("x.jsonl line 2 (from byte 15): is not JSON"));
        assert!(error(b"{\"text\": \"\xff\"}").contains("is not UTF-8 at byte 10 of the line"));
        assert!(error(b"[1]").contains("line 2 (from byte 15): is not a JSON object"));
        assert!(error(b"{\"txt\": \"a\"}").contains("has no key \"text\" (it has txt)"));
        assert!(error(b"{\"text\": null}").contains("has null under \"text\""));
        assert!(error(b"{\"text\": 3}").contains("has no string under \"text\""));
    }
}
