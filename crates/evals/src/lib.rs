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
    CandidateToken, ScoredToken, SenseView, TextAnalysis, TextContext, sense_cosines, sense_vectors, senses_of,
};
pub use tasks::blimp::Blimp;
pub use tasks::lambada::Lambada;
pub use tasks::similarity::{Agreement, SenseAgreement, Similarity};
pub use tasks::validation::{RankShard, Sequences, ValidationResult, validate};
pub use tasks::wikitext::Wikitext;
pub use tasks::{Benchmark, Task, TaskReport, TaskSize, Val};
pub use tokenizer::Tokenizer;
