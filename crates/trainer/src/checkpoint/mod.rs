//! Checkpoints: complete folders or none at all.
//!
//! A checkpoint is a model folder (`config.json`, `model.safetensors`) with the optimiser's
//! moments and `state.json` beside it, which holds the hash of every other file and of
//! itself. It is written under a name that starts with a dot, synced, and renamed.

pub(crate) mod async_writer;
pub(crate) mod manager;
pub(crate) mod retention;
pub(crate) mod snapshot;
pub(crate) mod state;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use data_prep::hash::sha256_file;
use model::{CONFIG_FILE, LanguageModel, WEIGHTS_FILE, read_tensors, write_model_dir, write_tensors};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::checkpoint::retention::{RetentionCandidate, RetentionPolicy, to_delete};
use crate::checkpoint::snapshot::HostSnapshot;
use crate::checkpoint::state::TrainState;

/// The `[checkpoint]` section. Defaults: the published run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 for the last step alone.
    pub every_steps: u64,
    /// Minutes without a checkpoint after which one is saved that goes with the next; 0 for never.
    pub every_minutes: u64,
    /// Newest checkpoints kept; at least 1.
    pub keep_last: usize,
    /// Checkpoints of lowest validation loss kept.
    pub keep_best: usize,
    /// Steps whose multiples are kept for good; 0 for none.
    pub keep_every: u64,
    /// A model folder whose weights a fresh run starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        CheckpointConfig {
            every_steps: 1_000,
            every_minutes: 30,
            keep_last: 2,
            keep_best: 3,
            keep_every: 50_000,
            init_from: None,
        }
    }
}

impl CheckpointConfig {
    /// # Errors
    /// Naming the key.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure!(
            self.keep_last > 0,
            "checkpoint.keep_last is 0: a run needs its last checkpoint to resume; use at least 1"
        );
        Ok(())
    }

    fn policy(&self) -> RetentionPolicy {
        RetentionPolicy { last: self.keep_last, best: self.keep_best, every: self.keep_every }
    }
}

const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";
const NAME_PREFIX: &str = "step-";
const ASIDE_PREFIX: &str = "aside-";
const REPLACED_SUFFIX: &str = ".replaced";

/// Whether a folder says that it is a checkpoint.
pub(crate) fn is_checkpoint(folder: &Path) -> bool {
    folder.join(STATE_FILE).is_file()
}

/// Where a folder's run stood, where it is a checkpoint.
///
/// # Errors
/// When its state is damaged.
pub fn read_state(folder: &Path) -> Result<Option<TrainState>> {
    is_checkpoint(folder).then(|| require_state(folder)).transpose()
}

fn require_state(folder: &Path) -> Result<TrainState> {
    let path = folder.join(STATE_FILE);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{} is not a checkpoint: it has no readable {STATE_FILE}", folder.display()))?;
    TrainState::from_json(&text).with_context(|| format!("{} is broken", path.display()))
}

