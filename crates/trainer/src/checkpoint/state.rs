//! `state.json`: the progress of a run, and whether a configuration can resume it.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use data_prep::hash::hex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::optim::step_guard::StepGuardState;

/// The progress of a run, as stored in `state.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainState {
    /// Version of the layout of this file.
    pub format_version: u32,
    /// Steps done.
    pub step: u64,
    /// Training sequences consumed. The position in the data follows from this number alone.
    pub sequences: u64,
    /// Training tokens consumed.
    pub tokens: u64,
    /// Validation loss at this step, if there was a validation.
    pub val_loss: Option<f64>,
    /// Lowest validation loss so far.
    pub best_val_loss: Option<f64>,
    /// The step of `best_val_loss`.
    pub best_step: Option<u64>,
    /// Whether the checkpoint was saved because time had passed and not because its step was due. It
    /// is deleted once the next one is complete.
    #[serde(default)]
    pub by_time: bool,
    /// Skipped steps, the loss scale and the window of recent losses.
    #[serde(rename = "stability", default)]
    pub step_guard: StepGuardState,
    /// SHA-256 of the resolved configuration as TOML.
    pub config_sha256: String,
    /// SHA-256 of the data's manifest; `None` for data without one.
    pub manifest_sha256: Option<String>,
    /// Tokens of the training split. It identifies data without a manifest.
    pub train_tokens: u64,
    /// World size.
    pub world_size: u64,
    /// Versions of this program and of libtorch.
    pub versions: BTreeMap<String, String>,
    /// The resolved configuration.
    pub config: Value,
    /// SHA-256 of every other file of the checkpoint.
    pub files: BTreeMap<String, String>,
    /// SHA-256 of this file with an empty string in place of this value.
    pub checksum: String,
}

/// The layout of [`TrainState`] that this program writes and reads.
const FORMAT_VERSION: u32 = 1;

impl TrainState {
    /// Returns the state of a new run on one rank with this resolved configuration, given as TOML and
    /// as JSON.
    ///
    /// # Errors
    /// The version of libtorch cannot be read.
    pub(crate) fn new(
        config_toml: &str,
        config: Value,
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
            config_sha256: hex(&Sha256::digest(config_toml)),
            manifest_sha256,
            train_tokens,
            world_size: 1,
            versions: BTreeMap::from([
                ("backpack".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("libtorch".to_owned(), torch_ext::build_info()?.version),
            ]),
            config,
            files: BTreeMap::new(),
            checksum: String::new(),
        })
    }

    /// Returns the number of steps that changed the weights.
    pub(crate) fn updates(&self) -> u64 {
        self.step.saturating_sub(self.step_guard.skipped)
    }

    /// Returns the state before the last `steps` steps, all of which were skipped, so that the weights
    /// are unchanged since then.
    pub(crate) fn before(&self, steps: u64, batch_tokens: u64, batch_sequences: u64) -> Self {
        let mut before = self.clone();
        before.step -= steps;
        before.sequences -= steps * batch_sequences;
        before.tokens -= steps * batch_tokens;
        (before.val_loss, before.by_time) = (None, false);
        before.step_guard = before.step_guard.before_streak();
        before
    }

    /// Returns the content of `state.json`, with its checksum.
    ///
    /// # Errors
    /// The state cannot be serialized.
    pub(crate) fn to_json(&self) -> Result<String> {
        let unsigned = TrainState { checksum: String::new(), ..self.clone() };
        let text = serde_json::to_string_pretty(&unsigned)? + "\n";
        let checksum = hex(&Sha256::digest(&text));
        Ok(text.replace("\"checksum\": \"\"", &format!("\"checksum\": \"{checksum}\"")))
    }

    /// Parses the content of `state.json` and checks its checksum.
    ///
    /// # Errors
    /// The text is invalid, was changed, or has another format version.
    pub(crate) fn from_json(text: &str) -> Result<Self> {
        let state: TrainState = serde_json::from_str(text)?;
        let unsigned = text.replace(&format!("\"checksum\": \"{}\"", state.checksum), "\"checksum\": \"\"");
        ensure!(
            hex(&Sha256::digest(&unsigned)) == state.checksum,
            "its checksum does not match: the file was changed or damaged"
        );
        ensure!(
            state.format_version == FORMAT_VERSION,
            "its format version is {}, but this program reads version {FORMAT_VERSION}",
            state.format_version
        );
        Ok(state)
    }
}

