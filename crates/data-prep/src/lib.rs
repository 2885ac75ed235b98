//! Text in, token shards out; the reader of those shards; the order of sequences.
//!
//! The flow of [`prepare`]: `sources` reads documents in their order, `tokenize` makes ids
//! of them in parallel, `ingest` spools those in source order to a temporary file, and
//! `place` writes them out in the split's permuted order. Needs no libtorch.

mod bpe;
mod config;
mod ingest;
mod journal;
mod manifest;
mod mapped;
mod order;
mod permutation;
mod place;
mod prepare;
mod rates;
mod reader;
mod recipe;
mod sources;
mod spool;
mod tokenize;
mod verify;
mod workplace;

pub use config::DataConfig;
pub use manifest::{MANIFEST_FILE, Manifest, Shard, Source, SplitManifest};
pub use order::{Order, SequenceOrder};
pub use permutation::{permutation, split_documents};
pub use prepare::{Event, PrepareOptions, Prepared, Snapshot, Stage, prepare};
pub use rates::{Rates, rates};
pub use reader::{Split, TokenSplit};
pub use recipe::Recipe;
pub use sources::json_object;
pub use verify::{OpenWebText, SplitReport, VerifyReport, verify};
