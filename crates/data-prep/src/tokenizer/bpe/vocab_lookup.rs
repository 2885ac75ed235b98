//! Look-up of pieces that are one token, and a cache of pieces that are several tokens.

use std::collections::HashMap;

use anyhow::{Context, Result};

use super::byte_level::token_bytes;
use super::hash::bucket;
use super::merges::{MergeTable, PieceMerger};
use super::tokenizer_json::Vocabulary;

/// Maximum length in bytes of a piece with a [`short_key`], which contains the bytes of the piece
/// and its length in 16 bytes.
const MAX_SHORT: usize = 15;

/// Returns a key that identifies a short piece, or `None` for a longer piece.
#[inline]
pub(super) fn short_key(text: &[u8], start: usize, end: usize) -> Option<u128> {
    let length = end - start;
    if length > MAX_SHORT {
        return None;
    }
    let bytes = match text.get(start..start + 16).and_then(|b| <[u8; 16]>::try_from(b).ok()) {
        Some(sixteen) => u128::from_le_bytes(sixteen) & ((1 << (8 * length)) - 1),
        // Fewer than 16 bytes are left in the text.
        None => text[start..end].iter().rev().fold(0, |key, &byte| key << 8 | u128::from(byte)),
    };
    Some(bytes | (length as u128) << 120)
}

/// Pieces that are one token. Short pieces are in a table with open addressing; longer ones are
/// rare and in a map.
pub(super) struct VocabIndex {
    bits: u32,
    /// 0 for an empty bucket: no piece has the length 0.
    keys: Vec<u128>,
    ids: Vec<u16>,
    long: HashMap<Vec<u8>, u16>,
}

impl VocabIndex {
    /// Indexes every token whose bytes merge to the token itself. (A piece with the bytes of
    /// another token never gives this token.)
    pub(super) fn new(vocabulary: &Vocabulary, merges: &MergeTable) -> Result<Self> {
        // At most a quarter is occupied, so that most look-ups end at the first bucket.
        let bits = (4 * vocabulary.len().max(1)).next_power_of_two().trailing_zeros();
        let mut index = VocabIndex { bits, keys: vec![0; 1 << bits], ids: vec![0; 1 << bits], long: HashMap::new() };
        let (mut merger, mut ids) = (PieceMerger::default(), Vec::new());
        for token in vocabulary.keys() {
            let Some(bytes) = token_bytes(token).filter(|b| !b.is_empty()) else { continue };
            ids.clear();
            merger.merge(merges, &bytes, &mut ids);
            if let [id] = ids[..] {
                match short_key(&bytes, 0, bytes.len()) {
                    Some(key) => index.insert(key, id).context("the vocabulary index is full")?,
                    None => {
                        index.long.insert(bytes, id);
                    }
                }
            }
        }
        Ok(index)
    }

    fn insert(&mut self, key: u128, id: u16) -> Option<()> {
        let mask = self.keys.len() - 1;
        let first = bucket(key, self.bits);
        let free = (0..self.keys.len()).map(|i| (first + i) & mask).find(|&s| self.keys[s] == 0)?;
        (self.keys[free], self.ids[free]) = (key, id);
        Some(())
    }

    #[inline]
    pub(super) fn get(&self, key: u128) -> Option<u16> {
        let mask = self.keys.len() - 1;
        let mut at = bucket(key, self.bits);
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

/// Cache entry: the ids of a short piece with at most seven tokens.
#[derive(Clone, Copy)]
struct MultiToken {
    key: u128,
    count: u16,
    ids: [u16; 7],
}

/// Direct-mapped cache of short pieces that are several tokens, for names and rare words that are
/// repeated in a text.
pub(super) struct WordCache {
    buckets: Vec<MultiToken>,
}

/// Base-2 logarithm of the number of cache entries.
const CACHE_BITS: u32 = 14;

impl WordCache {
    pub(super) fn new() -> Self {
        WordCache { buckets: vec![MultiToken { key: 0, count: 0, ids: [0; 7] }; 1 << CACHE_BITS] }
    }

    /// Appends the ids of a short piece, from the cache or else from `merge`.
    #[inline]
    pub(super) fn append(&mut self, key: u128, out: &mut Vec<u16>, merge: impl FnOnce(&mut Vec<u16>)) {
        let entry = &mut self.buckets[bucket(key, CACHE_BITS)];
        if entry.key == key {
            out.extend_from_slice(&entry.ids[..usize::from(entry.count)]);
            return;
        }
        let before = out.len();
        merge(out);
        let merged = &out[before..];
        if let Some(ids) = entry.ids.get_mut(..merged.len()) {
            ids.copy_from_slice(merged);
            (entry.key, entry.count) = (key, merged.len() as u16);
        }
    }
}