fn verify_file(folder: &Path, state: &TrainState, name: &str) -> Result<()> {
    let path = folder.join(name);
    let want = state.files.get(name).with_context(|| format!("{STATE_FILE} has no hash of {name}"))?;
    let got = sha256_file(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    ensure!(
        got == *want,
        "{} is damaged: its SHA-256 is not the one in {STATE_FILE}; use another checkpoint",
        path.display()
    );
    Ok(())
}

/// Checks every file of a checkpoint against its hash.
///
/// # Errors
/// Naming the file that is missing or damaged.
pub(crate) fn verify(folder: &Path) -> Result<TrainState> {
    let state = require_state(folder)?;
    for name in [WEIGHTS_FILE, CONFIG_FILE, OPTIMIZER_FILE] {
        verify_file(folder, &state, name)?;
    }
    Ok(state)
}

/// Checks the files that a model is loaded from, where the folder is a checkpoint.
///
/// # Errors
/// Naming the file that is missing or damaged.
pub fn verify_model(folder: &Path) -> Result<()> {
    if is_checkpoint(folder) {
        let state = require_state(folder)?;
        for name in [WEIGHTS_FILE, CONFIG_FILE] {
            verify_file(folder, &state, name)?;
        }
    }
    Ok(())
}

/// The `checkpoints` folder of one run.
#[derive(Debug, Clone)]
pub(crate) struct CheckpointDir {
    folder: PathBuf,
    policy: RetentionPolicy,
}

/// A checkpoint that is complete.
#[derive(Debug)]
pub(crate) struct SaveReport {
    pub(crate) path: PathBuf,
    /// Why older ones could not be let go of.
    pub(crate) untidied: Option<anyhow::Error>,
}

impl CheckpointDir {
    pub(crate) fn new(run_dir: &Path, config: &CheckpointConfig) -> Self {
        CheckpointDir { folder: run_dir.join("checkpoints"), policy: config.policy() }
    }

    /// Where the checkpoint of a step stands.
    pub(crate) fn folder_of(&self, step: u64) -> PathBuf {
        self.folder.join(format!("{NAME_PREFIX}{step:08}"))
    }

    /// Steps and folders of the checkpoints, ascending, whether they verify or not.
    pub(crate) fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
            result => result.with_context(|| format!("{} cannot be read", self.folder.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("{} cannot be read", self.folder.display()))?;
            let step = entry.file_name().to_str().and_then(|n| n.strip_prefix(NAME_PREFIX)?.parse().ok());
            if let Some(step) = step {
                found.push((step, entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// The newest checkpoint that verifies; `passed_over` hears of those that do not.
    pub(crate) fn newest(
        &self,
        mut passed_over: impl FnMut(&Path, &anyhow::Error),
    ) -> Result<Option<(PathBuf, TrainState)>> {
        for (_, folder) in self.list()?.into_iter().rev() {
            match verify(&folder) {
                Ok(state) => return Ok(Some((folder, state))),
                Err(error) => passed_over(&folder, &error),
            }
        }
        Ok(None)
    }

    /// Removes what a killed process left half-written. Only the holder of the run
    /// folder's lock may call it.
    pub(crate) fn remove_partial(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(()) };
        for entry in entries.flatten() {
            if entry.file_name().to_string_lossy().starts_with('.') {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Puts back what a save was about to replace when it was killed. Only the holder of the run
    /// folder's lock may call it.
    ///
    /// # Errors
    /// When it cannot be renamed.
    pub(crate) fn restore_replaced(&self) -> Result<()> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(()) };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str().and_then(|n| n.strip_prefix('.')?.strip_suffix(REPLACED_SUFFIX)) else {
                continue;
            };
            let complete = self.folder.join(name);
            if !complete.exists() {
                let renamed = fs::rename(entry.path(), &complete);
                renamed.with_context(|| format!("{} cannot be renamed", entry.path().display()))?;
            }
        }
        Ok(())
    }

    /// Renames the checkpoints past the step that a run goes on from, and another one of that step than its folder (all,
    /// for `None`), so that no later resume takes them for its own. Gives their new names.
    ///
    /// # Errors
    /// When one cannot be renamed.
    pub(crate) fn set_aside(&self, from: Option<(u64, &Path)>) -> Result<Vec<PathBuf>> {
        let same = |a: &Path, b: &Path| a.canonicalize().ok().is_some_and(|a| Some(a) == b.canonicalize().ok());
        let mut moved = Vec::new();
        for (at, folder) in self.list()? {
            if from.is_some_and(|(step, from)| at < step || (at == step && same(&folder, from))) {
                continue;
            }
            let name = format!("{ASIDE_PREFIX}{NAME_PREFIX}{at:08}");
            let mut aside = self.folder.join(&name);
            if from.is_some_and(|(_, from)| same(&aside, from)) {
                aside = self.folder.join(name + "-again");
            }
            // Set aside twice: the newer one counts.
            if aside.exists() {
                remove(&aside)?;
            }
            fs::rename(&folder, &aside).with_context(|| format!("{} cannot be renamed", folder.display()))?;
            moved.push(aside);
        }
        Ok(moved)
    }

    /// Writes a checkpoint and then deletes those that the policy lets go.
    ///
    /// # Errors
    /// Naming the file that cannot be written; checkpoints from before are untouched.
    pub(crate) fn save(&self, snapshot: &HostSnapshot, mut state: TrainState) -> Result<SaveReport> {
        let complete = self.folder_of(state.step);
        let name = format!("{NAME_PREFIX}{:08}", state.step);
        let partial = self.folder.join(format!(".{name}"));
        let mut write = || -> Result<()> {
            if !self.folder.is_dir() {
                fs::create_dir_all(&self.folder)?;
                sync(self.folder.parent().unwrap_or(Path::new(".")))?;
            }
            if partial.exists() {
                remove(&partial)?;
            }
            fs::create_dir(&partial)?;
            write_model_dir(&snapshot.config, snapshot.weights(), &partial)?;
            write_tensors(&partial.join(OPTIMIZER_FILE), snapshot.moments())?;
            for name in [WEIGHTS_FILE, CONFIG_FILE, OPTIMIZER_FILE] {
                state.files.insert(name.to_owned(), sha256_file(&partial.join(name))?);
            }
            fs::write(partial.join(STATE_FILE), state.to_json()?)?;
            for name in [CONFIG_FILE, STATE_FILE] {
                sync(&partial.join(name))?;
            }
            sync(&partial)?;
            if !complete.exists() {
                fs::rename(&partial, &complete)?;
                return sync(&self.folder);
            }
            // The one that the run went on from, saved once more. Killed between the two, it is put back.
            let replaced = self.folder.join(format!(".{name}{REPLACED_SUFFIX}"));
            if replaced.exists() {
                remove(&replaced)?;
            }
            fs::rename(&complete, &replaced)?;
            fs::rename(&partial, &complete).inspect_err(|_| {
                let _ = fs::rename(&replaced, &complete);
            })?;
            sync(&self.folder)
        };
        if let Err(error) = write() {
            // Half a checkpoint only takes space, perhaps the space that was lacking.
            let _ = fs::remove_dir_all(&partial);
            return Err(error.context(format!(
                "the checkpoint {} cannot be written; those from before are untouched",
                complete.display()
            )));
        }
        let untidied = self.remove_partial().and_then(|()| self.retain()).err();
        Ok(SaveReport { path: complete, untidied })
    }

    fn retain(&self) -> Result<()> {
        let checkpoints = self.list()?;
        // One that cannot be read counts as unscored: only age can let it go.
        let candidates: Vec<RetentionCandidate> = checkpoints
            .iter()
            .map(|(step, folder)| {
                let state = require_state(folder).ok();
                let by_time = state.as_ref().is_some_and(|state| state.by_time);
                RetentionCandidate { step: *step, val_loss: state.and_then(|state| state.val_loss), by_time }
            })
            .collect();
        for step in to_delete(&candidates, self.policy) {
            for (_, folder) in checkpoints.iter().filter(|(s, _)| *s == step) {
                remove(folder)?;
            }
        }
        Ok(())
    }
}

/// Whatever stands there.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("{} cannot be removed", path.display()))
}

fn sync(path: &Path) -> Result<()> {
    Ok(File::open(path)?.sync_all()?)
}

/// Loads a verified checkpoint's model and moments.
///
/// # Errors
/// Naming the file or tensor that does not fit.
pub(crate) fn load(folder: &Path, device: tch::Device) -> Result<(LanguageModel, BTreeMap<String, Tensor>)> {
    let model = model::load_model(folder, device)?;
    let moments = read_tensors(&folder.join(OPTIMIZER_FILE))?;
    Ok((model, moments))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::optim::adamw::Optimizer;
    use model::ModelConfig;
    use tch::Device;

    fn state(step: u64, val_loss: Option<f64>) -> TrainState {
        TrainState { step, val_loss, ..TrainState::new(&Config::example(), None, 10).unwrap() }
    }

    fn tiny() -> HostSnapshot {
        let config = ModelConfig {
            n_embd: 8,
            n_head: 2,
            n_layer: 1,
            num_senses: 2,
            vocab_size: 11,
            n_positions: 4,
            ..ModelConfig::default()
        };
        let model = LanguageModel::initialize(config, 1, Device::Cpu).unwrap();
        let optimizer = Optimizer::new(crate::optim::adamw::OptimizerConfig::default(), &model);
        let mut snapshot = HostSnapshot::room_for(&model, &optimizer).unwrap();
        snapshot.take(&model, &optimizer).unwrap();
        snapshot
    }

    fn store(folder: &Path) -> CheckpointDir {
        CheckpointDir::new(
            folder,
            &CheckpointConfig { keep_last: 2, keep_best: 1, keep_every: 0, ..CheckpointConfig::default() },
        )
    }

    #[test]
    fn saving_retains_by_policy_and_the_newest_that_verifies_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = tiny();
        let store = store(folder.path());
        for (step, loss) in [(10, 2.0), (20, 3.0), (30, 4.0), (40, 5.0)] {
            store.save(&snapshot, state(step, Some(loss))).unwrap();
        }
        let steps: Vec<u64> = store.list().unwrap().iter().map(|(s, _)| *s).collect();
        assert_eq!(steps, [10, 30, 40]);
        let weights = folder.path().join("checkpoints/step-00000040/model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&weights, bytes).unwrap();
        let mut passed = Vec::new();
        let (_, found) = store.newest(|_, error| passed.push(error.to_string())).unwrap().unwrap();
        assert_eq!(found.step, 30);
        assert!(passed.len() == 1 && passed[0].contains("model.safetensors is damaged"), "{passed:?}");
    }

    #[test]
    fn what_a_killed_save_left_is_removed_and_a_failed_one_harms_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let snapshot = tiny();
        let store = store(folder.path());
        store.save(&snapshot, state(10, None)).unwrap();
        fs::create_dir(folder.path().join("checkpoints/.step-00000020")).unwrap();
        fs::write(folder.path().join("checkpoints/.step-00000030"), "a file").unwrap();
        store.remove_partial().unwrap();
        assert_eq!(fs::read_dir(folder.path().join("checkpoints")).unwrap().count(), 1);
        // A file where the store wants its folder: nothing can be written there.
        let blocked = CheckpointDir {
            folder: folder.path().join("checkpoints/step-00000010/state.json/x"),
            policy: store.policy,
        };
        assert!(blocked.save(&snapshot, state(20, None)).is_err());
        verify(&folder.path().join("checkpoints/step-00000010")).unwrap();
    }

    #[test]
    fn one_that_was_to_be_replaced_when_its_save_was_killed_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let (snapshot, store) = (tiny(), store(folder.path()));
        let path = store.save(&snapshot, state(10, Some(2.0))).unwrap().path;
        store.save(&snapshot, state(10, Some(3.0))).unwrap();
        assert_eq!(verify(&path).unwrap().val_loss, Some(3.0));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // As a kill between its two renames leaves it.
        fs::rename(&path, path.with_file_name(".step-00000010.replaced")).unwrap();
        fs::create_dir(path.with_file_name(".step-00000010")).unwrap();
        store.restore_replaced().unwrap();
        store.remove_partial().unwrap();
        assert_eq!(verify(&path).unwrap().val_loss, Some(3.0));
    }

    #[test]
    fn what_a_run_did_not_come_by_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let (snapshot, store) = (tiny(), store(folder.path()));
        let store = CheckpointDir { policy: RetentionPolicy { last: 9, ..store.policy }, ..store };
        let save = |step| store.save(&snapshot, state(step, None)).unwrap().path;
        let [first, second, third] = [10, 20, 30].map(save);
        let steps = || store.list().unwrap().iter().map(|(step, _)| *step).collect::<Vec<u64>>();
        let moved = store.set_aside(Some((20, &second))).unwrap();
        assert_eq!((steps(), &moved), (vec![10, 20], &vec![third.with_file_name("aside-step-00000030")]));
        // Going on from the one set aside, its step taken by another since then.
        save(30);
        let again = store.set_aside(Some((30, &moved[0]))).unwrap();
        assert_eq!((steps(), again), (vec![10, 20], vec![third.with_file_name("aside-step-00000030-again")]));
        verify(&moved[0]).unwrap();
        assert_eq!(store.set_aside(None).unwrap().len(), 2);
        assert!(steps().is_empty() && !first.exists());
    }

    #[test]
    fn the_same_weights_give_the_same_bytes() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let snapshot = tiny();
        let save = |folder: &Path, step| store(folder).save(&snapshot, state(step, None)).unwrap().path;
        let (a, b) = (save(a.path(), 1), save(b.path(), 2));
        assert_eq!(fs::read(a.join(WEIGHTS_FILE)).unwrap(), fs::read(b.join(WEIGHTS_FILE)).unwrap());
    }
}
