//! Token shards on disk: manifest, memory-mapped reader, shuffle, verification.

pub(crate) mod manifest;
mod mapped_shard;
mod mmap;
pub(crate) mod reader;
pub(crate) mod shuffle;
pub(crate) mod split;
pub(crate) mod verify;
