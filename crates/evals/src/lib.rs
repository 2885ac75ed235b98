//! What a trained model is worth.

mod rows;
mod tokenizer;
mod validation;

pub use rows::{inputs_and_targets, read_rows};
pub use tokenizer::Tokenizer;
pub use validation::{Sequences, Share, Validated, validate};
