//! numpy's `default_rng(seed).permutation(n)`, and the split that Hugging Face `datasets` computes
//! with it.
//!
//! numpy hashes the 32-bit words of the seed (`SeedSequence`), seeds a PCG64 XSL-RR 128/64
//! generator with them (O'Neill 2014), and runs a Fisher-Yates shuffle from the end. The shuffle
//! draws bounded integers by masked rejection.

const PCG_MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;

/// Returns the four 64-bit words that numpy's `SeedSequence` derives from a seed.
fn seed_sequence(seed: u64) -> [u64; 4] {
    const INIT_A: u32 = 0x43b0_d7e5;
    const MULT_A: u32 = 0x931e_8875;
    const INIT_B: u32 = 0x8b51_f9dd;
    const MULT_B: u32 = 0x58f3_8ded;
    const MIX_L: u32 = 0xca01_f9dd;
    const MIX_R: u32 = 0x4973_f715;

    // Missing words are hashed as zeros, so a 64-bit seed always fills the four words of the pool.
    let entropy = [seed as u32, (seed >> 32) as u32, 0, 0];
    let mut constant = INIT_A;
    let mut hash = |value: u32| {
        let value = value ^ constant;
        constant = constant.wrapping_mul(MULT_A);
        let value = value.wrapping_mul(constant);
        value ^ (value >> 16)
    };
    let mut pool = entropy.map(&mut hash);
    for from in 0..4 {
        for to in 0..4 {
            if from != to {
                let mixed = MIX_L.wrapping_mul(pool[to]).wrapping_sub(MIX_R.wrapping_mul(hash(pool[from])));
                pool[to] = mixed ^ (mixed >> 16);
            }
        }
    }
    let mut constant = INIT_B;
    let mut words = [0u32; 8];
    for (i, word) in words.iter_mut().enumerate() {
        let value = pool[i % 4] ^ constant;
        constant = constant.wrapping_mul(MULT_B);
        let value = value.wrapping_mul(constant);
        *word = value ^ (value >> 16);
    }
    std::array::from_fn(|i| u64::from(words[2 * i]) | u64::from(words[2 * i + 1]) << 32)
}

/// numpy's PCG64 generator.
struct Pcg64 {
    state: u128,
    increment: u128,
    /// The unused upper half of the last 64-bit output.
    half: Option<u32>,
}

impl Pcg64 {
    fn new(seed: u64) -> Self {
        let [a, b, c, d] = seed_sequence(seed).map(u128::from);
        let increment = ((c << 64 | d) << 1) | 1;
        let state = increment.wrapping_add(a << 64 | b).wrapping_mul(PCG_MULTIPLIER).wrapping_add(increment);
        Pcg64 { state, increment, half: None }
    }

    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_mul(PCG_MULTIPLIER).wrapping_add(self.increment);
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    fn next_u32(&mut self) -> u32 {
        if let Some(half) = self.half.take() {
            return half;
        }
        let value = self.next_u64();
        self.half = Some((value >> 32) as u32);
        value as u32
    }

    /// Draws uniformly from `0..=max` by masked rejection.
    fn next_up_to(&mut self, max: u32) -> u32 {
        if max == 0 {
            return 0;
        }
        let mask = u32::MAX >> max.leading_zeros();
        loop {
            let value = self.next_u32() & mask;
            if value <= max {
                return value;
            }
        }
    }
}

/// Returns `numpy.random.default_rng(seed).permutation(n)`.
fn permutation(seed: u64, n: u32) -> Vec<u32> {
    let mut generator = Pcg64::new(seed);
    let mut order: Vec<u32> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i as usize, generator.next_up_to(i) as usize);
    }
    order
}

/// Returns the number of `n` documents that are in the validation split.
pub(crate) fn num_val_documents(n: u64, fraction: f64) -> u64 {
    ((n as f64 * fraction).ceil() as u64).min(n)
}

/// Returns the document numbers of the train and the validation split, in written order. Equals
/// `train_test_split(test_size=fraction, seed=seed, shuffle=True)` of Hugging Face `datasets`.
pub(crate) fn split_documents(n: u32, fraction: f64, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let mut order = permutation(seed, n);
    let train = order.split_off(num_val_documents(u64::from(n), fraction) as usize);
    (train, order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    use crate::hash::hex;

    fn sha256(order: &[u32]) -> String {
        let mut hasher = Sha256::new();
        for &value in order {
            hasher.update(i64::from(value).to_le_bytes());
        }
        hex(&hasher.finalize())
    }

    /// python3 -c "import numpy as np; print(np.random.default_rng(2357).permutation(10).tolist())"
    #[test]
    fn small_permutations_equal_numpy() {
        assert!(permutation(2357, 0).is_empty());
        assert_eq!(permutation(2357, 1), [0]);
        assert_eq!(permutation(2357, 10), [8, 3, 0, 9, 5, 6, 2, 7, 4, 1]);
        assert_eq!(permutation((1 << 40) + 7, 10), [6, 2, 8, 7, 9, 3, 4, 1, 5, 0]);
    }

    /// numpy.random.PCG64(2357).random_raw(3)
    #[test]
    fn raw_outputs_equal_numpy() {
        let mut generator = Pcg64::new(2357);
        assert_eq!(
            [(); 3].map(|()| generator.next_u64()),
            [0x3152_7a4e_ed75_96d1, 0xf02a_6a77_53dd_9e64, 0x5f86_26a2_58ee_4f82]
        );
    }

    /// hashlib.sha256(np.random.default_rng(2357).permutation(8013769).astype('<i8').tobytes())
    #[test]
    fn permutation_of_openwebtext_equals_numpy() {
        assert_eq!(
            sha256(&permutation(2357, 8_013_769)),
            "713795c9660553b17cc384b3c0d72c0328090f1926873b034ce38fe506e0655e"
        );
    }

    #[test]
    fn split_of_openwebtext_has_the_published_sizes() {
        let (train, validation) = split_documents(8_013_769, 0.0005, 2357);
        assert_eq!((train.len(), validation.len()), (8_009_762, 4_007));
    }
}
