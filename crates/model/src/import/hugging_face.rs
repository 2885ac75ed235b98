//! Hugging Face folders: `config.json` and weights in one of four layouts.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::config::{Architecture, ModelConfig};
use crate::import::torch_file::TorchFile;
use crate::import::{ImportSource, ImportedWeights, embeddings};
use crate::model_dir::{CONFIG_FILE, WEIGHTS_FILE, load_config};
use crate::safetensors::read_tensors;

/// The layouts, in the order in which `transformers` looks for them.
const LAYOUTS: [&str; 4] =
    [WEIGHTS_FILE, "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"];

/// Which file holds which tensor.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

pub(super) fn read(folder: &Path) -> Result<ImportSource> {
    let config = load_config(folder)?;
    let Some(layout) = LAYOUTS.iter().find(|name| folder.join(name).is_file()) else {
        bail!("{} holds no weights: one of {} is wanted", folder.display(), LAYOUTS.join(", "));
    };
    let path = folder.join(layout);
    let mut reader = ShardedReader { names: HfNames::of(&config), weights: ImportedWeights::default(), dropped: 0 };
    if layout.ends_with(".index.json") {
        reader
            .read_shards(folder, &path)
            .with_context(|| format!("the shards of {} cannot be imported", path.display()))?;
    } else {
        reader.read_file(&path)?;
    }
    let ShardedReader { weights, dropped, .. } = reader;
    if config.architecture == Architecture::Gpt2 && weights.by_name.keys().any(|name| name.starts_with("backpack.")) {
        bail!(
            "{} has no num_senses and describes a GPT-2, but {} holds a Backpack: the two do not belong together",
            folder.join(CONFIG_FILE).display(),
            path.display()
        );
    }
    let notes = (dropped > 0).then(|| format!("left out {dropped} causal-mask buffers, which are no weights"));
    Ok(ImportSource { config, weights, notes: notes.into_iter().collect() })
}

struct ShardedReader {
    names: HfNames,
    weights: ImportedWeights,
    dropped: usize,
}

impl ShardedReader {
    fn read_shards(&mut self, folder: &Path, index: &Path) -> Result<()> {
        let text = fs::read_to_string(index)?;
        let index: ShardIndex = serde_json::from_str(&text).context("the index is broken")?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        let mut there = HashSet::new();
        for file in files {
            ensure!(
                !file.contains(['/', '\\']) && file != "..",
                "the index names \"{file}\", which is not a file of this folder"
            );
            there.extend(self.read_file(&folder.join(file))?.into_iter().map(|name| (file.clone(), name)));
        }
        for (tensor, file) in index.weight_map {
            ensure!(
                there.contains(&(file.clone(), tensor.clone())),
                "tensor {tensor} is not in {file}, where the index has it"
            );
        }
        Ok(())
    }

    /// Takes all tensors of one file; gives their names in it.
    fn read_file(&mut self, path: &Path) -> Result<Vec<String>> {
        let context = || format!("{} cannot be imported", path.display());
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let tensors = read_tensors(path)?;
            for (source, tensor) in &tensors {
                self.take(source, |_| Ok(tensor.shallow_clone())).with_context(context)?;
            }
            Ok(tensors.into_keys().collect())
        } else {
            let mut file = TorchFile::open(path).with_context(context)?;
            let tensors = plain_tensors(&file).with_context(context)?;
            for (source, &id) in &tensors {
                self.take(source, |name| file.load(name, id)).with_context(context)?;
            }
            Ok(tensors.into_keys().collect())
        }
    }

    fn take(&mut self, source: &str, load: impl FnOnce(&str) -> Result<tch::Tensor>) -> Result<()> {
        if is_mask(source) {
            self.dropped += 1;
            return Ok(());
        }
        self.weights.insert(self.names.canonical(source), source, &load(source)?)
    }
}

/// The state dictionary of a `pytorch_model.bin`, which may hold nothing but tensors.
fn plain_tensors(file: &TorchFile) -> Result<BTreeMap<String, u32>> {
    let pickle = file.pickle();
    if let Some(name) = pickle.first_opaque() {
        bail!("it names {name}: weights are tensors and plain containers, everything else is refused and was not run");
    }
    let mut tensors = BTreeMap::new();
    for (name, id) in pickle.entries(pickle.root()) {
        file.size(name, id)?;
        tensors.insert(name.to_owned(), id);
    }
    ensure!(!tensors.is_empty(), "it holds {}: tensors by name are wanted", pickle.describe(pickle.root()));
    Ok(tensors)
}

/// The causal masks that old `transformers` releases saved as buffers.
fn is_mask(name: &str) -> bool {
    [".attn.bias", ".attn.masked_bias"].iter().any(|end| name.ends_with(end))
}

/// The names of one model's parameters, under whichever names files have them.
struct HfNames {
    known: HashSet<String>,
    kind: Architecture,
}

impl HfNames {
    fn of(config: &ModelConfig) -> Self {
        HfNames { known: config.parameters().into_iter().map(|spec| spec.name).collect(), kind: config.architecture }
    }

    /// Copies of tied weights get their parameter's name, and the prefix of the headless
    /// classes (`GPT2Model`, `BackpackGPT2Model`) is put back. What is not known keeps its
    /// name, for the error that comes.
    fn canonical(&self, source: &str) -> String {
        let prefix = match self.kind {
            Architecture::Backpack => "backpack.",
            Architecture::Gpt2 => "transformer.",
        };
        let (wte, wpe) = embeddings(self.kind);
        let prefixed = format!("{prefix}{source}");
        match (self.kind, source.strip_prefix(prefix).unwrap_or(source)) {
            (_, "lm_head.weight") | (Architecture::Backpack, "word_embeddings.weight") => wte.to_owned(),
            (Architecture::Backpack, "position_embeddings.weight") => wpe.to_owned(),
            _ if self.known.contains(&prefixed) => prefixed,
            _ => source.to_owned(),
        }
    }
}
