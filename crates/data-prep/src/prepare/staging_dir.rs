//! Staging directory: the hidden directory `.NAME.partial` next to the output.
//!
//! One process holds its lock. A later process can resume the work. When the output is complete,
//! the staging directory is renamed to it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::fs::{Durability, parent, sync_dir, write_atomic};
use crate::prepare::journal::{self, Commit};
use crate::prepare::spool::{self, SKIPPED_FILE};
use crate::shards::manifest::{MANIFEST_FILE, Manifest, PrepareSettings};
use crate::sources::SourceFile;

/// Settings and inputs, which together determine the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PrepareSpec {
    pub settings: PrepareSettings,
    /// Source files, in order.
    pub files: Vec<SourceFile>,
}

/// Journal of the first stage: one [`Commit`] per line.
pub(crate) const COMMITS_FILE: &str = "commits.jsonl";
/// Journal of the second stage: one finished shard per line.
pub(crate) const SHARDS_FILE: &str = "shards.jsonl";
/// The [`PrepareSpec`] of the preparation in progress.
const SPEC_FILE: &str = "plan.json";

/// Locked staging directory of an output.
pub(crate) struct StagingDir {
    pub dir: PathBuf,
    output: PathBuf,
    /// Lock on the directory itself. The kernel releases it when the process ends.
    _lock: File,
}

impl StagingDir {
    /// Creates or opens the staging directory of `output`, and locks it.
    ///
    /// # Errors
    /// Another process holds the lock, or the directory cannot be created.
    pub(crate) fn open(output: &Path) -> Result<Self> {
        let failed = || format!("cannot create the output directory {}", output.display());
        let name = output
            .file_name()
            .with_context(|| format!("the output {} has no name: use the path of a new directory", output.display()))?;
        let dir = output.with_file_name(format!(".{}.partial", name.to_string_lossy()));
        fs::create_dir_all(&dir).with_context(failed)?;
        let lock = File::open(&dir).with_context(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(StagingDir { dir, output: output.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => {
                bail!("another process is preparing {}: wait until it ends", output.display())
            }
            Err(TryLockError::Error(e)) => Err(e).with_context(failed),
        }
    }

    /// Returns the commit to resume from, with the hashes of all finished files, or `None` for a
    /// new preparation. The directory then contains `spec`.
    ///
    /// # Errors
    /// An incomplete preparation has other arguments or inputs, or a file has changed since it was
    /// read.
    pub(crate) fn resume_or_create(&self, spec: &PrepareSpec) -> Result<Option<Commit>> {
        let commit = match self.incomplete_spec()? {
            Some(before) if !spec.files.iter().any(SourceFile::is_standard_input) => self.resume(spec, &before)?,
            _ => None,
        };
        if commit.is_none() {
            self.clear()?;
        }
        let path = self.dir.join(SPEC_FILE);
        write_atomic(&path, serde_json::to_string(spec)?, Durability::Synced)
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(commit)
    }

    /// Returns the spec of an incomplete preparation, if there is one.
    fn incomplete_spec(&self) -> Result<Option<PrepareSpec>> {
        let path = self.dir.join(SPEC_FILE);
        match fs::read_to_string(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
            Ok(text) => serde_json::from_str(&text).map(Some).with_context(|| {
                format!("cannot parse {}: delete {} to start again", path.display(), self.dir.display())
            }),
        }
    }

    fn resume(&self, spec: &PrepareSpec, before: &PrepareSpec) -> Result<Option<Commit>> {
        let mismatch = |what: &str| {
            format!(
                "an incomplete preparation of {} has other arguments or inputs ({what}): use the same ones, or delete {} to start again",
                self.output.display(),
                self.dir.display()
            )
        };
        if let Some(difference) = spec.settings.difference(&before.settings)? {
            bail!(mismatch(&difference));
        }
        let paths = |spec: &PrepareSpec| spec.files.iter().map(|f| f.path.clone()).collect::<Vec<_>>();
        ensure!(
            paths(spec) == paths(before),
            mismatch(&format!("other inputs: {} files now, {} before", spec.files.len(), before.files.len()))
        );
        let mut commits: Vec<Commit> = journal::read(&self.dir.join(COMMITS_FILE));
        commits.retain(|commit| spool::contains(&self.dir, commit.position.spooled));
        let hashes = commits.iter().flat_map(|c| c.hashes.clone()).collect();
        let Some(last) = commits.last() else { return Ok(None) };
        let mut commit = Commit { position: last.position, file_start: last.file_start, hashes };
        let changed = spec.files.iter().zip(&before.files).position(|(now, then)| now != then);
        if let Some(changed) = changed.filter(|&file| file <= commit.position.file) {
            ensure!(
                changed == commit.position.file,
                mismatch(&format!("{} has changed since it was read", spec.files[changed].path.display()))
            );
            // The file that was being read may be repaired. It is read again from its start.
            commit.position = commit.file_start;
        }
        Ok(Some(commit))
    }

    /// Returns whether the directory contains work that can be resumed.
    pub(crate) fn has_progress(&self) -> bool {
        let commits: Vec<Commit> = journal::read(&self.dir.join(COMMITS_FILE));
        commits.last().is_some_and(|commit| commit.position.spooled.tokens > 0)
    }

    /// Deletes all files of the directory.
    fn clear(&self) -> Result<()> {
        let failed = || format!("cannot clear {}", self.dir.display());
        for entry in fs::read_dir(&self.dir).with_context(failed)? {
            fs::remove_file(entry.with_context(failed)?.path()).with_context(failed)?;
        }
        Ok(())
    }

    /// Completes a publication that was interrupted after the manifest was written.
    ///
    /// # Errors
    /// Files cannot be deleted or renamed.
    pub(crate) fn publish_if_complete(&self) -> Result<()> {
        if self.dir.join(MANIFEST_FILE).is_file() { self.publish_files() } else { Ok(()) }
    }

    /// Writes the manifest, deletes temporary files, and renames the directory to the output.
    ///
    /// # Errors
    /// The manifest cannot be written, or files cannot be deleted or renamed.
    pub(crate) fn publish(&self, manifest: &Manifest) -> Result<()> {
        let path = self.dir.join(MANIFEST_FILE);
        write_atomic(&path, serde_json::to_string_pretty(manifest)? + "\n", Durability::Synced)
            .with_context(|| format!("cannot write {}", path.display()))?;
        self.publish_files()
    }

    fn publish_files(&self) -> Result<()> {
        let publish = || -> std::io::Result<()> {
            // After this sync the manifest is on disk, and a killed process can repeat the rest.
            sync_dir(&self.dir)?;
            let skipped = self.dir.join(SKIPPED_FILE);
            let none_skipped = fs::metadata(&skipped).is_ok_and(|m| m.len() == 0).then_some(SKIPPED_FILE);
            let temporary = spool::TEMPORARY_FILES.into_iter().chain([COMMITS_FILE, SHARDS_FILE, SPEC_FILE]);
            for name in temporary.chain(none_skipped) {
                match fs::remove_file(self.dir.join(name)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            sync_dir(&self.dir)?;
            fs::rename(&self.dir, &self.output)?;
            sync_dir(&parent(&self.output))
        };
        publish().with_context(|| format!("cannot write {}", self.output.display()))
    }

    /// Deletes the directory. Ignores errors: the next preparation clears what remains.
    pub(crate) fn discard(&self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}
