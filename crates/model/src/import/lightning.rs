//! The authors' checkpoints: PyTorch Lightning's pickle of a network built from
//! flash-attn's blocks, for the Backpack and for its GPT-2 baseline.
//!
//! flash-attn norms after each addition what the next layer reads: `norm1` of a block is
//! GPT-2's `ln_2` of the same block, `norm2` is `ln_1` of the next one or `ln_f`, and
//! `ln_0` is `ln_1` of the first.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::config::{Architecture, GPT2_END_OF_TEXT, ModelConfig};
use crate::import::pickle::{ObjectId, Pickle, Value};
use crate::import::torch_file::TorchFile;
use crate::import::{ImportSource, ImportedWeights, embeddings};
use crate::model_dir::CONFIG_FILE;

/// Heads of the published sizes by width: micro, mini, small.
const HEADS: [(i64, i64); 3] = [(384, 6), (640, 8), (768, 12)];

/// Values of the hyper-parameters that are looked at before giving up.
const MAX_HYPER_PARAMETERS: usize = 100_000;

pub(super) fn read(path: &Path, n_head: Option<i64>) -> Result<ImportSource> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        bail!("it is one file of a Hugging Face folder: name the folder, which also holds config.json");
    }
    let mut file = TorchFile::open(path)?;
    let StateDict { tensors, others } = state(&file)?;
    let shapes = Shapes { file: &file, tensors: &tensors };
    let (config, mut notes) = infer(&shapes, n_head, beside(path)?)?;
    if others > 0 {
        notes.push(format!(
            "left out {others} of state_dict's entries, which are not the model's (metrics keep counts there)"
        ));
    }
    let mut weights = ImportedWeights::default();
    for (source, &id) in &tensors {
        let Some(target) = TargetParameter::of(source, &config) else {
            bail!("tensor model.{source} is not part of the authors' networks, so that this may be another model");
        };
        let full = format!("model.{source}");
        let mut tensor = file.load(&full, id)?;
        if target.transposed {
            ensure!(tensor.dim() == 2, "tensor {full} has shape {:?}: two axes are wanted", tensor.size());
            tensor = tensor.tr();
        }
        weights.insert(target.name, &full, &tensor)?;
    }
    Ok(ImportSource { config, weights, notes })
}

/// What a `config.json` in the file's folder says, where there is one.
fn beside(path: &Path) -> Result<Option<ModelConfig>> {
    let path = path.with_file_name(CONFIG_FILE);
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let config = ModelConfig::from_hugging_face(&text);
    config.map(Some).with_context(|| format!("{}, beside the checkpoint, is not usable", path.display()))
}

/// The model's entries of a checkpoint's `state_dict`, without the prefix `model.`.
struct StateDict {
    tensors: BTreeMap<String, ObjectId>,
    /// Entries of something else: metrics keep counts there.
    others: usize,
}

fn state(file: &TorchFile) -> Result<StateDict> {
    let pickle = file.pickle();
    let root = pickle.root();
    let Some(state) = pickle.get(root, "state_dict") else {
        bail!(
            "it holds {} without a state_dict: a Lightning checkpoint is wanted; the weights of a Hugging Face folder are imported by naming the folder",
            pickle.describe(root)
        );
    };
    ensure!(matches!(pickle.value(state), Value::Dict(_)), "its state_dict is {}", pickle.describe(state));
    let mut tensors = BTreeMap::new();
    let mut others = 0;
    for (name, id) in pickle.entries(state) {
        match name.strip_prefix("model.") {
            Some(rest) => {
                file.size(name, id)?;
                tensors.insert(rest.to_owned(), id);
            }
            None => others += 1,
        }
    }
    ensure!(!tensors.is_empty(), "its state_dict has no entry that begins with \"model.\", as the authors' have");
    Ok(StateDict { tensors, others })
}

/// Shapes by the authors' names.
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
        size.with_context(|| format!("tensor {full} has shape {:?}: a matrix is wanted", self.file.size(&full, id)))
    }

    /// Rows of `name` in multiples of `width`.
    fn multiple(&self, name: &str, width: i64) -> Result<i64> {
        let [rows, _] = self.matrix(name)?;
        ensure!(rows % width == 0, "tensor model.{name} has {rows} rows: a multiple of n_embd {width} is wanted");
        Ok(rows / width)
    }
}

