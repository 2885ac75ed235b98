//! Pieces that are one token as a whole, and pieces seen lately that are several.

use std::collections::HashMap;

use anyhow::{Context, Result};

use super::bytes_of;
use super::hash::slot;
use super::merges::{Merger, Merges};
use super::tokenizer_json::Vocabulary;

/// Longest piece that has a [`key`]: its bytes and its length in 16 bytes.
const SHORT: usize = 15;

/// A short piece as one number, unique among short pieces.
#[inline]
pub(super) fn key(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let length = end - start;
    if length > SHORT {
        return None;
    }
    let bytes = match text.get(start..start + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
        Some(sixteen) => u128::from_le_bytes(sixteen) & ((1 << (8 * length)) - 1),
        // Near the text's end.
        None => text[start..end].iter().rev().fold(0, |key, &byte| key << 8 | u128::from(byte)),
    };
    Some(bytes | (length as u128) << 120)
}

/// Open addressing over short pieces; longer ones, which are rare, in a map.
pub(super) struct VocabIndex {
    bits: u32,
    /// 0 is empty: no piece is of length 0.
    keys: Vec<u128>,
    ids: Vec<u16>,
    long: HashMap<Vec<u8>, u16>,
}

impl VocabIndex {
    /// Every vocabulary entry that its own bytes merge to. (An entry that they do not
    /// merge to is never produced for them.)
    pub(super) fn new(vocabulary: &Vocabulary, merges: &Merges) -> Result<Self> {
        // At most a quarter full, so that most look-ups end at the first slot.
        let bits = (4 * vocabulary.len().max(1)).next_power_of_two().trailing_zeros();
        let mut words = VocabIndex { bits, keys: vec![0; 1 << bits], ids: vec![0; 1 << bits], long: HashMap::new() };
        let (mut merger, mut ids) = (Merger::default(), Vec::new());
        for token in vocabulary.keys() {
            let Some(bytes) = bytes_of(token).filter(|b| !b.is_empty()) else { continue };
            ids.clear();
            merger.merge(merges, &bytes, &mut ids);
            if let [id] = ids[..] {
                match key(&bytes, 0, bytes.len()) {
                    Some(key) => words.insert(key, id).context("the table of words is full")?,
                    None => {
                        words.long.insert(bytes, id);
                    }
                }
            }
        }
        Ok(words)
    }

    fn insert(&mut self, key: u128, id: u16) -> Option<()> {
        let mask = self.keys.len() - 1;
        let first = slot(key, self.bits);
        let free = (0..self.keys.len()).map(|i| (first + i) & mask).find(|&s| self.keys[s] == 0)?;
        (self.keys[free], self.ids[free]) = (key, id);
        Some(())
    }

    #[inline]
    pub(super) fn get(&self, key: u128) -> Option<u16> {
        let mask = self.keys.len() - 1;
        let mut at = slot(key, self.bits);
        loop {
            match self.keys[at] {
                found if found == key => return Some(self.ids[at]),
                0 => return None,
                _ => at = (at + 1) & mask,
            }
        }
    }

    pub(super) fn get_long(&self, piece: &[u8]) -> Option<u16> {
        self.long.get(piece).copied()
    }
}

/// Ids of a short piece, where they are few enough to be kept.
#[derive(Clone, Copy)]
struct MultiToken {
    key: u128,
    count: u16,
    ids: [u16; 7],
}

/// A direct-mapped memory of short pieces that are several tokens: names and rare words
/// come again and again.
pub(super) struct WordCache {
    slots: Vec<MultiToken>,
}

const RECENT_BITS: u32 = 14;

impl WordCache {
    pub(super) fn new() -> Self {
        WordCache { slots: vec![MultiToken { key: 0, count: 0, ids: [0; 7] }; 1 << RECENT_BITS] }
    }

    /// Appends the ids of a short piece, from memory or by `merge`.
    #[inline]
    pub(super) fn extend(&mut self, key: u128, out: &mut Vec<u16>, merge: impl FnOnce(&mut Vec<u16>)) {
        let known = &mut self.slots[slot(key, RECENT_BITS)];
        if known.key == key {
            out.extend_from_slice(&known.ids[..usize::from(known.count)]);
            return;
        }
        let before = out.len();
        merge(out);
        let made = &out[before..];
        if let Some(ids) = known.ids.get_mut(..made.len()) {
            ids.copy_from_slice(made);
            (known.key, known.count) = (key, made.len() as u16);
        }
    }
}
