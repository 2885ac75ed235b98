//! Model directories: `config.json` and `model.safetensors`. A Hugging Face directory and a
//! training checkpoint both are one.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};

use crate::config::ModelConfig;
use crate::language_model::LanguageModel;
use crate::safetensors::{read_tensors, write_tensors};

/// Name of the file with the configuration.
pub const CONFIG_FILE: &str = "config.json";
/// Name of the file with the weights.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// Reads the configuration of a model directory.
///
/// # Errors
/// Names the directory, the file, or the key that is missing or invalid.
pub fn load_config(directory: &Path) -> Result<ModelConfig> {
    ensure!(
        directory.is_dir(),
        "{} is not a directory: give a model directory or a training checkpoint",
        directory.display()
    );
    let path = directory.join(CONFIG_FILE);
    let text = fs::read_to_string(&path).with_context(|| {
        format!("{} cannot be read: a model directory has {CONFIG_FILE} and {WEIGHTS_FILE}", path.display())
    })?;
    ModelConfig::from_hugging_face(&text).with_context(|| format!("{} is not usable", path.display()))
}

/// Loads the model of a directory.
///
/// # Errors
/// Names the directory, file, and key or tensor that is missing or invalid.
pub fn load_model(directory: &Path, device: Device) -> Result<LanguageModel> {
    let config = load_config(directory)?;
    let path = directory.join(WEIGHTS_FILE);
    let tensors = read_tensors(&path)?;
    LanguageModel::from_tensors(config, tensors, device)
        .with_context(|| format!("{} does not fit its {CONFIG_FILE}", path.display()))
}

/// Writes `config.json` and `model.safetensors`, including edits of senses, to an existing
/// directory.
///
/// # Errors
/// Names the file that cannot be written.
pub fn save_model(model: &LanguageModel, directory: &Path) -> Result<()> {
    let edited = model.edited_tensors();
    let edited = edited.iter().map(|(name, tensor)| (*name, tensor));
    write_model_dir(model.config(), model.parameters().iter().chain(edited), directory)
}

/// Writes a model directory like [`save_model`], from a configuration and a copy of the weights.
///
/// # Errors
/// Names the file that cannot be written.
pub fn write_model_dir<'a>(
    config: &ModelConfig,
    weights: impl IntoIterator<Item = (&'a str, &'a Tensor)>,
    directory: &Path,
) -> Result<()> {
    let path = directory.join(CONFIG_FILE);
    let text = serde_json::to_string_pretty(&config.to_hugging_face())? + "\n";
    fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    write_tensors(&directory.join(WEIGHTS_FILE), weights)
}
