//! Models from elsewhere: Hugging Face folders, and the authors' Lightning checkpoints.
//!
//! Pickles are read without executing anything: see [`machine`].

mod hugging_face;
mod lightning;
mod pickle;
mod torch_file;
mod zip;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::config::{self, ModelConfig};
use crate::language_model::LanguageModel;
use crate::model_dir::CONFIG_FILE;

/// A model from elsewhere.
#[derive(Debug)]
pub struct ImportedModel {
    /// The model, fp32 on the CPU.
    pub model: LanguageModel,
    /// What was decided or left aside on the way, for the user.
    pub notes: Vec<String>,
}

/// Reads a model: a Hugging Face folder (`model.safetensors` or `pytorch_model.bin`, in
/// shards or not), or a Lightning `.ckpt` file of the authors' code. `n_head` is for a
/// `.ckpt` alone, whose shapes do not tell it.
///
/// # Errors
/// Naming the file, and the key or tensor: one that is missing, unknown, of another shape
/// or not finite, copies of one weight that differ, a pickle that holds anything but
/// tensors and plain containers.
pub fn import(path: &Path, n_head: Option<i64>) -> Result<ImportedModel> {
    let from_folder = path.is_dir();
    ensure!(
        !from_folder || n_head.is_none(),
        "--n-head is for a .ckpt: here {} decides",
        path.join(CONFIG_FILE).display()
    );
    let ImportSource { config, weights, notes } = if from_folder {
        hugging_face::read(path)?
    } else {
        ensure!(path.exists(), "{} does not exist", path.display());
        lightning::read(path, n_head).with_context(|| format!("{} cannot be imported", path.display()))?
    };
    let model = LanguageModel::from_tensors(config, weights.into_tensors(), Device::Cpu)
        .with_context(|| format!("the weights in {} do not fit", path.display()))?;
    Ok(ImportedModel { model, notes })
}

/// What a reader gives: the shape, and tensors under their Hugging Face names.
struct ImportSource {
    config: ModelConfig,
    weights: ImportedWeights,
    notes: Vec<String>,
}

/// Tensors by Hugging Face name, fp32, each with the name that it had in the file. Copies
/// of tied weights come under one name and must agree.
#[derive(Default)]
struct ImportedWeights {
    by_name: BTreeMap<String, (String, Tensor)>,
}

impl ImportedWeights {
    /// Takes the tensor that the file calls `source`.
    ///
    /// # Errors
    /// Naming `source`, when it differs from an earlier copy.
    fn insert(&mut self, name: String, source: &str, tensor: &Tensor) -> Result<()> {
        // What is no floating-point number is refused later, with the model's other shapes.
        let tensor = if tensor.is_floating_point() {
            tensor.f_to_kind(Kind::Float)?.f_contiguous()?
        } else {
            tensor.shallow_clone()
        };
        if let Some((first, earlier)) = self.by_name.get(&name) {
            ensure!(*earlier == tensor, "tensors {first} and {source} differ, but are one tied weight in this network");
            return Ok(());
        }
        self.by_name.insert(name, (source.to_owned(), tensor));
        Ok(())
    }

    fn into_tensors(self) -> BTreeMap<String, Tensor> {
        self.by_name.into_iter().map(|(name, (_, tensor))| (name, tensor)).collect()
    }
}

/// The names of the token and position embeddings, under which tied copies come too.
fn embeddings(kind: config::Architecture) -> (&'static str, &'static str) {
    match kind {
        config::Architecture::Backpack => ("backpack.gpt2_model.wte.weight", "backpack.gpt2_model.wpe.weight"),
        config::Architecture::Gpt2 => ("transformer.wte.weight", "transformer.wpe.weight"),
    }
}

#[cfg(test)]
mod tests;
