//! What a trained model is worth.

mod validation;

pub use validation::{Validated, read_blocks, validate};
