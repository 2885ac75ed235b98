//! Import of the authors' checkpoints: PyTorch Lightning pickles of a Backpack or its GPT-2
//! baseline, built from the blocks of flash-attn.
//!
//! In flash-attn, a LayerNorm belongs to the addition before it. So `norm1` of a block is `ln_2` of
//! the same block in GPT-2, `norm2` is `ln_1` of the next block or `ln_f`, and `ln_0` is `ln_1` of
//! the first block.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::config::{Architecture, GPT2_END_OF_TEXT, ModelConfig};
use crate::import::pickle::{ObjectId, Pickle, Value};
use crate::import::source::{ImportSource, ImportedWeights, embedding_names};
use crate::import::torch_file::TorchFile;
use crate::model_dir::CONFIG_FILE;

/// Number of heads of the published sizes by width: micro, mini, small.
const HEADS_BY_WIDTH: [(i64, i64); 3] = [(384, 6), (640, 8), (768, 12)];

/// Maximum number of hyperparameter values that are searched.
const MAX_HYPER_PARAMETERS: usize = 100_000;

/// Reads the model of a checkpoint file.
pub(super) fn read(path: &Path, n_head: Option<i64>) -> Result<ImportSource> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        bail!("it is one file of a Hugging Face directory: give the directory, which also has config.json");
    }
    let mut file = TorchFile::open(path)?;
    let StateDict { tensors, skipped } = read_state_dict(&file)?;
    let shapes = Shapes { file: &file, tensors: &tensors };
    let (config, mut notes) = infer(&shapes, n_head, read_config_next_to(path)?)?;
    if skipped > 0 {
        notes.push(format!(
            "skipped entries of state_dict that are not weights: {skipped} (metrics store counts there)"
        ));
    }
    let mut weights = ImportedWeights::default();
    for (source, &id) in &tensors {
        let Some(target) = TargetParameter::from_source(source, &config) else {
            bail!("tensor model.{source} is not part of the authors' networks: this may be another model");
        };
        let full = format!("model.{source}");
        let mut tensor = file.load(&full, id)?;
        if target.transposed {
            ensure!(tensor.dim() == 2, "tensor {full} has shape {:?}, not two axes", tensor.size());
            tensor = tensor.tr();
        }
        weights.insert(target.name, &full, &tensor)?;
    }
    Ok(ImportSource { config, weights, notes })
}

/// Reads the `config.json` in the directory of the checkpoint, if it exists.
fn read_config_next_to(path: &Path) -> Result<Option<ModelConfig>> {
    let path = path.with_file_name(CONFIG_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let config = ModelConfig::from_hugging_face(&text);
    config.map(Some).with_context(|| format!("{}, in the directory of the checkpoint, is not usable", path.display()))
}

/// The weights in the `state_dict` of a checkpoint.
struct StateDict {
    /// Tensors by name, without the prefix `model.`.
    tensors: BTreeMap<String, ObjectId>,
    /// Number of other entries, for example counts of metrics.
    skipped: usize,
}

fn read_state_dict(file: &TorchFile) -> Result<StateDict> {
    let pickle = file.pickle();
    let root = pickle.root();
    let Some(state) = pickle.get(root, "state_dict") else {
        bail!(
            "it contains {} without a state_dict, so it is not a Lightning checkpoint; to import a Hugging Face model, give its directory",
            pickle.describe(root)
        );
    };
    ensure!(matches!(pickle.value(state), Value::Dict(_)), "its state_dict is {}", pickle.describe(state));
    let mut tensors = BTreeMap::new();
    let mut skipped = 0;
    for (name, id) in pickle.entries(state) {
        match name.strip_prefix("model.") {
            Some(rest) => {
                file.size(name, id)?;
                tensors.insert(rest.to_owned(), id);
            }
            None => skipped += 1,
        }
    }
    ensure!(!tensors.is_empty(), "its state_dict has no entry that begins with \"model.\", as those of the authors do");
    Ok(StateDict { tensors, skipped })
}

/// The shapes of the tensors, by the authors' names.
struct Shapes<'a> {
    file: &'a TorchFile,
    tensors: &'a BTreeMap<String, ObjectId>,
}

impl Shapes<'_> {
    fn matrix(&self, name: &str) -> Result<[i64; 2]> {
        let full = format!("model.{name}");
        let id = *self.tensors.get(name).with_context(|| format!("tensor {full} is missing"))?;
        let size = self.file.size(&full, id)?;
        let size = size.try_into().ok().filter(|size: &[i64; 2]| size.iter().all(|&n| n > 0));
        size.with_context(|| format!("tensor {full} has shape {:?}, not that of a matrix", self.file.size(&full, id)))
    }

    /// Returns the number of rows of `name` as a multiple of `width`.
    fn multiple(&self, name: &str, width: i64) -> Result<i64> {
        let [rows, _] = self.matrix(name)?;
        ensure!(rows % width == 0, "tensor model.{name} has {rows} rows, not a multiple of n_embd ({width})");
        Ok(rows / width)
    }
}

