//! Import of models: Hugging Face directories, and the Lightning checkpoints of the Backpack's
//! authors. Pickles are parsed without executing anything: see [`pickle`].

mod hugging_face;
mod lightning;
mod pickle;
mod source;
mod torch_file;
mod zip;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::Device;

use crate::language_model::LanguageModel;
use crate::model_dir::CONFIG_FILE;
use source::ImportSource;

/// An imported model.
#[derive(Debug)]
pub struct ImportedModel {
    /// The model, fp32 on the CPU.
    pub model: LanguageModel,
    /// Notes for the user: assumptions of the import, and skipped parts of the file.
    pub notes: Vec<String>,
}

/// Reads a model: a Hugging Face directory (`model.safetensors` or `pytorch_model.bin`, sharded or
/// not), or a Lightning `.ckpt` file of the authors' code. `n_head` is only for a `.ckpt`, whose
/// shapes do not determine it.
///
/// # Errors
/// Names the file and the key or tensor that is missing, unknown, not finite, or of the wrong
/// shape. Also rejects copies of one weight that differ, and pickles with objects other than
/// tensors and plain containers.
pub fn import(path: &Path, n_head: Option<i64>) -> Result<ImportedModel> {
    let is_directory = path.is_dir();
    ensure!(
        !is_directory || n_head.is_none(),
        "--n-head is for a .ckpt: the value in {} applies here",
        path.join(CONFIG_FILE).display()
    );
    let ImportSource { config, weights, notes } = if is_directory {
        hugging_face::read(path)?
    } else {
        ensure!(path.exists(), "{} does not exist", path.display());
        lightning::read(path, n_head).with_context(|| format!("{} cannot be imported", path.display()))?
    };
    let model = LanguageModel::from_tensors(config, weights.into_tensors(), Device::Cpu)
        .with_context(|| format!("the weights in {} do not fit", path.display()))?;
    Ok(ImportedModel { model, notes })
}

#[cfg(test)]
mod tests;
