//! Edits of sense vectors, and the memory-mapped table of all sense vectors.

pub(crate) mod edits;
pub(crate) mod table;
