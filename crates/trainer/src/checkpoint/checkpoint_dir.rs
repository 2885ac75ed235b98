//! The directory that holds the checkpoints of a run.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use data_prep::fs::{parent, sync_dir};
use data_prep::hash::sha256_file;
use model::{CONFIG_FILE, WEIGHTS_FILE, write_model_dir, write_tensors};

use crate::checkpoint::config::CheckpointConfig;
use crate::checkpoint::retention::{RetentionCandidate, RetentionPolicy, to_delete};
use crate::checkpoint::snapshot::HostSnapshot;
use crate::checkpoint::state::TrainState;
use crate::checkpoint::{OPTIMIZER_FILE, STATE_FILE, require_state, verify};

const NAME_PREFIX: &str = "step-";
const ARCHIVED_PREFIX: &str = "aside-";
const REPLACED_SUFFIX: &str = ".replaced";

/// The `checkpoints` directory of a run.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointDir {
    pub(super) path: PathBuf,
    pub(super) policy: RetentionPolicy,
}

/// The result of saving a checkpoint.
#[derive(Debug)]
pub(crate) struct SaveReport {
    /// The complete checkpoint.
    pub(crate) path: PathBuf,
    /// Why older checkpoints could not be deleted.
    pub(crate) cleanup_error: Option<anyhow::Error>,
}

impl CheckpointDir {
    /// Returns the directory of a run's checkpoints. It need not exist.
    pub(crate) fn new(run_dir: &Path, config: &CheckpointConfig) -> Self {
        CheckpointDir { path: run_dir.join("checkpoints"), policy: config.policy() }
    }

    /// Returns the path of the checkpoint of a step.
    pub(crate) fn path_of(&self, step: u64) -> PathBuf {
        self.path.join(name_of(step))
    }

    /// Returns steps and paths of the checkpoints, ascending by step, without verifying them.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut checkpoints = Vec::new();
        let entries = match fs::read_dir(&self.path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(checkpoints),
            result => result.with_context(|| format!("{} cannot be read", self.path.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("{} cannot be read", self.path.display()))?;
            let step = entry.file_name().to_str().and_then(|n| n.strip_prefix(NAME_PREFIX)?.parse().ok());
            if let Some(step) = step {
                checkpoints.push((step, entry.path()));
            }
        }
        checkpoints.sort();
        Ok(checkpoints)
    }

