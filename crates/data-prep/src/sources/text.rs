//! `.txt`: the whole file is one document.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use super::Sink;

pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let length = bytes.len() as u64;
    let text = String::from_utf8(bytes).map_err(|e| {
        anyhow!("{} is not UTF-8 at byte {}: convert it first", path.display(), e.utf8_error().valid_up_to())
    })?;
    sink(text, length)
}
