//! Recognition of an output directory that is already complete.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::shards::manifest::{MANIFEST_FILE, Manifest, PrepareSettings};
use crate::sources::SourceFile;

/// Returns the manifest of an output with the same settings and source files, or `None` if the
/// directory does not exist or is empty.
///
/// # Errors
/// The output exists and is something else.
pub(crate) fn find_complete_output(
    output: &Path,
    settings: &PrepareSettings,
    files: &[SourceFile],
) -> Result<Option<Manifest>> {
    if !output.is_dir() {
        ensure!(!output.exists(), "the output {} is not a directory", output.display());
        return Ok(None);
    }
    let mut entries = std::fs::read_dir(output).with_context(|| format!("cannot read {}", output.display()))?;
    if entries.next().is_none() {
        return Ok(None);
    }
    let occupied = |why: &str| {
        format!(
            "the output directory {} already holds files ({why}): use another directory, or delete it first",
            output.display()
        )
    };
    let Some((manifest, _)) = Manifest::load(output)? else { bail!(occupied(&format!("no {MANIFEST_FILE}"))) };
    if let Some(difference) = settings.difference(&manifest.settings())? {
        bail!(occupied(&difference));
    }
    let same_files = manifest.sources.len() == files.len()
        && manifest.sources.iter().zip(files).all(|(source, file)| {
            !file.is_standard_input()
                && Path::new(&source.path) == file.path
                && source.bytes == file.bytes
                && source.sha256 == file.sha256().ok()
        });
    ensure!(same_files, occupied("shards of other inputs"));
    for shard in manifest.train.shards.iter().chain(&manifest.val.shards) {
        let size = std::fs::metadata(output.join(&shard.name)).map_or(0, |m| m.len());
        ensure!(
            size == 2 * shard.tokens,
            occupied(&format!("{} has another size than in {MANIFEST_FILE}", shard.name))
        );
    }
    Ok(Some(manifest))
}