/// Checks that a run with the configuration and data of `current` can resume from `saved`: the
/// data, its order and the model's shape must be unchanged. Returns a description of each other key
/// that has changed.
///
/// # Errors
/// A value that must not change has changed. The message gives its key and both values.
pub(crate) fn check_resumable(saved: &TrainState, current: &TrainState) -> Result<Vec<String>> {
    if saved.manifest_sha256 != current.manifest_sha256 {
        bail!(
            "the data differs from the checkpoint's: the SHA-256 of its manifest has changed; start a new run with checkpoint.init_from to train on other data"
        );
    }
    ensure!(
        saved.train_tokens == current.train_tokens,
        "the data differs from the checkpoint's: its training split has {} tokens and had {}; start a new run with checkpoint.init_from to train on other data",
        current.train_tokens,
        saved.train_tokens
    );
    let mut changes = Vec::new();
    let empty = serde_json::Map::new();
    let sections = current.config.as_object().unwrap_or(&empty);
    for (section, values) in sections {
        for (key, value) in values.as_object().unwrap_or(&empty) {
            let before = saved.config.get(section).and_then(|s| s.get(key)).unwrap_or(&Value::Null);
            if before != value {
                changes.push((format!("{section}.{key}"), before.clone(), value.clone()));
            }
        }
    }
    const FIXED: [&str; 4] = ["run.seed", "data.sequence_length", "data.order", "batch.tokens_per_step"];
    for (key, before, value) in &changes {
        let shape = key.starts_with("model.") && key != "model.dropout";
        let is_fixed = shape || FIXED.contains(&key.as_str());
        if !is_fixed {
            continue;
        }
        ensure!(
            !before.is_null(),
            "{key} is {value}, but the checkpoint has no value for it: start a new run with checkpoint.init_from, or remove the key if it has no default"
        );
        bail!(
            "{key} is {value}, but the checkpoint was saved with {before}: keep {before}, or start a new run with checkpoint.init_from"
        );
    }
    Ok(changes.iter().map(|(key, before, value)| format!("{key} {before} -> {value}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn state(config: &Config, manifest: Option<&str>, train_tokens: u64) -> TrainState {
        let json = serde_json::to_value(config).unwrap();
        TrainState::new("", json, manifest.map(str::to_owned), train_tokens).unwrap()
    }

    #[test]
    fn a_changed_state_is_detected() {
        let saved = TrainState { step: 7, val_loss: Some(3.25), ..state(&Config::example(), None, 10) };
        let text = saved.to_json().unwrap();
        assert_eq!(TrainState::from_json(&text).unwrap().step, 7);
        let changed = text.replace("\"step\": 7", "\"step\": 8");
        assert!(TrainState::from_json(&changed).unwrap_err().to_string().contains("checksum"));
    }

    /// The names in the file do not follow the names in the code.
    #[test]
    fn the_keys_of_the_file_are_fixed() {
        let mut step_guard = StepGuardState::default();
        step_guard.stats.scale_search_skips = 3;
        step_guard.stats_before_streak = Some(step_guard.stats.clone());
        let saved = TrainState { step_guard, ..state(&Config::example(), None, 10) };
        let json: Value = serde_json::from_str(&saved.to_json().unwrap()).unwrap();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(
            keys(&json),
            "best_step best_val_loss by_time checksum config config_sha256 files format_version manifest_sha256 sequences stability step tokens train_tokens val_loss versions world_size"
        );
        let guard = &json["stability"];
        assert_eq!(keys(guard), "bad_in_row before_row losses searched since_update skipped spikes");
        assert_eq!(keys(&guard["before_row"]), "losses searched spikes");
    }

    #[test]
    fn changed_data_and_fixed_keys_are_errors() {
        let mut config = Config::example();
        let saved = state(&config, None, 10);
        let error = |current: &TrainState| check_resumable(&saved, current).unwrap_err().to_string();
        config.optimizer.weight_decay = 0.2;
        let changes = check_resumable(&saved, &state(&config, None, 10)).unwrap();
        assert_eq!(changes, ["optimizer.weight_decay 0.1 -> 0.2"]);
        config.run.seed = 3;
        let message = error(&state(&config, None, 10));
        assert!(message.starts_with("run.seed is 3, but the checkpoint was saved with 1111"), "{message}");
        let mut config = Config::example();
        config.batch.tokens_per_step *= 2;
        let message = error(&state(&config, None, 10));
        assert!(
            message.starts_with("batch.tokens_per_step is 1048576, but the checkpoint was saved with 524288"),
            "{message}"
        );
        let config = Config::example();
        assert!(error(&state(&config, Some("00"), 10)).contains("data differs from the checkpoint's"));
        assert!(error(&state(&config, None, 11)).contains("has 11 tokens and had 10"));
        let mut older = saved.clone();
        older.config["batch"].as_object_mut().unwrap().remove("tokens_per_step");
        let message = check_resumable(&older, &saved).unwrap_err().to_string();
        assert!(
            message.starts_with("batch.tokens_per_step is 524288, but the checkpoint has no value for it"),
            "{message}"
        );
    }
}
