//! Evaluation benchmarks, inspection and editing of senses, and control of a model through its
//! senses.
//!
//! The modules, from the lowest to the highest: `tokenizer`, `scoring` (log-probabilities of
//! texts), `senses` (inspection and edit files), `tasks` (benchmarks), and [`control`] (the
//! paper's three recipes). A module imports only from the modules before it.

pub mod control;
mod scoring;
mod senses;
mod tasks;
#[cfg(test)]
mod testing;
mod tokenizer;

pub use scoring::Scorer;
pub use scoring::requests::PromptTokenizer;
pub use senses::edit_file::{edits_json, parse_edits, read_edits};
pub use senses::inspect::{
    CandidateToken, ScoredToken, SenseView, TextAnalysis, TextContext, sense_cosines, sense_views,
};
pub use tasks::blimp::BlimpResult;
pub use tasks::lambada::LambadaResult;
pub use tasks::similarity::{ListCorrelations, SenseCorrelations, SimilarityResult};
pub use tasks::validation::{RankShard, ValidationOptions, ValidationResult, validate};
pub use tasks::wikitext::WikitextResult;
pub use tasks::{Benchmark, Task, TaskReport, TaskSize, ValResult};
pub use tokenizer::Tokenizer;
