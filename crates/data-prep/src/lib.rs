//! Text in, token shards out; the reader of those shards; the order of sequences.
//!
//! The flow of [`prepare`]: `sources` reads documents in their order, `tokenize` makes ids
//! of them in parallel, `ingest` spools those in source order to a temporary file, and
//! `place` writes them out in the split's permuted order. Needs no libtorch.

mod config;
pub mod fs;
pub mod hash;
mod prepare;
mod shards;
mod sources;
mod tokenizer;

pub use config::DataConfig;
pub use prepare::numpy_permutation::{permutation, split_documents};
pub use prepare::throughput::{Throughput, rates};
pub use prepare::{MAX_THREADS, PrepareEvent, PrepareOptions, PrepareProgress, PrepareStage, Prepared, prepare};
pub use shards::manifest::{MANIFEST_FILE, Manifest, Shard, SourceFileRecord, SplitManifest};
pub use shards::reader::{Split, TokenSplit, read_rows};
pub use shards::shuffle::{DataOrder, SequenceOrder};
pub use shards::verify::{OpenWebTextRevision, SplitReport, VerifyReport, verify};
pub use sources::json_object;
pub use tokenizer::recipe::Recipe;
