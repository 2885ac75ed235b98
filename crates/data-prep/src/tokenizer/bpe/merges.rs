//! Byte-pair merging: of all neighbouring pairs the one of lowest rank is merged, the
//! leftmost of equals, until none is left.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use anyhow::{Context, Result, ensure};

use super::bytes_of;
use super::hash::slot;
use super::tokenizer_json::{Merge, Vocabulary};

/// No merge.
const NONE: u32 = u32::MAX;

/// Ranks and results of all pairs, by open addressing.
pub(super) struct Merges {
    bits: u32,
    /// (left, right) as one number; `NONE` is empty.
    pairs: Vec<u32>,
    ranks: Vec<u32>,
    /// The merged id, by rank.
    merged: Vec<u16>,
    /// The id of each single byte.
    of_byte: [u16; 256],
}

impl Merges {
    pub(super) fn new(vocabulary: &Vocabulary, merges: &[Merge]) -> Result<Self> {
        let id_of = |token: &str| -> Result<u16> {
            let id = vocabulary.get(token).copied();
            let id = id.with_context(|| format!("its merges name {token}, which its vocabulary lacks"))?;
            u16::try_from(id).with_context(|| format!("its id {id} is past uint16"))
        };
        let mut of_byte = [None; 256];
        for token in vocabulary.keys() {
            if let Some([byte]) = bytes_of(token).as_deref() {
                of_byte[usize::from(*byte)] = Some(id_of(token)?);
            }
        }
        let of_byte = of_byte.into_iter().collect::<Option<Vec<u16>>>().context("its vocabulary lacks a byte")?;
        let of_byte = <[u16; 256]>::try_from(of_byte.as_slice()).context("there are 256 bytes")?;
        let bits = (4 * merges.len().max(1)).next_power_of_two().trailing_zeros();
        let size = 1usize << bits;
        let mut table = Merges { bits, pairs: vec![NONE; size], ranks: vec![NONE; size], merged: Vec::new(), of_byte };
        let mut joined = String::new();
        for (rank, merge) in merges.iter().enumerate() {
            let (left, right) = merge.halves().with_context(|| format!("its merge {rank} is no pair"))?;
            let pair = pair(id_of(left)?, id_of(right)?);
            ensure!(pair != NONE, "its merge {rank} is of the ids 65535 and 65535");
            joined.clear();
            joined.extend([left, right]);
            table.merged.push(id_of(&joined)?);
            // The first rank of a pair that is named twice counts in no definition; refuse.
            ensure!(table.rank_of(pair) == NONE, "its merge {rank} stands twice");
            let mask = size - 1;
            let mut at = slot(u128::from(pair), bits);
            while table.pairs[at] != NONE {
                at = (at + 1) & mask;
            }
            (table.pairs[at], table.ranks[at]) = (pair, rank as u32);
        }
        Ok(table)
    }

    /// `NONE` for a pair that is not merged.
    #[inline]
    fn rank_of(&self, pair: u32) -> u32 {
        let mask = self.pairs.len() - 1;
        let mut at = slot(u128::from(pair), self.bits);
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
        self.rank_of(pair(left, right))
    }
}

fn pair(left: u16, right: u16) -> u32 {
    u32::from(left) << 16 | u32::from(right)
}

/// Pieces up to this many bytes are merged by looking through all pairs each time, which
/// is quadratic but has the smaller constant.
const SCAN: usize = 64;

/// Merges pieces, keeping its buffers.
#[derive(Default)]
pub(super) struct Merger {
    ids: Vec<u16>,
    /// Of each pair, at its left end.
    ranks: Vec<u32>,
    before: Vec<u32>,
    after: Vec<u32>,
    heap: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Merger {
    /// Appends the ids of a piece.
    pub(super) fn merge(&mut self, merges: &Merges, piece: &[u8], out: &mut Vec<u16>) {
        self.ids.clear();
        self.ids.extend(piece.iter().map(|&byte| merges.of_byte[usize::from(byte)]));
        if piece.len() <= SCAN {
            self.scan(merges);
            out.extend_from_slice(&self.ids);
        } else {
            self.queue(merges, out);
        }
    }

    fn scan(&mut self, merges: &Merges) {
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

    /// The same by a linked list and a heap of pairs: n log n, for pieces of any length.
    fn queue(&mut self, merges: &Merges, out: &mut Vec<u16>) {
        let Merger { ids, ranks, before, after, heap } = self;
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
            // A pair that is gone: its left end was merged away (rank NONE) or is another.
            if ranks[at] != rank {
                continue;
            }
            let right = after[at] as usize;
            ids[at] = merges.merged[rank as usize];
            ranks[right] = NONE;
            after[at] = after[right];
            // The pairs that the new token makes with its neighbours; none at the ends.
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
