//! Files in an output directory.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// Copies the contents of a file. The copy gets default permissions, not those of the source.
///
/// # Errors
/// If a file cannot be read or written; the error names it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    fs::write(to, bytes).with_context(|| format!("cannot write {}", to.display()))
}

/// Writes `value` as indented JSON to the file `name` of `directory`.
///
/// # Errors
/// If the file cannot be written; the error names it.
pub(crate) fn write_json(directory: &Path, name: &str, value: &Value) -> Result<()> {
    let path = directory.join(name);
    fs::write(&path, serde_json::to_string_pretty(value)? + "\n")
        .with_context(|| format!("cannot write {}", path.display()))
}
