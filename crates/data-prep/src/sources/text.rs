//! `.txt`: the whole file is one document.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use super::{Item, Sink};

pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let length = bytes.len() as u64;
    let item = match String::from_utf8(bytes) {
        Ok(text) => Item::Text(text),
        Err(e) => Item::Bad(anyhow!(
            "{} is not UTF-8 at byte {}: convert it first",
            path.display(),
            e.utf8_error().valid_up_to()
        )),
    };
    // There is nothing after it either way.
    let _ = sink(item, length);
    Ok(())
}
