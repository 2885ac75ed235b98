//! GPT-2's pre-tokenizer, without a regular expression engine. It splits text as
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` does.
//!
//! Every character is a letter, a number, white space, or other. Except for contractions, a piece
//! is a run of characters of one class, with an optional space in front. The time is linear in the
//! length of the text.

use anyhow::{Context, Result};
use regex_syntax::hir::{Class, HirKind};

// Character classes.
const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3;

/// Splits text into pieces.
pub(super) struct Pretokenizer {
    /// Class of every Unicode scalar value.
    classes: Vec<u8>,
}

impl Pretokenizer {
    pub(super) fn new() -> Result<Self> {
        let mut classes = vec![OTHER; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            let hir = regex_syntax::parse(pattern)?;
            let HirKind::Class(Class::Unicode(ranges)) = hir.kind() else {
                return Err(anyhow::anyhow!("{pattern} is not a character class"));
            };
            for range in ranges.iter() {
                classes
                    .get_mut(range.start() as usize..=range.end() as usize)
                    .context("a character class exceeds Unicode")?
                    .fill(class);
            }
        }
        Ok(Pretokenizer { classes })
    }

    /// Returns the class and the length in bytes of the character at byte `at` of the text.
    #[inline]
    fn class_at(&self, text: &str, at: usize) -> (u8, usize) {
        let byte = text.as_bytes()[at];
        if byte < 0x80 {
            return (self.classes[usize::from(byte)], 1);
        }
        match text[at..].chars().next() {
            Some(c) => (self.classes[c as usize], c.len_utf8()),
            None => (OTHER, 1),
        }
    }

    /// Returns the end of the run of characters of one class that starts at `at`.
    #[inline]
    fn run_end(&self, text: &str, mut at: usize, class: u8) -> usize {
        while at < text.len() {
            let (found, length) = self.class_at(text, at);
            if found != class {
                break;
            }
            at += length;
        }
        at
    }

    /// Returns the end of the piece that starts at `start`, the position of a character in the
    /// text.
    #[inline]
    pub(super) fn piece_end(&self, text: &str, start: usize) -> usize {
        let bytes = text.as_bytes();
        if bytes[start] == b'\'' {
            let length = match &bytes[start + 1..] {
                [b's' | b't' | b'm' | b'd', ..] => 2,
                [b'r' | b'v', b'e', ..] | [b'l', b'l', ..] => 3,
                _ => 0,
            };
            if length > 0 {
                return start + length;
            }
        }
        let (class, length) = self.class_at(text, start);
        let next = start + length;
        if class != SPACE {
            return self.run_end(text, next, class);
        }
        if next == text.len() {
            return next;
        }
        let (following, following_length) = self.class_at(text, next);
        if following != SPACE {
            // Only U+0020 belongs to the piece that follows it.
            return if bytes[start] == b' ' { self.run_end(text, next + following_length, following) } else { next };
        }
        // Several white-space characters. If text follows, the last one is not part of this piece.
        let end = self.run_end(text, next + following_length, SPACE);
        if end == text.len() {
            return end;
        }
        let last = text[..end].chars().next_back().map_or(1, char::len_utf8);
        end - last
    }
}
