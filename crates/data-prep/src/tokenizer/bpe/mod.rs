//! GPT-2's byte-level BPE, twenty times faster than the `tokenizers` crate and equal to it.
//!
//! A text is cut into pieces (`scanner`: GPT-2's regular expression, by hand); most pieces
//! are a token as a whole (`words`: one look-up); the others are merged pair by pair
//! (`merges`). `tokenizers` stays the definition: the tests hold every Unicode scalar value,
//! random strings and whole corpora against it.

mod hash;
mod merges;
pub(crate) mod pretokenizer;
pub(crate) mod tokenizer_json;
pub(crate) mod vocab_lookup;

use anyhow::{Context, Result, ensure};

use merges::{Merger, Merges};
use pretokenizer::Scanner;
pub(crate) use tokenizer_json::TokenizerFile;
use vocab_lookup::VocabIndex;

/// A byte-level BPE read from a `tokenizer.json`.
pub(crate) struct ByteLevelBpe {
    scanner: Scanner,
    words: VocabIndex,
    merges: Merges,
}

/// Buffers of one thread, and its memory of pieces that are several tokens.
pub(crate) struct MergeBuffers {
    merger: Merger,
    recent: vocab_lookup::WordCache,
}

impl MergeBuffers {
    pub(crate) fn new() -> Self {
        MergeBuffers { merger: Merger::default(), recent: vocab_lookup::WordCache::new() }
    }
}

impl ByteLevelBpe {
    /// For a tokenizer that is built as GPT-2's is.
    ///
    /// # Errors
    /// Saying what about it is not, so that another way must be taken.
    pub(crate) fn new(file: &TokenizerFile) -> Result<Self> {
        ensure!(file.normalizer.is_none(), "it normalises text");
        let cut = file.pre_tokenizer.as_ref().context("it does not cut text")?;
        ensure!(cut.kind == "ByteLevel", "it is not byte-level");
        ensure!(cut.add_prefix_space == Some(false), "it adds a space in front");
        ensure!(cut.use_regex != Some(false), "it does not cut text as GPT-2 does");
        let model = &file.model;
        ensure!(model.kind.as_deref().is_none_or(|kind| kind == "BPE"), "its model is no BPE");
        ensure!(model.dropout.is_none_or(|p| p == 0.0), "its merges drop out");
        let empty = |affix: &Option<String>| affix.as_ref().is_none_or(String::is_empty);
        ensure!(
            empty(&model.continuing_subword_prefix) && empty(&model.end_of_word_suffix),
            "it marks the parts of words"
        );
        ensure!(model.ignore_merges != Some(true), "it passes merges over");
        let merges = Merges::new(&model.vocab, &model.merges)?;
        let words = VocabIndex::new(&model.vocab, &merges)?;
        Ok(ByteLevelBpe { scanner: Scanner::new()?, words, merges })
    }

    /// Appends the ids of a text in which nothing is special.
    pub(crate) fn encode(&self, text: &str, scratch: &mut MergeBuffers, out: &mut Vec<u16>) {
        let MergeBuffers { merger, recent } = scratch;
        let mut start = 0;
        while start < text.len() {
            let end = self.scanner.piece_end(text, start);
            let piece = &text.as_bytes()[start..end];
            match vocab_lookup::key(text.as_bytes(), start, end) {
                Some(key) => match self.words.get(key) {
                    Some(id) => out.push(id),
                    None => recent.extend(key, out, |out| merger.merge(&self.merges, piece, out)),
                },
                None => match self.words.get_long(piece) {
                    Some(id) => out.push(id),
                    None => merger.merge(&self.merges, piece, out),
                },
            }
            start = end;
        }
    }
}

/// The byte that a character of a byte-level vocabulary stands for: printable Latin-1
/// characters stand for themselves, the 68 others for U+0100 onwards in order.
fn byte_of(character: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(character) {
        code @ 0..=0xFF => Some(code as u8).filter(|&byte| printable(byte)),
        code => (0..=u8::MAX).filter(|&byte| !printable(byte)).nth(code as usize - 0x100),
    }
}

/// The bytes of a vocabulary entry.
fn bytes_of(token: &str) -> Option<Vec<u8>> {
    token.chars().map(byte_of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// len(set(bytes_to_unicode().values())) == 256 in GPT-2's encoder.py; spot values.
    #[test]
    fn characters_stand_for_bytes() {
        let all: std::collections::BTreeSet<u8> = (0..0x144u32).filter_map(|c| byte_of(char::from_u32(c)?)).collect();
        assert_eq!(all.len(), 256);
        assert_eq!(
            [' ', '\u{120}', '\u{10a}', 'a', '\u{144}'].map(byte_of),
            [None, Some(32), Some(10), Some(97), None]
        );
    }
}