/// Returns the prefix of the authors' names of the trunk.
fn body_prefix(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::Backpack => "transformer.gpt2_model.",
        Architecture::Gpt2 => "transformer.",
    }
}

/// Returns the configuration and notes. The shapes determine most keys. The other keys come from
/// `n_head`, from `neighbor`, the configuration next to the checkpoint, from the hyperparameters,
/// or from the published runs.
fn infer(shapes: &Shapes, n_head: Option<i64>, neighbor: Option<ModelConfig>) -> Result<(ModelConfig, Vec<String>)> {
    let is_backpack = shapes.tensors.keys().any(|name| name.starts_with(body_prefix(Architecture::Backpack)));
    let architecture = if is_backpack { Architecture::Backpack } else { Architecture::Gpt2 };
    let body = body_prefix(architecture);
    let [vocab_size, n_embd] = shapes.matrix(&format!("{body}embeddings.word_embeddings.weight"))?;
    let [n_positions, _] = shapes.matrix(&format!("{body}embeddings.position_embeddings.weight"))?;
    let layers: BTreeSet<u64> = shapes
        .tensors
        .keys()
        .filter_map(|name| name.strip_prefix(body)?.strip_prefix("layers.")?.split('.').next()?.parse().ok())
        .collect();
    // The numbers must have no gaps, so that a huge number does not create a huge model.
    if let Some((expected, _)) = (0..).zip(&layers).find(|(expected, layer)| expected != *layer) {
        bail!("layer {expected} is missing: no tensor has a name that begins with model.{body}layers.{expected}.");
    }
    let [n_inner, _] = shapes.matrix(&format!("{body}layers.0.mlp.fc1.weight"))?;
    let mut config = ModelConfig {
        architecture,
        n_embd,
        n_layer: layers.len() as i64,
        n_inner: (n_inner != 4 * n_embd).then_some(n_inner),
        n_positions,
        vocab_size,
        end_of_text: (vocab_size > GPT2_END_OF_TEXT).then_some(GPT2_END_OF_TEXT),
        ..ModelConfig::default()
    };
    if is_backpack {
        let senses = "transformer.content_model";
        config.num_senses = shapes.multiple(&format!("{senses}.final_mlp.fc2.weight"), n_embd)?;
        config.sense_intermediate_scale = shapes.multiple(&format!("{senses}.final_mlp.fc1.weight"), n_embd)?;
        let [width, _] = shapes.matrix(&format!("{senses}.layers.0.mlp.fc1.weight"))?;
        config.sense_block_inner = (width != 4 * n_embd).then_some(width);
    }

    let hyper = HyperParameters::new(shapes.file.pickle());
    let mut notes = Vec::new();
    let published_heads = HEADS_BY_WIDTH.iter().find(|(width, _)| *width == n_embd).map(|&(_, heads)| heads);
    let from_neighbor = neighbor.as_ref().map(|c| (c.n_head, format!("from the {CONFIG_FILE} in the same directory")));
    let from_hyper_parameters = || hyper.integer("n_head").map(|n| (n, "from its hyper_parameters".to_owned()));
    let from_width =
        || published_heads.map(|heads| (heads, format!("that of the published size with n_embd {n_embd}")));
    config.n_head = match n_head {
        Some(given) => given,
        None => {
            let (heads, from) = from_neighbor.or_else(from_hyper_parameters).or_else(from_width).with_context(|| {
                format!("n_head is unknown: the shapes do not determine it, hyper_parameters has no readable value, and n_embd {n_embd} is not a published size; give it with --n-head")
            })?;
            notes.push(format!("n_head {heads}, {from}"));
            heads
        }
    };
    let key = "scale_attn_by_inverse_layer_idx";
    let from_neighbor = neighbor.as_ref().map(|c| c.scale_attn_by_inverse_layer_idx);
    config.scale_attn_by_inverse_layer_idx = from_neighbor.or_else(|| hyper.flag(key)).unwrap_or_else(|| {
        notes.push(format!("{key} true, as in the authors' runs: the file has no readable value"));
        true
    });
    if let Some(c) = neighbor {
        (config.dropout, config.layer_norm_epsilon) = (c.dropout, c.layer_norm_epsilon);
        config.end_of_text = c.end_of_text.or(config.end_of_text);
    } else {
        config.dropout = hyper.float("resid_pdrop").unwrap_or(config.dropout);
        config.layer_norm_epsilon = hyper.float("layer_norm_epsilon").unwrap_or(config.layer_norm_epsilon);
    }
    config.validate().context("its shapes are not those of a valid network")?;
    Ok((config, notes))
}

/// The entries of all dictionaries in the `hyper_parameters` of a checkpoint, outer ones first.
/// Objects other than plain containers are skipped.
struct HyperParameters<'a> {
    entries: Vec<(&'a str, &'a Value)>,
}

