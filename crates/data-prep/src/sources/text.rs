//! `.txt`: the whole file is one document.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use super::item::{Sink, SourceItem};

/// Reads the file as one document.
pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let length = bytes.len() as u64;
    let item = match String::from_utf8(bytes) {
        Ok(text) => SourceItem::Text(text),
        Err(e) => SourceItem::Malformed(anyhow!(
            "{} is not UTF-8 at byte {}: convert the file first",
            path.display(),
            e.utf8_error().valid_up_to()
        )),
    };
    // The file has no further items, so the answer does not matter.
    let _ = sink(item, length);
    Ok(())
}
