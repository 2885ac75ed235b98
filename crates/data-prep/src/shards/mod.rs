//! Token shards on disk: manifest, memory-mapped reader, shuffle, verification.

pub(crate) mod manifest;
pub(crate) mod mmap;
pub(crate) mod reader;
pub(crate) mod shuffle;
pub(crate) mod verify;
