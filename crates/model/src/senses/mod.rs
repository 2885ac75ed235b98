//! Sense edits, and the memory-mapped table of all sense vectors.

pub(crate) mod edits;
