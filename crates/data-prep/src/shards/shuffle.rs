//! Order of the training sequences: a pure function of the seed and the number of the sequence.
//! A resume is therefore instant, and independent of the number of processes.

use serde::{Deserialize, Serialize};

/// Order of the sequences within an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataOrder {
    /// A new permutation for each epoch.
    Shuffled,
    /// The order of the shards.
    Sequential,
}

/// Order of all sequences of a run. Each epoch contains every block once.
#[derive(Debug, Clone, Copy)]
pub struct SequenceOrder {
    order: DataOrder,
    blocks: u64,
    seed: u64,
    /// Half the number of bits of the permuted domain, the smallest with an even number of bits
    /// that contains all blocks.
    half_bits: u32,
}

/// Rounds of the Feistel network. With a strong round function, four rounds give a pseudo-random
/// permutation (Luby and Rackoff 1988). The cost of more rounds is negligible.
const ROUNDS: u64 = 8;

impl SequenceOrder {
    /// Creates the order of `blocks` blocks (at least one) with a seed.
    pub fn new(order: DataOrder, blocks: u64, seed: u64) -> Self {
        let bits = u64::BITS - blocks.saturating_sub(1).leading_zeros();
        SequenceOrder { order, blocks: blocks.max(1), seed, half_bits: bits.div_ceil(2).max(1) }
    }

    /// Returns the block of a sequence; sequences are numbered from the start of the run.
    pub fn block(&self, sequence: u64) -> u64 {
        let (epoch, mut index) = (sequence / self.blocks, sequence % self.blocks);
        if self.order == DataOrder::Sequential {
            return index;
        }
        // Cycle walking: applying the permutation until the result is a block is a bijection of the
        // blocks. It takes less than four steps on average.
        loop {
            index = self.permute(epoch, index);
            if index < self.blocks {
                return index;
            }
        }
    }

    /// Applies a keyed bijection of `0..2^(2 half_bits)`: a balanced Feistel network.
    fn permute(&self, epoch: u64, value: u64) -> u64 {
        let mask = (1u64 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for round in 0..ROUNDS {
            let key = mix(mix(mix(self.seed) ^ epoch) ^ round);
            (left, right) = (right, left ^ (mix(key ^ right) & mask));
        }
        left << self.half_bits | right
    }
}

/// Returns the first output of SplitMix64 for the state `x` (Steele et al., OOPSLA 2014).
// Not from rand_xoshiro, whose function is not inlined across crates and makes the permutation 3.5
// times as slow.
fn mix(x: u64) -> u64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn epoch(order: &SequenceOrder, number: u64) -> Vec<u64> {
        (0..order.blocks).map(|i| order.block(number * order.blocks + i)).collect()
    }

    #[test]
    fn each_epoch_contains_every_block_once() {
        for blocks in [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 10_000] {
            let order = SequenceOrder::new(DataOrder::Shuffled, blocks, 1111);
            for number in 0..3 {
                let mut seen = epoch(&order, number);
                seen.sort_unstable();
                assert_eq!(seen, (0..blocks).collect::<Vec<_>>(), "{blocks} blocks, epoch {number}");
            }
        }
    }

    #[test]
    fn epochs_and_seeds_differ_and_sequential_does_not_shuffle() {
        let order = SequenceOrder::new(DataOrder::Shuffled, 1000, 1);
        assert_ne!(epoch(&order, 0), epoch(&order, 1));
        assert_ne!(epoch(&order, 0), epoch(&SequenceOrder::new(DataOrder::Shuffled, 1000, 2), 0));
        let sequential = SequenceOrder::new(DataOrder::Sequential, 1000, 1);
        assert_eq!(epoch(&sequential, 3), (0..1000).collect::<Vec<_>>());
    }

    /// The order must never change, because a resume depends on it. The values are from this Python
    /// code, with `mix` as above in 64-bit arithmetic and h = 13 half bits:
    ///     def block(s, n, seed):
    ///         e, p = divmod(s, n)
    ///         while True:
    ///             l, r = p >> h, p & (1 << h) - 1
    ///             for k in range(8):
    ///                 l, r = r, l ^ mix(mix(mix(mix(seed) ^ e) ^ k) ^ r) & (1 << h) - 1
    ///             p = l << h | r
    ///             if p < n: return p
    #[test]
    fn order_equals_pinned_values() {
        let order = SequenceOrder::new(DataOrder::Shuffled, 17_647_621, 1111);
        let first: Vec<u64> = (0..4).map(|s| order.block(s)).collect();
        assert_eq!(first, [1_606_035, 8_793_359, 5_991_116, 9_769_517]);
        assert_eq!(order.block(17_647_621 * 3 + 5), 10_167_296);
    }

    /// Chi-square test of the block at a position: 64 bins of 64 blocks, 4,096 epochs.
    #[test]
    fn positions_are_uniform() {
        let order = SequenceOrder::new(DataOrder::Shuffled, 4096, 7);
        for position in [0, 1, 4095] {
            let mut bins = [0f64; 64];
            for number in 0..4096 {
                bins[(order.block(number * 4096 + position) / 64) as usize] += 1.0;
            }
            let chi: f64 = bins.iter().map(|n| (n - 64.0).powi(2) / 64.0).sum();
            // 63 degrees of freedom: a uniform distribution exceeds 95.6 in one of 200 samples.
            assert!(chi < 95.6, "position {position}: chi-square {chi}");
        }
    }

    /// Chi-square test of the distance between consecutive blocks.
    #[test]
    fn distances_of_consecutive_blocks_are_uniform() {
        let order = SequenceOrder::new(DataOrder::Shuffled, 65_536, 7);
        let mut bins = [0f64; 64];
        for pair in epoch(&order, 0).windows(2) {
            bins[(pair[1].wrapping_sub(pair[0]) % 65_536 / 1024) as usize] += 1.0;
        }
        let chi: f64 = bins.iter().map(|n| (n - 1024.0).powi(2) / 1024.0).sum();
        assert!(chi < 95.6, "chi-square {chi}");
    }

    proptest! {
        #[test]
        fn two_sequences_of_an_epoch_never_share_a_block(blocks in 2u64..1 << 40, seed: u64, a: u64, b: u64) {
            let order = SequenceOrder::new(DataOrder::Shuffled, blocks, seed);
            let (a, b) = (a % blocks, b % blocks);
            prop_assert!(order.block(a) < blocks);
            prop_assert_eq!(a == b, order.block(a) == order.block(b));
        }
    }
}
