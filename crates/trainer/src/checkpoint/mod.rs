//! Checkpoints: their files, which of them are kept, and saving them while training continues.
//!
//! A checkpoint is a model directory (`config.json`, `model.safetensors`) that also holds the
//! optimizer's moments and `state.json`, which contains the hash of every other file and of itself.
//! It is written under a name that starts with a dot, synced, and renamed, so a checkpoint is either
//! complete or absent.

pub(crate) mod async_writer;
pub(crate) mod checkpoint_dir;
pub(crate) mod config;
pub(crate) mod manager;
pub(crate) mod retention;
pub(crate) mod snapshot;
pub(crate) mod state;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use data_prep::hash::sha256_file;
use model::{CONFIG_FILE, LanguageModel, WEIGHTS_FILE, read_tensors};
use tch::{Device, Tensor};

use crate::checkpoint::state::TrainState;

/// The name of the training state in a checkpoint.
const STATE_FILE: &str = "state.json";
/// The name of the optimizer's moments in a checkpoint.
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Returns whether a directory is a checkpoint, not only a model.
fn is_checkpoint(path: &Path) -> bool {
    path.join(STATE_FILE).is_file()
}

/// Reads the training state of a checkpoint. Returns `None` for a directory that is only a model.
///
/// # Errors
/// The state is damaged.
pub fn read_state(path: &Path) -> Result<Option<TrainState>> {
    is_checkpoint(path).then(|| require_state(path)).transpose()
}

/// Reads the training state of a checkpoint.
fn require_state(checkpoint: &Path) -> Result<TrainState> {
    let path = checkpoint.join(STATE_FILE);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{} is not a checkpoint: it has no readable {STATE_FILE}", checkpoint.display()))?;
    TrainState::from_json(&text).with_context(|| format!("{} is invalid", path.display()))
}

fn verify_file(checkpoint: &Path, state: &TrainState, name: &str) -> Result<()> {
    let path = checkpoint.join(name);
    let expected = state.files.get(name).with_context(|| format!("{STATE_FILE} has no hash of {name}"))?;
    let actual = sha256_file(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    ensure!(
        actual == *expected,
        "{} is damaged: its SHA-256 differs from the one in {STATE_FILE}; use another checkpoint",
        path.display()
    );
    Ok(())
}

/// Checks every file of a checkpoint against its hash and returns the training state.
///
/// # Errors
/// A file is missing or damaged; the message names it.
pub(crate) fn verify(checkpoint: &Path) -> Result<TrainState> {
    let state = require_state(checkpoint)?;
    for name in [WEIGHTS_FILE, CONFIG_FILE, OPTIMIZER_FILE] {
        verify_file(checkpoint, &state, name)?;
    }
    Ok(state)
}

/// Checks the model's files against their hashes if the directory is a checkpoint. A directory that
/// is only a model has no hashes.
///
/// # Errors
/// A file is missing or damaged; the message names it.
pub fn verify_model(path: &Path) -> Result<()> {
    if is_checkpoint(path) {
        let state = require_state(path)?;
        for name in [WEIGHTS_FILE, CONFIG_FILE] {
            verify_file(path, &state, name)?;
        }
    }
    Ok(())
}

/// Loads the model of a checkpoint on `device`, and the optimizer's moments on the CPU.
///
/// # Errors
/// A file cannot be read or a tensor does not fit; the message names it.
pub(crate) fn load(checkpoint: &Path, device: Device) -> Result<(LanguageModel, BTreeMap<String, Tensor>)> {
    let model = model::load_model(checkpoint, device)?;
    let moments = read_tensors(&checkpoint.join(OPTIMIZER_FILE))?;
    Ok((model, moments))
}

#[cfg(test)]
mod tests;
