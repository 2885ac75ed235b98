//! The parameters of a model, and the table that describes them: Hugging Face name, shape,
//! initialization, and whether weight decay applies. Code that initializes, loads, saves or groups
//! parameters uses this table.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use crate::config::{Architecture, ModelConfig};
use crate::tensor::is_finite;

/// The initial values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Init {
    /// Normally distributed with mean 0 and this standard deviation.
    Normal(f64),
    /// All zero: biases.
    Zeros,
    /// All one: LayerNorm weights.
    Ones,
}

/// A row of the parameter table.
#[derive(Debug, Clone, PartialEq)]
pub struct ParameterSpec {
    /// The Hugging Face name.
    pub name: String,
    /// The shape; `Conv1D` weights are `[in, out]`.
    pub shape: Vec<i64>,
    /// The initial values.
    pub(crate) init: Init,
    /// Whether weight decay applies, which is so for the weights of linear layers only.
    pub decay: bool,
}

/// Standard deviation of the initial weights and embeddings of GPT-2.
const STANDARD_DEVIATION: f64 = 0.02;

/// Collects the rows of the table. Each method adds the parameters of a layer.
struct ParameterTable {
    rows: Vec<ParameterSpec>,
    /// Standard deviation of the weights of layers whose output is added to a residual stream.
    residual: f64,
}

impl ParameterTable {
    fn push(&mut self, name: String, shape: &[i64], init: Init, decay: bool) {
        self.rows.push(ParameterSpec { name, shape: shape.to_vec(), init, decay });
    }

    fn embedding(&mut self, name: &str, rows: i64, width: i64) {
        self.push(format!("{name}.weight"), &[rows, width], Init::Normal(STANDARD_DEVIATION), false);
    }

    fn layer_norm(&mut self, name: &str, width: i64) {
        self.push(format!("{name}.weight"), &[width], Init::Ones, false);
        self.push(format!("{name}.bias"), &[width], Init::Zeros, false);
    }

    /// `shape` is the shape of the weight as stored, and `outputs` is the length of the bias.
    fn linear(&mut self, name: &str, shape: [i64; 2], outputs: i64, deviation: f64) {
        self.push(format!("{name}.weight"), &shape, Init::Normal(deviation), true);
        self.push(format!("{name}.bias"), &[outputs], Init::Zeros, false);
    }

    fn mlp(&mut self, name: &str, inputs: i64, hidden: i64, outputs: i64) {
        self.linear(&format!("{name}.c_fc"), [inputs, hidden], hidden, STANDARD_DEVIATION);
        self.linear(&format!("{name}.c_proj"), [hidden, outputs], outputs, self.residual);
    }
}

impl ModelConfig {
    /// Returns the prefix of the names of the trunk's parameters: `backpack.gpt2_model`, or
    /// `transformer` for a GPT-2.
    pub fn body_prefix(&self) -> &'static str {
        match self.architecture {
            Architecture::Backpack => "backpack.gpt2_model",
            Architecture::Gpt2 => "transformer",
        }
    }

    /// Returns the table of all parameters. Tied parameters appear once.
    pub fn parameters(&self) -> Vec<ParameterSpec> {
        let (d, body) = (self.n_embd, self.body_prefix());
        let mut t =
            ParameterTable { rows: Vec::new(), residual: STANDARD_DEVIATION / (2.0 * self.n_layer as f64).sqrt() };
        t.embedding(&format!("{body}.wte"), self.vocab_size, d);
        t.embedding(&format!("{body}.wpe"), self.n_positions, d);
        for layer in 0..self.n_layer {
            let block = format!("{body}.h.{layer}");
            t.layer_norm(&format!("{block}.ln_1"), d);
            t.linear(&format!("{block}.attn.c_attn"), [d, 3 * d], 3 * d, STANDARD_DEVIATION);
            t.linear(&format!("{block}.attn.c_proj"), [d, d], d, t.residual);
            t.layer_norm(&format!("{block}.ln_2"), d);
            t.mlp(&format!("{block}.mlp"), d, self.inner_size(), d);
        }
        t.layer_norm(&format!("{body}.ln_f"), d);
        if self.architecture == Architecture::Backpack {
            let senses = "backpack.sense_network";
            t.layer_norm(&format!("{senses}.ln"), d);
            t.layer_norm(&format!("{senses}.block.ln_1"), d);
            t.layer_norm(&format!("{senses}.block.ln_2"), d);
            t.mlp(&format!("{senses}.block.mlp"), d, self.sense_block_size(), d);
            t.mlp(&format!("{senses}.final_mlp"), d, self.sense_intermediate_scale * d, self.num_senses * d);
            // An nn.Linear, stored as [out, in]: first the queries, then the keys, by sense.
            t.linear("backpack.sense_weight_net.c_attn", [2 * d, d], 2 * d, STANDARD_DEVIATION);
        }
        t.rows
    }

    /// Returns the number of trained values.
    pub fn num_parameters(&self) -> i64 {
        self.parameters().iter().map(|p| p.shape.iter().product::<i64>()).sum()
    }
}

