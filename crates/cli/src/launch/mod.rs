//! What `backpack launch` is made of: several ranks of this program on this machine.

pub(crate) mod bond;
pub(crate) mod ranks;
mod relay;
pub(crate) mod verdict;