    /// Returns the newest checkpoint that verifies. Calls `on_invalid` for each newer one, which
    /// does not verify.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn newest(
        &self,
        mut on_invalid: impl FnMut(&Path, &anyhow::Error),
    ) -> Result<Option<(PathBuf, TrainState)>> {
        for (_, path) in self.list()?.into_iter().rev() {
            match verify(&path) {
                Ok(state) => return Ok(Some((path, state))),
                Err(error) => on_invalid(&path, &error),
            }
        }
        Ok(None)
    }

    /// Deletes incomplete checkpoints of a killed process. Only the holder of the run directory's
    /// lock may call it.
    ///
    /// # Errors
    /// Returns an error if a checkpoint cannot be deleted.
    pub(crate) fn delete_partial(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Ok(()) };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                delete(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Restores a checkpoint that a save was replacing when its process was killed. Only the holder
    /// of the run directory's lock may call it.
    ///
    /// # Errors
    /// The checkpoint cannot be renamed.
    pub(crate) fn recover_replaced(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.path) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(REPLACED_SUFFIX)) else {
                continue;
            };
            let complete = self.path.join(name);
            if !complete.exists() {
                rename(&entry.path(), &complete)?;
            }
        }
        Ok(())
    }

    /// Renames the checkpoints that do not belong to a run that resumes at `from` (a step and the
    /// path of its checkpoint), so that no later resume uses them: those of later steps, and one of
    /// the same step under another path. Renames all for `None`. Returns the new paths.
    ///
    /// # Errors
    /// Returns an error if a checkpoint cannot be renamed.
    pub(crate) fn archive(&self, from: Option<(u64, &Path)>) -> Result<Vec<PathBuf>> {
        let same = |a: &Path, b: &Path| a.canonicalize().ok().is_some_and(|a| Some(a) == b.canonicalize().ok());
        let mut archived = Vec::new();
        for (step, path) in self.list()? {
            if from.is_some_and(|(at, from)| step < at || (step == at && same(&path, from))) {
                continue;
            }
            let name = format!("{ARCHIVED_PREFIX}{}", name_of(step));
            let mut archive = self.path.join(&name);
            if from.is_some_and(|(_, from)| same(&archive, from)) {
                archive = self.path.join(name + "-again");
            }
            // Only the newest archived checkpoint of a step is kept.
            if archive.exists() {
                delete(&archive)?;
            }
            rename(&path, &archive)?;
            archived.push(archive);
        }
        Ok(archived)
    }

    /// Writes a checkpoint and then deletes those that the retention policy does not keep.
    ///
    /// # Errors
    /// The checkpoint cannot be written. Older checkpoints are unchanged.
    pub(crate) fn save(&self, snapshot: &HostSnapshot, mut state: TrainState) -> Result<SaveReport> {
        let complete = self.path_of(state.step);
        let partial = self.path.join(format!(".{}", name_of(state.step)));
        let mut write = || -> Result<()> {
            if !self.path.is_dir() {
                fs::create_dir_all(&self.path)?;
                sync_dir(&parent(&self.path))?;
            }
            if partial.exists() {
                delete(&partial)?;
            }
            fs::create_dir(&partial)?;
            write_model_dir(&snapshot.config, snapshot.weights(), &partial)?;
            write_tensors(&partial.join(OPTIMIZER_FILE), snapshot.moments())?;
            for name in [WEIGHTS_FILE, CONFIG_FILE, OPTIMIZER_FILE] {
                state.files.insert(name.to_owned(), sha256_file(&partial.join(name))?);
            }
            fs::write(partial.join(STATE_FILE), state.to_json()?)?;
            for name in [CONFIG_FILE, STATE_FILE] {
                fs::File::open(partial.join(name))?.sync_all()?;
            }
            sync_dir(&partial)?;
            self.move_into_place(&partial, &complete)
        };
        if let Err(error) = write() {
            // An incomplete checkpoint only takes space, which may be what is missing.
            let _ = fs::remove_dir_all(&partial);
            return Err(error.context(format!(
                "the checkpoint {} cannot be written; older checkpoints are unchanged",
                complete.display()
            )));
        }
        let cleanup_error = self.delete_partial().and_then(|()| self.apply_retention()).err();
        Ok(SaveReport { path: complete, cleanup_error })
    }

    /// Renames a complete checkpoint to its final name. A checkpoint of the same step, from which
    /// the run resumed, is replaced; [`CheckpointDir::recover_replaced`] restores it if the process
    /// is killed between the two renames.
    fn move_into_place(&self, partial: &Path, complete: &Path) -> Result<()> {
        if !complete.exists() {
            fs::rename(partial, complete)?;
            return Ok(sync_dir(&self.path)?);
        }
        let mut replaced = partial.to_owned().into_os_string();
        replaced.push(REPLACED_SUFFIX);
        let replaced = PathBuf::from(replaced);
        if replaced.exists() {
            delete(&replaced)?;
        }
        fs::rename(complete, &replaced)?;
        fs::rename(partial, complete).inspect_err(|_| {
            let _ = fs::rename(&replaced, complete);
        })?;
        Ok(sync_dir(&self.path)?)
    }

    fn apply_retention(&self) -> Result<()> {
        let checkpoints = self.list()?;
        // A checkpoint whose state cannot be read has no score, so only its age counts.
        let candidates: Vec<RetentionCandidate> = checkpoints
            .iter()
            .map(|(step, path)| {
                let state = require_state(path).ok();
                let by_time = state.as_ref().is_some_and(|state| state.by_time);
                RetentionCandidate { step: *step, val_loss: state.and_then(|state| state.val_loss), by_time }
            })
            .collect();
        for step in to_delete(&candidates, self.policy) {
            for (_, path) in checkpoints.iter().filter(|(s, _)| *s == step) {
                delete(path)?;
            }
        }
        Ok(())
    }
}

fn name_of(step: u64) -> String {
    format!("{NAME_PREFIX}{step:08}")
}

/// Deletes a file or directory.
fn delete(path: &Path) -> Result<()> {
    let deleted = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    deleted.with_context(|| format!("{} cannot be deleted", path.display()))
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).with_context(|| format!("{} cannot be renamed", from.display()))
}
