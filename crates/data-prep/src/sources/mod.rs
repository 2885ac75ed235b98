//! Source files: their formats, and reading documents from them.
//!
//! Documents are numbered from 0 over the inputs, in their order. A directory or a glob stands for
//! its files in the byte order of their paths. The documents of a file keep their order.

mod arrow;
mod counting_reader;
mod expand;
mod format;
mod item;
mod jsonl;
mod openwebtext_tar;
mod parquet;
mod source_file;
mod text;

pub(crate) use expand::expand;
pub(crate) use item::SourceItem;
pub use jsonl::json_object;
pub(crate) use source_file::SourceFile;
