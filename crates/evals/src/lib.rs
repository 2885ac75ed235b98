//! What a trained model is worth.

pub mod control;
mod edit_file;
mod rows;
mod senses;
mod tokenizer;
mod validation;

pub use edit_file::{edits_json, parse_edits, read_edits};
pub use rows::{inputs_and_targets, read_rows};
pub use senses::{Candidate, Reading, Scored, SenseView, sense_cosines, sense_vectors, senses_of};
pub use tokenizer::Tokenizer;
pub use validation::{Sequences, Share, Validated, validate};