impl<'a> HyperParameters<'a> {
    fn new(pickle: &'a Pickle) -> Self {
        let mut entries = Vec::new();
        let mut queue: VecDeque<ObjectId> = pickle.get(pickle.root(), "hyper_parameters").into_iter().collect();
        let mut seen = HashSet::new();
        while let Some(id) = queue.pop_front() {
            if !seen.insert(id) || seen.len() > MAX_HYPER_PARAMETERS {
                continue;
            }
            for (key, value) in pickle.entries(id).take(MAX_HYPER_PARAMETERS) {
                entries.push((key, pickle.value(value)));
                queue.push_back(value);
            }
        }
        HyperParameters { entries }
    }

    fn find<T>(&self, key: &str, pick: impl Fn(&Value) -> Option<T>) -> Option<T> {
        self.entries.iter().filter(|(name, _)| *name == key).find_map(|(_, value)| pick(value))
    }

    fn integer(&self, key: &str) -> Option<i64> {
        self.find(key, |value| if let Value::Int(n) = value { Some(*n) } else { None })
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.find(key, |value| match value {
            Value::Float(x) => Some(*x),
            Value::Int(n) => Some(*n as f64),
            _ => None,
        })
    }

    fn flag(&self, key: &str) -> Option<bool> {
        self.find(key, |value| if let Value::Bool(b) = value { Some(*b) } else { None })
    }
}

/// The parameter that corresponds to a tensor of the authors.
#[derive(Debug, PartialEq)]
struct TargetParameter {
    name: String,
    /// Whether the tensor is an `nn.Linear` weight `[out, in]` and the parameter a `Conv1D` weight
    /// `[in, out]`.
    transposed: bool,
}

impl TargetParameter {
    /// Returns the parameter for a name of the authors; `None` if the name is unknown.
    fn from_source(source: &str, config: &ModelConfig) -> Option<TargetParameter> {
        let (wte, wpe) = embedding_names(config.architecture);
        let tied = match source {
            "lm_head.weight" => Some(wte),
            _ => source.strip_prefix("transformer.").and_then(|rest| {
                let rest = rest.strip_prefix("gpt2_model.").or(rest.strip_prefix("content_model.")).unwrap_or(rest);
                match rest {
                    "embeddings.word_embeddings.weight" => Some(wte),
                    "embeddings.position_embeddings.weight" => Some(wpe),
                    _ => None,
                }
            }),
        };
        if let Some(name) = tied {
            return Some(TargetParameter { name: name.to_owned(), transposed: false });
        }
        let (layer, part) = source.rsplit_once('.')?;
        let (name, conv1d) = body_layer(layer, config).or_else(|| sense_layer(layer))?;
        Some(TargetParameter { name: format!("{name}.{part}"), transposed: conv1d && part == "weight" })
    }
}

/// Returns the Hugging Face name of a layer of the trunk, and whether it is a `Conv1D`.
fn body_layer(layer: &str, config: &ModelConfig) -> Option<(String, bool)> {
    let rest = layer.strip_prefix(body_prefix(config.architecture))?;
    let prefix = config.body_prefix();
    if rest == "ln_0" {
        return Some((format!("{prefix}.h.0.ln_1"), false));
    }
    let (index, rest) = rest.strip_prefix("layers.")?.split_once('.')?;
    let index: i64 = index.parse().ok()?;
    let (name, conv1d) = match rest {
        "norm1" => ("ln_2", false),
        "norm2" if index + 1 == config.n_layer => return Some((format!("{prefix}.ln_f"), false)),
        "norm2" => return Some((format!("{prefix}.h.{}.ln_1", index.checked_add(1)?), false)),
        "mixer.Wqkv" => ("attn.c_attn", true),
        "mixer.out_proj" => ("attn.c_proj", true),
        "mlp.fc1" => ("mlp.c_fc", true),
        "mlp.fc2" => ("mlp.c_proj", true),
        _ => return None,
    };
    Some((format!("{prefix}.h.{index}.{name}"), conv1d))
}

/// Returns the Hugging Face name of a layer of the sense network or of the contextualization
/// weights, and whether it is a `Conv1D`.
fn sense_layer(layer: &str) -> Option<(String, bool)> {
    let (name, conv1d) = match layer.strip_prefix("transformer.")? {
        "content_model.ln_0" => ("sense_network.ln", false),
        "content_model.layers.0.norm1" => ("sense_network.block.ln_1", false),
        "content_model.layers.0.norm2" => ("sense_network.block.ln_2", false),
        "content_model.layers.0.mlp.fc1" => ("sense_network.block.mlp.c_fc", true),
        "content_model.layers.0.mlp.fc2" => ("sense_network.block.mlp.c_proj", true),
        "content_model.final_mlp.fc1" => ("sense_network.final_mlp.c_fc", true),
        "content_model.final_mlp.fc2" => ("sense_network.final_mlp.c_proj", true),
        "contextualization_attn.Wqkv" => ("sense_weight_net.c_attn", false),
        _ => return None,
    };
    Some((format!("backpack.{name}"), conv1d))
}
