//! Import of models: Hugging Face directories, and the Lightning checkpoints of the Backpack's
//! authors. Pickles are parsed without executing anything: see [`pickle`].

mod hugging_face;
mod lightning;
mod pickle;
mod torch_file;
mod zip;

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::config::{Architecture, ModelConfig};
use crate::language_model::LanguageModel;
use crate::model_dir::CONFIG_FILE;

/// An imported model.
#[derive(Debug)]
pub struct ImportedModel {
    /// The model, fp32 on the CPU.
    pub model: LanguageModel,
    /// Notes for the user: assumptions of the import, and skipped parts of the file.
    pub notes: Vec<String>,
}

/// Reads a model: a Hugging Face directory (`model.safetensors` or `pytorch_model.bin`, sharded or
/// not), or a Lightning `.ckpt` file of the authors' code. `n_head` is only for a `.ckpt`, whose shapes
/// do not determine it.
///
/// # Errors
/// Names the file and the key or tensor that is missing, unknown, not finite, or of the wrong shape.
/// Also rejects copies of one weight that differ, and pickles with objects other than tensors and
/// plain containers.
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

/// The result of a reader: the configuration, and tensors under their Hugging Face names.
struct ImportSource {
    config: ModelConfig,
    weights: ImportedWeights,
    notes: Vec<String>,
}

/// fp32 tensors by Hugging Face name, each with its name in the file. Copies of a tied weight have the
/// same Hugging Face name and must be equal.
#[derive(Default)]
struct ImportedWeights {
    by_name: BTreeMap<String, (String, Tensor)>,
}

impl ImportedWeights {
    /// Adds the tensor with the name `source` in the file.
    ///
    /// # Errors
    /// Names `source` if it differs from an earlier copy.
    fn insert(&mut self, name: String, source: &str, tensor: &Tensor) -> Result<()> {
        // Parameters::from_tensors rejects other types.
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

/// Returns the names of the token and position embeddings, which their tied copies get, too.
fn embedding_names(architecture: Architecture) -> (&'static str, &'static str) {
    match architecture {
        Architecture::Backpack => ("backpack.gpt2_model.wte.weight", "backpack.gpt2_model.wpe.weight"),
        Architecture::Gpt2 => ("transformer.wte.weight", "transformer.wpe.weight"),
    }
}

#[cfg(test)]
mod tests;
