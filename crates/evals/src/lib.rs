//! What a trained model is worth, and what its senses say.

mod benchmark;
mod blimp;
pub mod control;
mod detokenise;
mod documents;
mod edit_file;
mod lambada;
mod requests;
mod rows;
mod scoring;
mod senses;
mod similarity;
mod spearman;
#[cfg(test)]
mod testing;
mod tokenizer;
mod validation;
mod wikitext;
mod word_pairs;

pub use benchmark::{Benchmark, Extent, Report, Task, Val};
pub use blimp::Blimp;
pub use edit_file::{edits_json, parse_edits, read_edits};
pub use lambada::Lambada;
pub use requests::Framing;
pub use rows::{inputs_and_targets, read_rows};
pub use scoring::Scorer;
pub use senses::{Candidate, Reading, Scored, SenseView, TextContext, sense_cosines, sense_vectors, senses_of};
pub use similarity::{Agreement, SenseAgreement, Similarity};
pub use tokenizer::Tokenizer;
pub use validation::{Sequences, Share, Validated, validate};
pub use wikitext::Wikitext;
