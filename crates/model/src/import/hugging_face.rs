//! Import of Hugging Face directories: `config.json`, and weights in one of four layouts.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::config::{Architecture, ModelConfig};
use crate::import::source::{ImportSource, ImportedWeights, embedding_names};
use crate::import::torch_file::TorchFile;
use crate::model_dir::{CONFIG_FILE, WEIGHTS_FILE, load_config};
use crate::safetensors::read_tensors;

/// The file of each layout, in the order of preference of `transformers`.
const LAYOUTS: [&str; 4] =
    [WEIGHTS_FILE, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// The index of a sharded model: the file of each tensor.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Reads the model of a directory.
pub(super) fn read(directory: &Path) -> Result<ImportSource> {
    let config = load_config(directory)?;
    let Some(layout) = LAYOUTS.iter().find(|name| directory.join(name).is_file()) else {
        bail!("{} has no weights: it must have one of {}", directory.display(), LAYOUTS.join(", "));
    };
    let path = directory.join(layout);
    let mut reader = ShardedReader { names: HfNames::new(&config), weights: ImportedWeights::default(), skipped: 0 };
    if layout.ends_with(".index.json") {
        reader
            .read_shards(directory, &path)
            .with_context(|| format!("the shards of {} cannot be imported", path.display()))?;
    } else {
        reader.read_file(&path)?;
    }
    let ShardedReader { weights, skipped, .. } = reader;
    if config.architecture == Architecture::Gpt2 && weights.names().any(|name| name.starts_with("backpack.")) {
        bail!(
            "{} has no num_senses and describes a GPT-2, but {} has the weights of a Backpack: they belong to different models",
            directory.join(CONFIG_FILE).display(),
            path.display()
        );
    }
    let notes = (skipped > 0).then(|| format!("skipped {skipped} causal-mask buffers, which are not weights"));
    Ok(ImportSource { config, weights, notes: notes.into_iter().collect() })
}

struct ShardedReader {
    names: HfNames,
    weights: ImportedWeights,
    skipped: usize,
}

impl ShardedReader {
    fn read_shards(&mut self, directory: &Path, index: &Path) -> Result<()> {
        let text = fs::read_to_string(index)?;
        let index: ShardIndex = serde_json::from_str(&text).context("the index is invalid")?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        let mut present = HashSet::new();
        for file in files {
            ensure!(
                !file.contains(['/', '\\']) && file != "..",
                "the index names \"{file}\", which is not a file of this directory"
            );
            present.extend(self.read_file(&directory.join(file))?.into_iter().map(|name| (file.clone(), name)));
        }
        for (tensor, file) in index.weight_map {
            ensure!(
                present.contains(&(file.clone(), tensor.clone())),
                "tensor {tensor} is not in {file}, which the index names for it"
            );
        }
        Ok(())
    }

    /// Reads all tensors of a file and returns their names in the file.
    fn read_file(&mut self, path: &Path) -> Result<Vec<String>> {
        let context = || format!("{} cannot be imported", path.display());
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let tensors = read_tensors(path)?;
            for (source, tensor) in &tensors {
                self.add(source, |_| Ok(tensor.shallow_clone())).with_context(context)?;
            }
            Ok(tensors.into_keys().collect())
        } else {
            let mut file = TorchFile::open(path).with_context(context)?;
            let tensors = state_dict(&file).with_context(context)?;
            for (source, &id) in &tensors {
                self.add(source, |name| file.load(name, id)).with_context(context)?;
            }
            Ok(tensors.into_keys().collect())
        }
    }

    fn add(&mut self, source: &str, load: impl FnOnce(&str) -> Result<tch::Tensor>) -> Result<()> {
        if is_mask(source) {
            self.skipped += 1;
            return Ok(());
        }
        self.weights.insert(self.names.canonical(source), source, &load(source)?)
    }
}

/// Returns the state dictionary of a `pytorch_model.bin`, which may contain only tensors.
fn state_dict(file: &TorchFile) -> Result<BTreeMap<String, u32>> {
    let pickle = file.pickle();
    if let Some(name) = pickle.first_opaque() {
        bail!(
            "it refers to {name}, which was not executed: only tensors and plain containers are allowed in a file of weights"
        );
    }
    let mut tensors = BTreeMap::new();
    for (name, id) in pickle.entries(pickle.root()) {
        file.size(name, id)?;
        tensors.insert(name.to_owned(), id);
    }
    ensure!(!tensors.is_empty(), "it contains {}, not a dictionary of tensors", pickle.describe(pickle.root()));
    Ok(tensors)
}

/// Whether the tensor with this name is a causal-mask buffer of old `transformers` releases.
fn is_mask(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias"].iter().any(|end| name.ends_with(end))
}

/// Maps the names in files to the names of a model's parameters.
struct HfNames {
    known: HashSet<String>,
    architecture: Architecture,
}

impl HfNames {
    fn new(config: &ModelConfig) -> Self {
        let known = config.parameters().into_iter().map(|spec| spec.name).collect();
        HfNames { known, architecture: config.architecture }
    }

    /// Returns the name of the parameter for a name in a file. Copies of tied weights get the name
    /// of their parameter. Names from classes without output head (`GPT2Model`,
    /// `BackpackGPT2Model`) get the missing prefix. Unknown names stay the same, for the error
    /// message.
    fn canonical(&self, source: &str) -> String {
        let prefix = match self.architecture {
            Architecture::Backpack => "backpack.",
            Architecture::Gpt2 => "transformer.",
        };
        let (wte, wpe) = embedding_names(self.architecture);
        let prefixed = format!("{prefix}{source}");
        match (self.architecture, source.strip_prefix(prefix).unwrap_or(source)) {
            (_, "lm_head.weight") | (Architecture::Backpack, "word_embeddings.weight") => wte.to_owned(),
            (Architecture::Backpack, "position_embeddings.weight") => wpe.to_owned(),
            _ if self.known.contains(&prefixed) => prefixed,
            _ => source.to_owned(),
        }
    }
}
