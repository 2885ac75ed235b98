//! Multiplicative hash for the tables of the BPE. The keys are short and not adversarial, and a
//! collision only costs a second look-up.

/// Returns the bucket of `key` in a table of 2^`bits` buckets.
pub(super) fn bucket(key: u128, bits: u32) -> usize {
    // 2^64 divided by the golden ratio (Knuth, The Art of Computer Programming 6.4), and a second
    // odd number, so that equal halves do not cancel.
    let mixed =
        (key as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ ((key >> 64) as u64).wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
    (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (u64::BITS - bits)) as usize
}
