//! Tokenizer: documents to ids.
//!
//! Tokenizers with the structure of GPT-2's use the native BPE of `bpe`. All others use the
//! `tokenizers` crate, which is also the reference of the tests.

mod bpe;
mod encoder;
pub(crate) mod recipe;
#[cfg(test)]
mod tests;

pub(crate) use encoder::{EncodedDocuments, Encoder};
