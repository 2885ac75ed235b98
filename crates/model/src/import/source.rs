//! The result of reading a file or directory: configuration, weights and notes.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};

use crate::config::{Architecture, ModelConfig};

/// The result of a reader: the configuration, and tensors under their Hugging Face names.
pub(super) struct ImportSource {
    pub(super) config: ModelConfig,
    pub(super) weights: ImportedWeights,
    /// Notes for the user, as in [`super::ImportedModel`].
    pub(super) notes: Vec<String>,
}

/// fp32 tensors by Hugging Face name, each with its name in the file. Copies of a tied weight have
/// the same Hugging Face name and must be equal.
#[derive(Default)]
pub(super) struct ImportedWeights {
    by_name: BTreeMap<String, (String, Tensor)>,
}

impl ImportedWeights {
    /// Adds the tensor with the name `source` in the file.
    ///
    /// # Errors
    /// Names `source` if it differs from an earlier copy.
    pub(super) fn insert(&mut self, name: String, source: &str, tensor: &Tensor) -> Result<()> {
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

    /// Iterates over the Hugging Face names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Returns the tensors by Hugging Face name.
    pub(super) fn into_tensors(self) -> BTreeMap<String, Tensor> {
        self.by_name.into_iter().map(|(name, (_, tensor))| (name, tensor)).collect()
    }
}

/// Returns the names of the token and position embeddings, which their tied copies get, too.
pub(super) fn embedding_names(architecture: Architecture) -> (&'static str, &'static str) {
    match architecture {
        Architecture::Backpack => ("backpack.gpt2_model.wte.weight", "backpack.gpt2_model.wpe.weight"),
        Architecture::Gpt2 => ("transformer.wte.weight", "transformer.wpe.weight"),
    }
}
