//! What ranks write, line by line, each with its rank before it.

use std::io::{self, Read, Write};

/// A rank that never ends its line shall not fill the memory.
const LONGEST_LINE: usize = 1 << 20;

/// Copies `from` to `to` until it ends. Always to the end, also when nobody reads `to` any
/// more: the rank would wait for ever.
pub(crate) fn relay(rank: usize, mut from: impl Read, to: impl Fn(&[u8]) -> io::Result<()>) {
    let (mut lines, mut chunk) = (PrefixedLines::new(rank), [0; 8_192]);
    loop {
        let complete = match from.read(&mut chunk) {
            Ok(0) => break,
            Ok(count) => lines.take(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        let _ = to(&complete);
    }
    let _ = to(&lines.rest());
}

/// Whole lines at once, so that no other rank's come in between.
pub(crate) fn to_stdout(lines: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(lines)?;
    stdout.flush()
}

/// [`to_stdout`] for stderr.
pub(crate) fn to_stderr(lines: &[u8]) -> io::Result<()> {
    io::stderr().lock().write_all(lines)
}

/// Cuts a stream into lines. A carriage return ends one too: progress is rewritten that way.
struct PrefixedLines {
    prefix: String,
    partial: Vec<u8>,
    after_return: bool,
}

impl PrefixedLines {
    fn new(rank: usize) -> Self {
        PrefixedLines { prefix: format!("[{rank}] "), partial: Vec::new(), after_return: false }
    }

    /// The lines that these bytes complete.
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut complete = Vec::with_capacity(bytes.len() + self.partial.len() + 64);
        for &byte in bytes {
            let returned = std::mem::replace(&mut self.after_return, byte == b'\r');
            match byte {
                // The second half of a line end.
                b'\n' if returned && self.partial.is_empty() => {}
                b'\r' if self.partial.is_empty() => {}
                b'\n' | b'\r' => self.end_line(&mut complete),
                _ => {
                    self.partial.push(byte);
                    if self.partial.len() == LONGEST_LINE {
                        self.end_line(&mut complete);
                    }
                }
            }
        }
        complete
    }

    /// What stands without a line end.
    fn rest(&mut self) -> Vec<u8> {
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

    /// What comes of a stream that is read in these chunks.
    fn relayed(chunks: &[&str]) -> String {
        let mut lines = PrefixedLines::new(3);
        let mut all: Vec<u8> = chunks.iter().flat_map(|chunk| lines.take(chunk.as_bytes())).collect();
        all.extend(lines.rest());
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn each_line_gets_the_rank() {
        for (chunks, expected) in [
            (&["a\nb\n"][..], "[3] a\n[3] b\n"),
            (&["a", "b", "\nc", "\n"], "[3] ab\n[3] c\n"),
            (&["a\n\nb"], "[3] a\n[3] \n[3] b\n"),
            (&["no end"], "[3] no end\n"),
            (&[""], ""),
            // Progress, and line ends of two bytes, also cut in two.
            (&["\rstep 1\rstep 2\r\nend\r\n"], "[3] step 1\n[3] step 2\n[3] end\n"),
            (&["a\r", "\nb\r", "c\n"], "[3] a\n[3] b\n[3] c\n"),
            (&["a\r\n\r\nb\n\n"], "[3] a\n[3] b\n[3] \n"),
        ] {
            assert_eq!(relayed(chunks), expected, "{chunks:?}");
        }
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let text = "x".repeat(LONGEST_LINE + 5);
        assert_eq!(relayed(&[&text]).len(), text.len() + 2 * "[3] \n".len());
    }

    #[test]
    fn a_stream_is_read_to_its_end_even_when_nobody_listens() {
        let text = "line\n".repeat(10_000);
        let written = RefCell::new(Vec::new());
        relay(0, text.as_bytes(), |lines| {
            written.borrow_mut().extend_from_slice(lines);
            Err(io::ErrorKind::BrokenPipe.into())
        });
        assert_eq!(written.into_inner().len(), 10_000 * "[0] line\n".len());
    }
}