/// The parameters of a model by name: fp32 leaves of the autograd graph.
#[derive(Debug)]
pub struct Parameters {
    by_name: BTreeMap<String, Tensor>,
    /// bf16 copies of the weights of matrix products, if the model keeps them.
    low_precision_copies: BTreeMap<String, Tensor>,
}

impl Parameters {
    /// Draws initial parameters from `seed`, on the CPU and in the order of the table, so that they
    /// are the same on every device.
    pub fn initialize(config: &ModelConfig, seed: u64, device: Device) -> Self {
        tch::manual_seed(seed as i64);
        let options = (Kind::Float, Device::Cpu);
        let draw = |spec: &ParameterSpec| match spec.init {
            Init::Normal(deviation) => Tensor::empty(&spec.shape, options).normal_(0.0, deviation),
            Init::Zeros => Tensor::zeros(&spec.shape, options),
            Init::Ones => Tensor::ones(&spec.shape, options),
        };
        let by_name = config
            .parameters()
            .into_iter()
            .map(|spec| (spec.name.clone(), draw(&spec).to_device(device).set_requires_grad(true)))
            .collect();
        Parameters { by_name, low_precision_copies: BTreeMap::new() }
    }

    /// Converts loaded tensors to fp32 parameters. Skips copies of the tied embeddings and the mask
    /// buffers of GPT-2.
    ///
    /// # Errors
    /// Names the tensor that is missing, has the wrong shape, or is not part of this model.
    pub fn from_tensors(config: &ModelConfig, mut tensors: BTreeMap<String, Tensor>, device: Device) -> Result<Self> {
        let mut by_name = BTreeMap::new();
        for spec in config.parameters() {
            let tensor = tensors.remove(&spec.name).with_context(|| format!("tensor {} is missing", spec.name))?;
            ensure!(
                tensor.size() == spec.shape,
                "tensor {} has shape {:?}, but config.json requires {:?}",
                spec.name,
                tensor.size(),
                spec.shape
            );
            ensure!(
                tensor.is_floating_point(),
                "tensor {} has type {:?}: weights must be floating-point numbers",
                spec.name,
                tensor.kind()
            );
            ensure!(is_finite(&tensor), "tensor {} holds NaN or infinity: the weights are broken", spec.name);
            let parameter = tensor.to_device(device).to_kind(Kind::Float).contiguous();
            by_name.insert(spec.name, parameter.set_requires_grad(true));
        }
        for name in tensors.keys() {
            ensure!(
                is_redundant(name),
                "tensor {name} is not part of this model: config.json and weights belong to different models"
            );
        }
        Ok(Parameters { by_name, low_precision_copies: BTreeMap::new() })
    }

    /// Returns the parameter with this name.
    ///
    /// # Panics
    /// Panics if the table has no such name, which is a programming error.
    pub fn get(&self, name: &str) -> Tensor {
        match self.by_name.get(name) {
            Some(tensor) => tensor.shallow_clone(),
            None => unreachable!("the parameter table has no {name}"),
        }
    }

    /// Keeps a bf16 copy of every matrix except the position embedding, which no matrix product
    /// reads.
    pub(crate) fn keep_low_precision_copies(&mut self) {
        let matrices = self.by_name.iter().filter(|(name, t)| t.dim() == 2 && !name.ends_with("wpe.weight"));
        self.low_precision_copies =
            matrices.map(|(name, t)| (name.clone(), t.detach().to_kind(Kind::BFloat16))).collect();
    }

