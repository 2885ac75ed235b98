//! A model on disk: a folder with `config.json` and `model.safetensors`, whether Hugging
//! Face's or a training checkpoint's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};

use crate::config::ModelConfig;
use crate::language_model::LanguageModel;
use crate::safetensors::{read_tensors, write_tensors};

/// The shapes.
pub const CONFIG_FILE: &str = "config.json";
/// The weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The shape of a folder's model.
///
/// # Errors
/// Naming the folder, the file, or the key that is missing or wrong.
pub fn load_config(folder: &Path) -> Result<ModelConfig> {
    ensure!(folder.is_dir(), "{} is not a folder: a model folder or a training checkpoint is wanted", folder.display());
    let path = folder.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).with_context(|| {
        format!("{} cannot be read: a model folder holds {CONFIG_FILE} and {WEIGHTS_FILE}", path.display())
    })?;
    ModelConfig::from_hugging_face(&text).with_context(|| format!("{} is not usable", path.display()))
}

/// Loads a model; its `config.json` decides the shapes.
///
/// # Errors
/// Naming the folder, file, and key or tensor that is missing or wrong.
pub fn load_folder(folder: &Path, device: Device) -> Result<LanguageModel> {
    let config = load_config(folder)?;
    let path = folder.join(WEIGHTS_FILE);
    let tensors = read_tensors(&path)?;
    LanguageModel::from_tensors(config, tensors, device)
        .with_context(|| format!("{} does not fit its {CONFIG_FILE}", path.display()))
}

/// Writes `config.json` and `model.safetensors`, edits of senses included, into an existing folder.
///
/// # Errors
/// Naming the file that cannot be written.
pub fn save_folder(model: &LanguageModel, folder: &Path) -> Result<()> {
    let edited = model.edited_tensors();
    let edited = edited.iter().map(|(name, tensor)| (*name, tensor));
    write_folder(model.config(), model.parameters().iter().chain(edited), folder)
}

/// [`save_folder`] for weights that are no model's any more: a copy of them.
///
/// # Errors
/// Naming the file that cannot be written.
pub fn write_folder<'a>(
    config: &ModelConfig,
    weights: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    folder: &Path,
) -> Result<()> {
    let path = folder.join(CONFIG_FILE);
    let text = serde_json::to_string_pretty(&config.to_hugging_face())? + "\n";
    fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    write_tensors(&folder.join(WEIGHTS_FILE), weights)
}
