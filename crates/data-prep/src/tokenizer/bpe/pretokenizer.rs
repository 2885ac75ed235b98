//! GPT-2's pre-tokenisation by hand:
//! `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
//!
//! Every character is a letter, a number, a space or something else, and every piece is a
//! run of one class, with a space in front where there is one: linear in the text's length.

use anyhow::{Context, Result};
use regex_syntax::hir::{Class, HirKind};

/// Classes of characters.
const OTHER: u8 = 0;
const LETTER: u8 = 1;
const NUMBER: u8 = 2;
const SPACE: u8 = 3;

/// The class of every Unicode scalar value.
pub(super) struct Scanner {
    classes: Vec<u8>,
}

impl Scanner {
    pub(super) fn new() -> Result<Self> {
        let mut classes = vec![OTHER; 0x11_0000];
        for (pattern, class) in [(r"\p{L}", LETTER), (r"\p{N}", NUMBER), (r"\s", SPACE)] {
            let hir = regex_syntax::parse(pattern)?;
            let HirKind::Class(Class::Unicode(ranges)) = hir.kind() else {
                return Err(anyhow::anyhow!("{pattern} is no class of characters"));
            };
            for range in ranges.iter() {
                classes
                    .get_mut(range.start() as usize..=range.end() as usize)
                    .context("a class runs past Unicode")?
                    .fill(class);
            }
        }
        Ok(Scanner { classes })
    }

    /// Class and length in bytes of the character at `at`, inside the text.
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

    /// End of the run of one class from `at` on.
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

    /// End of the piece that starts at `start`, inside the text and at a character.
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
            // Only U+0020 goes with what follows it.
            return if bytes[start] == b' ' { self.run_end(text, next + following_length, following) } else { next };
        }
        // White space up to the last of it, which goes its own way when something follows.
        let end = self.run_end(text, next + following_length, SPACE);
        if end == text.len() {
            return end;
        }
        let last = text[..end].chars().next_back().map_or(1, char::len_utf8);
        end - last
    }
}
