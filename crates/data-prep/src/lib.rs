//! Text to token shards: reading documents, tokenizing them, writing shards, and reading shards in
//! a seeded order. Does not depend on libtorch.
//!
//! [`prepare()`] runs in two stages. The first stage reads documents (`sources`), tokenizes them in
//! parallel (`tokenizer`), and appends their ids in source order to a temporary file. The second
//! stage writes the ids in the permuted order of each split to shards.
//!
//! Modules import only from modules earlier in this list: `hash` and `fs`, `tokenizer` and
//! `sources`, `shards`, `config`, `prepare`.

mod config;
pub mod fs;
pub mod hash;
mod prepare;
mod shards;
mod sources;
mod tokenizer;

pub use config::DataConfig;
pub use prepare::options::{MAX_THREADS, PrepareOptions};
pub use prepare::progress::{PrepareEvent, PrepareProgress, PrepareStage};
pub use prepare::throughput::{Throughput, measure_throughput};
pub use prepare::{Prepared, prepare};
pub use shards::manifest::{Manifest, Shard, SourceFileRecord, SplitManifest};
pub use shards::reader::{TokenSplit, read_rows};
pub use shards::shuffle::{DataOrder, SequenceOrder};
pub use shards::split::Split;
pub use shards::verify::{OpenWebTextRevision, SplitReport, VerifyReport, verify};
pub use sources::json_object;
pub use tokenizer::recipe::Recipe;