/// Where the body's names begin.
fn body(kind: Architecture) -> &'static str {
    match kind {
        Architecture::Backpack => "transformer.gpt2_model.",
        Architecture::Gpt2 => "transformer.",
    }
}

/// The configuration that the shapes tell, with what they do not taken from elsewhere.
fn infer(shapes: &Shapes, n_head: Option<i64>, beside: Option<ModelConfig>) -> Result<(ModelConfig, Vec<String>)> {
    let is_backpack = shapes.tensors.keys().any(|name| name.starts_with(body(Architecture::Backpack)));
    let kind = if is_backpack { Architecture::Backpack } else { Architecture::Gpt2 };
    let body = body(kind);
    let [vocab_size, n_embd] = shapes.matrix(&format!("{body}embeddings.word_embeddings.weight"))?;
    let [n_positions, _] = shapes.matrix(&format!("{body}embeddings.position_embeddings.weight"))?;
    let layers: BTreeSet<u64> = shapes
        .tensors
        .keys()
        .filter_map(|name| name.strip_prefix(body)?.strip_prefix("layers.")?.split('.').next()?.parse().ok())
        .collect();
    // Numbers without gaps: a huge one claims no huge model.
    if let Some((want, _)) = (0..).zip(&layers).find(|(want, have)| want != *have) {
        bail!("layer {want} is missing: no tensor's name begins with model.{body}layers.{want}.");
    }
    let [n_inner, _] = shapes.matrix(&format!("{body}layers.0.mlp.fc1.weight"))?;
    let mut config = ModelConfig {
        architecture: kind,
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

    let hyper = HyperParameters::of(shapes.file.pickle());
    let mut notes = Vec::new();
    let table = HEADS.iter().find(|(width, _)| *width == n_embd).map(|&(_, heads)| heads);
    let said = beside.as_ref().map(|c| (c.n_head, format!("from the {CONFIG_FILE} beside it")));
    let own = || hyper.integer("n_head").map(|n| (n, "from its hyper_parameters".to_owned()));
    let published = || table.map(|heads| (heads, format!("as the published size of n_embd {n_embd}")));
    config.n_head = match n_head {
        Some(given) => given,
        None => {
            let (heads, from) = said.or_else(own).or_else(published).with_context(|| {
                format!("its shapes do not tell n_head, its hyper_parameters do not say it readably, and n_embd {n_embd} is no published size: give it with --n-head")
            })?;
            notes.push(format!("n_head {heads}, {from}"));
            heads
        }
    };
    let key = "scale_attn_by_inverse_layer_idx";
    let said = beside.as_ref().map(|c| c.scale_attn_by_inverse_layer_idx);
    config.scale_attn_by_inverse_layer_idx = said.or_else(|| hyper.flag(key)).unwrap_or_else(|| {
        notes.push(format!("{key} true, as in the authors' runs: the file does not say it readably"));
        true
    });
    if let Some(c) = beside {
        (config.dropout, config.layer_norm_epsilon) = (c.dropout, c.layer_norm_epsilon);
        config.end_of_text = c.end_of_text.or(config.end_of_text);
    } else {
        config.dropout = hyper.float("resid_pdrop").unwrap_or(config.dropout);
        config.layer_norm_epsilon = hyper.float("layer_norm_epsilon").unwrap_or(config.layer_norm_epsilon);
    }
    config.validate().context("its shapes make no network")?;
    Ok((config, notes))
}

/// A checkpoint's `hyper_parameters`, as far as they are plain containers: all entries of
/// dictionaries, outer ones first.
struct HyperParameters<'a> {
    entries: Vec<(&'a str, &'a Value)>,
}

impl<'a> HyperParameters<'a> {
    fn of(pickle: &'a Pickle) -> Self {
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

/// The parameter that one of the authors' tensors is.
#[derive(Debug, PartialEq)]
struct TargetParameter {
    name: String,
    /// An `nn.Linear` `[out, in]` that `Conv1D` has as `[in, out]`.
    transposed: bool,
}

impl TargetParameter {
    fn of(source: &str, config: &ModelConfig) -> Option<TargetParameter> {
        let (wte, wpe) = embeddings(config.architecture);
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

/// The body's layers: Hugging Face's name, and whether it is a `Conv1D` there.
fn body_layer(layer: &str, config: &ModelConfig) -> Option<(String, bool)> {
    let rest = layer.strip_prefix(body(config.architecture))?;
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

/// The same for the layers of the senses.
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