    /// Returns the bf16 copy of a parameter, if the model keeps one. Code that changes the
    /// parameter must also write the copy.
    pub fn low_precision_copy(&self, name: &str) -> Option<Tensor> {
        self.low_precision_copies.get(name).map(Tensor::shallow_clone)
    }

    /// Recomputes the bf16 copies after the parameters have changed.
    ///
    /// # Errors
    /// A copy has another shape than its parameter.
    pub fn update_low_precision_copies(&self) -> Result<()> {
        for (name, copy) in &self.low_precision_copies {
            copy.shallow_clone().f_copy_(&self.by_name[name].detach())?;
        }
        Ok(())
    }

    /// Iterates over names and parameters, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.by_name.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Multiplies all parameters in place.
    #[cfg(test)]
    pub(crate) fn multiply(&self, factor: f64) {
        for parameter in self.by_name.values() {
            let mut parameter = parameter.shallow_clone();
            tch::no_grad(|| parameter *= factor);
        }
    }
}

/// Whether published files have a tensor with this name in addition to the parameters: a copy of a
/// tied embedding, or a causal-mask buffer of old `transformers` releases.
fn is_redundant(name: &str) -> bool {
    ["lm_head.weight", "backpack.word_embeddings.weight", "backpack.position_embeddings.weight"].contains(&name)
        || name.ends_with(".attn.bias")
        || name.ends_with(".attn.masked_bias")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Lock for tests that draw, because libtorch has one generator per process.
    static GENERATOR: Mutex<()> = Mutex::new(());

    fn initialize(config: &ModelConfig, seed: u64) -> Parameters {
        let _lock = GENERATOR.lock().unwrap();
        Parameters::initialize(config, seed, Device::Cpu)
    }

    fn size(n_embd: i64, n_head: i64, n_layer: i64, architecture: Architecture) -> ModelConfig {
        ModelConfig { n_embd, n_head, n_layer, architecture, ..ModelConfig::default() }
    }

    /// The sizes in the code of the paper: micro, mini, small.
    #[test]
    fn parameter_counts_equal_the_published_ones() {
        for (d, heads, layers, transformer, backpack) in [
            (384, 6, 6, 30_145_536, 41_659_776),
            (640, 8, 8, 71_886_080, 103_856_000),
            (768, 12, 12, 124_051_968, 170_083_584),
        ] {
            assert_eq!(size(d, heads, layers, Architecture::Gpt2).num_parameters(), transformer);
            assert_eq!(size(d, heads, layers, Architecture::Backpack).num_parameters(), backpack);
        }
    }

    /// The names and shapes in the files of the published small model.
    #[test]
    fn names_and_shapes_equal_the_published_ones() {
        let small = ModelConfig::default();
        let got: BTreeMap<String, Vec<i64>> = small.parameters().into_iter().map(|s| (s.name, s.shape)).collect();
        let body = "backpack.gpt2_model";
        let mut want = BTreeMap::from([
            (format!("{body}.wte.weight"), vec![50_264, 768]),
            (format!("{body}.wpe.weight"), vec![512, 768]),
            ("backpack.sense_weight_net.c_attn.weight".to_owned(), vec![1536, 768]),
            ("backpack.sense_weight_net.c_attn.bias".to_owned(), vec![1536]),
        ]);
        let mut conv1d = |name: String, inputs: i64, outputs: i64| {
            want.insert(format!("{name}.weight"), vec![inputs, outputs]);
            want.insert(format!("{name}.bias"), vec![outputs]);
        };
        for i in 0..12 {
            conv1d(format!("{body}.h.{i}.attn.c_attn"), 768, 2304);
            conv1d(format!("{body}.h.{i}.attn.c_proj"), 768, 768);
            conv1d(format!("{body}.h.{i}.mlp.c_fc"), 768, 3072);
            conv1d(format!("{body}.h.{i}.mlp.c_proj"), 3072, 768);
        }
        for (name, outputs) in [("block", 768), ("final", 12_288)] {
            let mlp = if name == "block" { "block.mlp" } else { "final_mlp" };
            conv1d(format!("backpack.sense_network.{mlp}.c_fc"), 768, 3072);
            conv1d(format!("backpack.sense_network.{mlp}.c_proj"), 3072, outputs);
        }
        let blocks = (0..12).flat_map(|i| [format!("{body}.h.{i}.ln_1"), format!("{body}.h.{i}.ln_2")]);
        let senses = ["ln", "block.ln_1", "block.ln_2"].map(|n| format!("backpack.sense_network.{n}"));
        for name in blocks.chain(senses).chain([format!("{body}.ln_f")]) {
            want.insert(format!("{name}.weight"), vec![768]);
            want.insert(format!("{name}.bias"), vec![768]);
        }
        assert_eq!(got, want);
    }

    #[test]
    fn initialization_has_the_standard_deviations_of_the_reference() {
        let config = ModelConfig { vocab_size: 4096, ..size(128, 4, 8, Architecture::Backpack) };
        let parameters = initialize(&config, 7);
        for spec in config.parameters() {
            let tensor = parameters.get(&spec.name);
            let mean = tensor.mean(Kind::Double).double_value(&[]);
            let deviation = tensor.std(true).double_value(&[]);
            // 0.02 / sqrt(2 * 8 layers) for layers whose output is added to a residual stream, and
            // for the second layer of final_mlp, which the reference scales, too.
            let want = match (spec.name.ends_with("c_proj.weight"), spec.shape.len()) {
                (true, _) => 0.005,
                (false, 2) => 0.02,
                _ => 0.0,
            };
            assert!((deviation - want).abs() <= 0.03 * want, "{}: {deviation}", spec.name);
            let want = if spec.name.contains("ln") && spec.name.ends_with("weight") { 1.0 } else { 0.0 };
            assert!((mean - want).abs() < 5e-4, "{}: {mean}", spec.name);
        }
    }

    #[test]
    fn equal_seeds_give_equal_weights() {
        let config = ModelConfig { vocab_size: 64, ..size(32, 2, 1, Architecture::Backpack) };
        let draw = |seed| initialize(&config, seed).get("backpack.gpt2_model.wte.weight");
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn only_linear_weights_decay() {
        for spec in size(384, 6, 6, Architecture::Backpack).parameters() {
            let linear = ["c_attn.weight", "c_proj.weight", "c_fc.weight"].iter().any(|end| spec.name.ends_with(end));
            assert_eq!(spec.decay, linear, "{}", spec.name);
        }
    }

    #[test]
    fn errors_name_the_tensor() {
        let config = ModelConfig { vocab_size: 64, ..size(32, 2, 1, Architecture::Gpt2) };
        let tensors = || -> BTreeMap<String, Tensor> {
            initialize(&config, 1).iter().map(|(n, t)| (n.to_owned(), t.copy())).collect()
        };
        let load = |t| Parameters::from_tensors(&config, t, Device::Cpu).map(|_| ()).unwrap_err().to_string();
        let mut missing = tensors();
        missing.remove("transformer.ln_f.bias");
        assert_eq!(load(missing), "tensor transformer.ln_f.bias is missing");
        let mut wrong = tensors();
        wrong.insert("transformer.ln_f.bias".into(), Tensor::zeros([33], (Kind::Float, Device::Cpu)));
        assert_eq!(load(wrong), "tensor transformer.ln_f.bias has shape [33], but config.json requires [32]");
        let mut whole = tensors();
        whole.insert("transformer.ln_f.bias".into(), Tensor::zeros([32], (Kind::Int, Device::Cpu)));
        assert!(load(whole).starts_with("tensor transformer.ln_f.bias has type Int: weights must be"));
        let mut broken = tensors();
        broken.insert("transformer.ln_f.bias".into(), Tensor::full([32], f64::NAN, (Kind::Float, Device::Cpu)));
        assert!(load(broken).starts_with("tensor transformer.ln_f.bias holds NaN or infinity"));
        let mut extra = tensors();
        extra.insert("lm_head.weight".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        extra.insert("transformer.h.1.ln_1.bias".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu)));
        assert!(load(extra).starts_with("tensor transformer.h.1.ln_1.bias is not part of this model"));
    }
}
