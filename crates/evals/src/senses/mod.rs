//! Inspection of sense vectors, and sense edits as JSON files.

pub(crate) mod edit_file;
pub(crate) mod inspect;
