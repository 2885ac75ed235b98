//! What a trained model is worth, and what its senses say.

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
    CandidateToken, ScoredToken, SenseView, TextAnalysis, TextContext, sense_cosines, sense_vectors, sense_views,
};
pub use tasks::blimp::BlimpResult;
pub use tasks::lambada::LambadaResult;
pub use tasks::similarity::{ListCorrelations, SenseCorrelations, SimilarityResult};
pub use tasks::validation::{RankShard, ValidationOptions, ValidationResult, validate};
pub use tasks::wikitext::WikitextResult;
pub use tasks::{Benchmark, Task, TaskReport, TaskSize, ValResult};
pub use tokenizer::Tokenizer;
