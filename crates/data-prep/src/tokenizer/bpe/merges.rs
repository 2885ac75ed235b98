//! Byte-pair merging: repeatedly merges the adjacent pair with the lowest rank, the leftmost of
//! equal ones, until no pair can be merged.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyhow::{Context, Result, ensure};

use super::byte_level::token_bytes;
use super::hash::bucket;
use super::tokenizer_json::{Merge, Vocabulary};

/// Rank of a pair that is not merged.
const NONE: u32 = u32::MAX;

/// Ranks and results of all merges, in a table with open addressing.
pub(super) struct MergeTable {
    bits: u32,
    /// Both ids of a pair in one number; `NONE` for an empty bucket.
    pairs: Vec<u32>,
    ranks: Vec<u32>,
    /// Merged id of each rank.
    merged: Vec<u16>,
    /// Id of each byte.
    byte_ids: [u16; 256],
}

impl MergeTable {
    pub(super) fn new(vocabulary: &Vocabulary, merges: &[Merge]) -> Result<Self> {
        let id = |token: &str| -> Result<u16> {
            let id = vocabulary.get(token).copied();
            let id = id.with_context(|| format!("its vocabulary has no token {token}, which its merges use"))?;
            u16::try_from(id).with_context(|| format!("its id {id} does not fit into uint16"))
        };
        let mut byte_ids = [None; 256];
        for token in vocabulary.keys() {
            if let Some([byte]) = token_bytes(token).as_deref() {
                byte_ids[usize::from(*byte)] = Some(id(token)?);
            }
        }
        let byte_ids =
            byte_ids.into_iter().collect::<Option<Vec<u16>>>().context("its vocabulary does not have all bytes")?;
        let byte_ids = <[u16; 256]>::try_from(byte_ids.as_slice()).context("there are 256 bytes")?;
        let bits = (4 * merges.len().max(1)).next_power_of_two().trailing_zeros();
        let size = 1usize << bits;
        let mut table =
            MergeTable { bits, pairs: vec![NONE; size], ranks: vec![NONE; size], merged: Vec::new(), byte_ids };
        let mut joined = String::new();
        for (rank, merge) in merges.iter().enumerate() {
            let (left, right) = merge.split_pair().with_context(|| format!("its merge {rank} is not a pair"))?;
            let pair = pair(id(left)?, id(right)?);
            ensure!(pair != NONE, "its merge {rank} has the ids 65535 and 65535");
            joined.clear();
            joined.extend([left, right]);
            table.merged.push(id(&joined)?);
            // This table would use the first rank of a repeated pair; `tokenizers` uses the last.
            ensure!(table.pair_rank(pair) == NONE, "its merge {rank} repeats an earlier one");
            let mask = size - 1;
            let mut at = bucket(u128::from(pair), bits);
            while table.pairs[at] != NONE {
                at = (at + 1) & mask;
            }
            (table.pairs[at], table.ranks[at]) = (pair, rank as u32);
        }
        Ok(table)
    }

    /// Returns the rank of a pair, or `NONE` if it is not merged.
    #[inline]
    fn pair_rank(&self, pair: u32) -> u32 {
        let mask = self.pairs.len() - 1;
        let mut at = bucket(u128::from(pair), self.bits);
        loop {
            match self.pairs[at] {
                found if found == pair => return self.ranks[at],
                NONE => return NONE,
                _ => at = (at + 1) & mask,
            }
        }
    }

    #[inline]
    fn rank(&self, left: u16, right: u16) -> u32 {
        self.pair_rank(pair(left, right))
    }
}

fn pair(left: u16, right: u16) -> u32 {
    u32::from(left) << 16 | u32::from(right)
}

/// Maximum length in bytes of pieces that are merged by a scan over all pairs. The scan takes
/// quadratic time, but is faster for short pieces.
const MAX_SCAN_BYTES: usize = 64;

/// Merges pieces, and reuses its buffers.
#[derive(Default)]
pub(super) struct PieceMerger {
    ids: Vec<u16>,
    /// Rank of each pair, at the index of its left token.
    ranks: Vec<u32>,
    before: Vec<u32>,
    after: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

impl PieceMerger {
    /// Appends the ids of a piece.
    pub(super) fn merge(&mut self, merges: &MergeTable, piece: &[u8], out: &mut Vec<u16>) {
        self.ids.clear();
        self.ids.extend(piece.iter().map(|&byte| merges.byte_ids[usize::from(byte)]));
        if piece.len() <= MAX_SCAN_BYTES {
            self.merge_by_scan(merges);
            out.extend_from_slice(&self.ids);
        } else {
            self.merge_by_heap(merges, out);
        }
    }

    /// Merges `self.ids` in place.
    fn merge_by_scan(&mut self, merges: &MergeTable) {
        let (ids, ranks) = (&mut self.ids, &mut self.ranks);
        ranks.clear();
        ranks.extend(ids.windows(2).map(|w| merges.rank(w[0], w[1])));
        loop {
            let (mut at, mut lowest) = (0, NONE);
            for (i, &rank) in ranks.iter().enumerate() {
                if rank < lowest {
                    (at, lowest) = (i, rank);
                }
            }
            if lowest == NONE {
                return;
            }
            ids[at] = merges.merged[lowest as usize];
            ids.remove(at + 1);
            ranks.remove(at);
            if at < ranks.len() {
                ranks[at] = merges.rank(ids[at], ids[at + 1]);
            }
            if at > 0 {
                ranks[at - 1] = merges.rank(ids[at - 1], ids[at]);
            }
        }
    }

    /// Merges `self.ids` with a linked list and a heap of pairs, in O(n log n), and appends the
    /// result to `out`.
    fn merge_by_heap(&mut self, merges: &MergeTable, out: &mut Vec<u16>) {
        let PieceMerger { ids, ranks, before, after, heap } = self;
        let length = ids.len() as u32;
        ranks.clear();
        ranks.extend(ids.windows(2).map(|w| merges.rank(w[0], w[1])));
        ranks.push(NONE);
        before.clear();
        before.extend((0..length).map(|i| i.wrapping_sub(1)));
        after.clear();
        after.extend(1..=length);
        heap.clear();
        let queued = ranks.iter().zip(0u32..).filter(|(rank, _)| **rank != NONE);
        heap.extend(queued.map(|(&rank, i)| Reverse((rank, i))));
        while let Some(Reverse((rank, left))) = heap.pop() {
            let at = left as usize;
            // Skips a pair that no longer exists: its left token was merged (rank NONE) or has
            // changed.
            if ranks[at] != rank {
                continue;
            }
            let right = after[at] as usize;
            ids[at] = merges.merged[rank as usize];
            ranks[right] = NONE;
            after[at] = after[right];
            // The pairs of the new token with its neighbors, which do not exist at the ends.
            ranks[at] = NONE;
            for (i, j) in [(left, after[at]), (before[at], left)] {
                if i == u32::MAX || j == length {
                    continue;
                }
                let rank = merges.rank(ids[i as usize], ids[j as usize]);
                ranks[i as usize] = rank;
                if rank != NONE {
                    heap.push(Reverse((rank, i)));
                }
            }
            if after[at] < length {
                before[after[at] as usize] = left;
            }
        }
        let mut at = 0;
        while at < length {
            out.push(ids[at as usize]);
            at = after[at as usize];
        }
    }
}
