//! Seeds that are functions of a few integers.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Returns a 64-bit seed that is a function of `seed` and of all coordinates, in order.
///
/// Dropout and sampling derive their seeds with it, so that no generator state has to be saved.
/// SplitMix64 (Steele et al., OOPSLA 2014) mixes the state after each coordinate.
pub fn derive_seed(seed: u64, coordinates: &[u64]) -> u64 {
    coordinates.iter().fold(mix(seed), |state, &coordinate| mix(state ^ mix(coordinate)))
}

/// Returns the first output of SplitMix64 for this state.
fn mix(state: u64) -> u64 {
    SplitMix64::seed_from_u64(state).next_u64()
}

#[cfg(test)]
mod tests {
    use super::derive_seed;

    #[test]
    fn seeds_depend_on_each_coordinate_and_its_position() {
        let base = derive_seed(1, &[2, 3, 4]);
        for other in [
            derive_seed(0, &[2, 3, 4]),
            derive_seed(1, &[3, 2, 4]),
            derive_seed(1, &[2, 3, 5]),
            derive_seed(1, &[2, 3]),
        ] {
            assert_ne!(base, other);
        }
        // The first output of SplitMix64 for state 0, from the reference code of the paper.
        assert_eq!(derive_seed(0, &[]), 0xE220_A839_7B1D_CDAF);
    }

    /// Dropout and sampling of saved runs depend on these values.
    #[test]
    fn seeds_do_not_change() {
        assert_eq!(derive_seed(1, &[2, 3, 4]), 0x128B_9720_B85D_0DE3);
    }
}
