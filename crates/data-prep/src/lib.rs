//! Text in, token shards out; the reader of those shards; the order of sequences.
//!
//! The flow of [`prepare`]: `sources` reads documents in their order, `tokenize` makes ids
//! of them in parallel, `spool` keeps those in source order in a temporary file, and
//! `shards` writes them out in the split's permuted order. Needs no libtorch.

mod config;
mod manifest;
mod mapped;
mod order;
mod permutation;
mod prepare;
mod reader;
mod recipe;
mod shards;
mod sources;
mod spool;
mod tokenize;
mod verify;

pub use config::DataConfig;
pub use manifest::{MANIFEST_FILE, Manifest, Shard, Source, SplitManifest};
pub use order::{Order, SequenceOrder};
pub use permutation::{permutation, split_documents};
pub use prepare::{PrepareOptions, Snapshot, Stage, prepare};
pub use reader::{Split, TokenSplit};
pub use recipe::Recipe;
pub use verify::{SplitReport, VerifyReport, verify};
