//! Prefixes every line that a rank writes with the rank.

use std::io::{self, Read, Write};

/// Length in bytes after which a line is split, to bound the memory of a line without an end.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Copies `from` to `to` with prefixes, up to the end of `from`. Reads on if `to` fails, because
/// the rank would block on a full pipe.
pub(crate) fn copy_with_prefix(rank: usize, mut from: impl Read, to: impl Fn(&[u8]) -> io::Result<()>) {
    let (mut lines, mut chunk) = (PrefixedLines::new(rank), [0; 8_192]);
    loop {
        let complete = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => lines.push(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let _ = to(&complete);
    }
    let _ = to(&lines.finish());
}

/// Writes complete lines to stdout under one lock, so that lines of other ranks do not interleave.
pub(crate) fn write_stdout(lines: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines)?;
    stdout.flush()
}

/// Writes complete lines to stderr under one lock.
pub(crate) fn write_stderr(lines: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(lines)
}

/// Splits a stream into lines. A carriage return ends a line too, because progress lines are
/// overwritten with it.
struct PrefixedLines {
    prefix: String,
    partial: Vec<u8>,
    after_carriage_return: bool,
}

impl PrefixedLines {
    fn new(rank: usize) -> Self {
        PrefixedLines { prefix: format!("[{rank}] "), partial: Vec::new(), after_carriage_return: false }
    }

    /// Adds bytes and returns the lines that they complete.
    fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut complete = Vec::with_capacity(bytes.len() + self.partial.len() + 64);
        for &byte in bytes {
            let after_carriage_return = std::mem::replace(&mut self.after_carriage_return, byte == b'\r');
            match byte {
                // The second byte of "\r\n".
                b'\n' if after_carriage_return && self.partial.is_empty() => {}
                b'\r' if self.partial.is_empty() => {}
                b'\n' | b'\r' => self.end_line(&mut complete),
                _ => {
                    self.partial.push(byte);
                    if self.partial.len() == MAX_LINE_BYTES {
                        self.end_line(&mut complete);
                    }
                }
            }
        }
        complete
    }

    /// Returns the last line if it has no line end.
    fn finish(&mut self) -> Vec<u8> {
        let mut complete = Vec::new();
        if !self.partial.is_empty() {
            self.end_line(&mut complete);
        }
        complete
    }

    fn end_line(&mut self, complete: &mut Vec<u8>) {
        complete.extend_from_slice(self.prefix.as_bytes());
        complete.append(&mut self.partial);
        complete.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The output for a stream that is read in these chunks.
    fn prefixed(chunks: &[&str]) -> String {
        let mut lines = PrefixedLines::new(3);
        let mut all: Vec<u8> = chunks.iter().flat_map(|chunk| lines.push(chunk.as_bytes())).collect();
        all.extend(lines.finish());
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn every_line_is_prefixed_with_the_rank() {
        for (chunks, expected) in [
            (&["a\nb\n"][..], "[3] a\n[3] b\n"),
            (&["a", "b", "\nc", "\n"], "[3] ab\n[3] c\n"),
            (&["a\n\nb"], "[3] a\n[3] \n[3] b\n"),
            (&["no end"], "[3] no end\n"),
            (&[""], ""),
            // Progress lines, and "\r\n", also split between two chunks.
            (&["\rstep 1\rstep 2\r\nend\r\n"], "[3] step 1\n[3] step 2\n[3] end\n"),
            (&["a\r", "\nb\r", "c\n"], "[3] a\n[3] b\n[3] c\n"),
            (&["a\r\n\r\nb\n\n"], "[3] a\n[3] b\n[3] \n"),
        ] {
            assert_eq!(prefixed(chunks), expected, "{chunks:?}");
        }
    }

    #[test]
    fn a_line_without_an_end_is_split() {
        let text = "x".repeat(MAX_LINE_BYTES + 5);
        assert_eq!(prefixed(&[&text]).len(), text.len() + 2 * "[3] \n".len());
    }

    #[test]
    fn the_stream_is_read_to_its_end_if_the_output_fails() {
        let text = "line\n".repeat(10_000);
        let written = RefCell::new(Vec::new());
        copy_with_prefix(0, text.as_bytes(), |lines| {
            written.borrow_mut().extend_from_slice(lines);
            Err(io::ErrorKind::BrokenPipe.into())
        });
        assert_eq!(written.into_inner().len(), 10_000 * "[0] line\n".len());
    }
}
