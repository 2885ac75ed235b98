//! `state.json`: where a run stands, and whether another call may go on from there.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use data_prep::hash::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::optim::step_guard::StepGuardState;

/// `state.json`: where a run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Of this file's layout.
    pub format_version: u32,
    /// Optimiser steps done.
    pub step: u64,
    /// Training sequences consumed: the whole state of the data order.
    pub sequences: u64,
    /// Training tokens seen.
    pub tokens: u64,
    /// Validation loss at this step, where there was a validation.
    pub val_loss: Option<f64>,
    /// Lowest validation loss so far.
    pub best_val_loss: Option<f64>,
    /// The step it was at.
    pub best_step: Option<u64>,
    /// Saved because time had passed, not because its step was due: it goes with the next.
    #[serde(default)]
    pub by_time: bool,
    /// Steps skipped, the loss scale, and what spikes are told from.
    #[serde(default)]
    pub step_guard: StepGuardState,
    /// Of the resolved configuration as TOML.
    pub config_sha256: String,
    /// Of the data's manifest; absent where the data has none.
    pub manifest_sha256: Option<String>,
    /// Tokens of the training split: what is known of data without a manifest.
    pub train_tokens: u64,
    /// Processes of the run.
    pub world_size: u64,
    /// Of this program and of libtorch.
    pub versions: BTreeMap<String, String>,
    /// The resolved configuration.
    pub config: serde_json::Value,
    /// SHA-256 of every other file in the folder.
    pub files: BTreeMap<String, String>,
    /// SHA-256 of this file with this value empty.
    pub checksum: String,
}

/// Layout of [`TrainState`].
const FORMAT_VERSION: u32 = 1;

impl TrainState {
    /// A new state at this version, before any file is written.
    pub(crate) fn new(
        config: &crate::config::Config,
        manifest_sha256: Option<String>,
        train_tokens: u64,
    ) -> Result<Self> {
        Ok(TrainState {
            format_version: FORMAT_VERSION,
            step: 0,
            sequences: 0,
            tokens: 0,
            val_loss: None,
            best_val_loss: None,
            best_step: None,
            by_time: false,
            step_guard: StepGuardState::default(),
            config_sha256: hex(&Sha256::digest(config.to_toml()?)),
            manifest_sha256,
            train_tokens,
            world_size: 1,
            versions: BTreeMap::from([
                ("backpack".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("libtorch".to_owned(), torch_ext::describe()?.version),
            ]),
            config: serde_json::to_value(config)?,
            files: BTreeMap::new(),
            checksum: String::new(),
        })
    }

    /// Optimiser steps that changed the weights.
    pub(crate) fn updates(&self) -> u64 {
        self.step.saturating_sub(self.step_guard.skipped)
    }

    /// Where the run stood before its last `steps` steps, all of which were skipped: the weights
    /// are those of then.
    pub(crate) fn before(&self, steps: u64, batch_tokens: u64, batch_sequences: u64) -> Self {
        let mut before = self.clone();
        before.step -= steps;
        before.sequences -= steps * batch_sequences;
        before.tokens -= steps * batch_tokens;
        (before.val_loss, before.by_time) = (None, false);
        before.step_guard = before.step_guard.before_streak();
        before
    }

    pub(crate) fn to_json(&self) -> Result<String> {
        let unsigned = TrainState { checksum: String::new(), ..self.clone() };
        let text = serde_json::to_string_pretty(&unsigned)? + "\n";
        let checksum = hex(&Sha256::digest(&text));
        Ok(text.replace("\"checksum\": \"\"", &format!("\"checksum\": \"{checksum}\"")))
    }

    pub(crate) fn from_json(text: &str) -> Result<Self> {
        let state: TrainState = serde_json::from_str(text)?;
        let unsigned = text.replace(&format!("\"checksum\": \"{}\"", state.checksum), "\"checksum\": \"\"");
        ensure!(
            hex(&Sha256::digest(&unsigned)) == state.checksum,
            "its checksum does not match: it was changed or damaged"
        );
        ensure!(
            state.format_version == FORMAT_VERSION,
            "its format version is {}, this program reads {FORMAT_VERSION}",
            state.format_version
        );
        Ok(state)
    }
}

/// Refuses to go on with a run of another kind: what decides its data order and its
/// network must be as it was. Gives the keys that differ and may.
///
/// # Errors
/// Naming the key, with both values.
pub(crate) fn compare(state: &TrainState, now: &TrainState) -> Result<Vec<String>> {
    if state.manifest_sha256 != now.manifest_sha256 {
        bail!(
            "the data is not the checkpoint's: the SHA-256 of its manifest differs; start a new run with checkpoint.init_from to train on other data"
        );
    }
    ensure!(
        state.train_tokens == now.train_tokens,
        "the data is not the checkpoint's: its training split has {} tokens and had {}; start a new run with checkpoint.init_from to train on other data",
        now.train_tokens,
        state.train_tokens
    );
    let mut differing = Vec::new();
    let empty = serde_json::Map::new();
    let sections = now.config.as_object().unwrap_or(&empty);
    for (section, values) in sections {
        for (key, value) in values.as_object().unwrap_or(&empty) {
            let before = state.config.get(section).and_then(|s| s.get(key)).unwrap_or(&serde_json::Value::Null);
            if before != value {
                differing.push((format!("{section}.{key}"), before.clone(), value.clone()));
            }
        }
    }
    const FIXED: [&str; 4] = ["run.seed", "data.sequence_length", "data.order", "batch.tokens_per_step"];
    for (key, before, value) in &differing {
        let shape = key.starts_with("model.") && key != "model.dropout";
        ensure!(
            !shape && !FIXED.contains(&key.as_str()),
            "{key} is {value}, but the checkpoint was made with {before}: a resumed run keeps it; start a new run with checkpoint.init_from to change it"
        );
    }
    Ok(differing.iter().map(|(key, before, value)| format!("{key} {before} -> {value}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn state(step: u64, val_loss: Option<f64>) -> TrainState {
        TrainState { step, val_loss, ..TrainState::new(&Config::example(), None, 10).unwrap() }
    }

    #[test]
    fn a_state_detects_any_change_of_itself() {
        let text = state(7, Some(3.25)).to_json().unwrap();
        assert_eq!(TrainState::from_json(&text).unwrap().step, 7);
        let changed = text.replace("\"step\": 7", "\"step\": 8");
        assert!(TrainState::from_json(&changed).unwrap_err().to_string().contains("checksum"));
    }

    #[test]
    fn what_decides_the_data_order_may_not_change() {
        let saved = state(5, None);
        let mut config = Config::example();
        config.optimizer.weight_decay = 0.2;
        let now = TrainState::new(&config, None, 10).unwrap();
        assert_eq!(compare(&saved, &now).unwrap(), ["optimizer.weight_decay 0.1 -> 0.2"]);
        config.run.seed = 3;
        let error = compare(&saved, &TrainState::new(&config, None, 10).unwrap()).unwrap_err().to_string();
        assert!(error.starts_with("run.seed is 3, but the checkpoint was made with 1111"), "{error}");
        let other_data = TrainState::new(&Config::example(), Some("00".into()), 10).unwrap();
        assert!(compare(&saved, &other_data).unwrap_err().to_string().contains("data is not the checkpoint's"));
        let other_data = TrainState::new(&Config::example(), None, 11).unwrap();
        assert!(compare(&saved, &other_data).unwrap_err().to_string().contains("has 11 tokens and had 10"));
    }
}
