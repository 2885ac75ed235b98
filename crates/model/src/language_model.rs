//! A network with its output head: logits and the training loss.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor};
use torch_ext::profiler::{Section, mark};

use crate::backpack::Backpack;
use crate::batch::TokenBatch;
use crate::config::{Architecture, ModelConfig};
use crate::gpt2::Gpt2;
use crate::layers::Weight;
use crate::ops::{ForwardOptions, Ops};
use crate::parameters::Parameters;
use crate::senses::edits::{EditedSenses, SenseEdit};
use crate::senses::table::{self, SenseTable};
use crate::tensor::is_finite;

/// A network without its output head.
#[derive(Debug)]
pub(crate) enum Network {
    Backpack(Box<Backpack>),
    Gpt2(Gpt2),
}

/// A Backpack or its GPT-2 baseline, with the output head.
#[derive(Debug)]
pub struct LanguageModel {
    config: ModelConfig,
    parameters: Parameters,
    network: Network,
    /// The token embedding `[V, D]`, which is the weight of the output head, too.
    head: Weight,
    /// See [`LanguageModel::evaluation_options`].
    evaluation: ForwardOptions,
}

impl LanguageModel {
    /// Creates the network over these parameters, which it shares.
    pub fn new(config: ModelConfig, parameters: Parameters) -> Self {
        let network = match config.architecture {
            Architecture::Backpack => Network::Backpack(Box::new(Backpack::new(&config, &parameters))),
            Architecture::Gpt2 => Network::Gpt2(Gpt2::new(&config, &parameters)),
        };
        let head = Weight::new(&parameters, &format!("{}.wte.weight", config.body_prefix()));
        LanguageModel { config, parameters, network, head, evaluation: ForwardOptions::evaluation() }
    }

    /// Creates a model from the tensors of a model file, including edits of senses.
    ///
    /// # Errors
    /// Names the tensor that is missing, has the wrong shape, or is not part of this model.
    pub(crate) fn from_tensors(
        config: ModelConfig,
        mut tensors: BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self> {
        let edited = match config.architecture {
            Architecture::Backpack => EditedSenses::take(&config, &mut tensors, device)?,
            Architecture::Gpt2 => None,
        };
        let parameters = Parameters::from_tensors(&config, tensors, device)?;
        let mut model = Self::new(config, parameters);
        if let Some(backpack) = model.backpack_mut() {
            backpack.set_edited(edited);
        }
        Ok(model)
    }

    /// Creates a model whose weights are drawn from `seed`.
    ///
    /// # Errors
    /// Names the key of `config` that is invalid.
    pub fn initialize(config: ModelConfig, seed: u64, device: Device) -> Result<Self> {
        config.validate()?;
        let parameters = Parameters::initialize(&config, seed, device);
        Ok(Self::new(config, parameters))
    }

    /// Keeps bf16 copies of the weights if forward passes with these options would otherwise
    /// convert the weights for each product. From then on, only an optimizer that also writes the
    /// copies ([`Parameters::low_precision_copy`]) may change the weights.
    pub fn with_low_precision_copies(self, options: ForwardOptions) -> Self {
        if !self.ops(options).reads_low_precision_copies() {
            return self;
        }
        let edited = self.backpack().and_then(Backpack::edited).map(EditedSenses::shallow_clone);
        let LanguageModel { config, mut parameters, evaluation, .. } = self;
        parameters.keep_low_precision_copies();
        let mut model = LanguageModel { evaluation, ..Self::new(config, parameters) };
        if let Some(backpack) = model.backpack_mut() {
            backpack.set_edited(edited);
        }
        model
    }

    /// Sets the type of matrix products of [`LanguageModel::evaluation_options`], and keeps bf16
    /// copies of the weights if they are read. Keeps edits of senses, but not a sense table: call it
    /// before [`LanguageModel::use_sense_table`].
    pub fn with_evaluation_kind(self, kind: Kind) -> Self {
        let evaluation = ForwardOptions { kind, ..self.evaluation };
        LanguageModel { evaluation, ..self.with_low_precision_copies(evaluation) }
    }

    /// Returns the settings of forward passes over texts in evaluation and generation:
    /// [`ForwardOptions::evaluation`], with the type of [`LanguageModel::with_evaluation_kind`].
    /// Sense vectors of single words, edits and sense tables are always computed in fp32.
    pub fn evaluation_options(&self) -> ForwardOptions {
        self.evaluation
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Changes the dropout in the configuration, which `config.json` records. The dropout of a
    /// forward pass is in [`ForwardOptions`].
    pub fn set_dropout(&mut self, dropout: f64) {
        self.config.dropout = dropout;
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The device of the weights.
    pub fn device(&self) -> Device {
        self.head.master().device()
    }

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The Backpack; `None` if the network is a GPT-2.
    pub fn backpack(&self) -> Option<&Backpack> {
        match &self.network {
            Network::Backpack(backpack) => Some(backpack),
            Network::Gpt2(_) => None,
        }
    }

    fn backpack_mut(&mut self) -> Option<&mut Backpack> {
        match &mut self.network {
            Network::Backpack(backpack) => Some(backpack),
            Network::Gpt2(_) => None,
        }
    }

    fn body(&self) -> &Gpt2 {
        match &self.network {
            Network::Backpack(backpack) => backpack.body(),
            Network::Gpt2(body) => body,
        }
    }

    /// Compiles and loads the CUDA kernels of forward passes over sequences of `length` tokens with
    /// these options, which otherwise happens in the first pass. Returns one line per reason why
    /// kernels are not available. Does nothing for passes that use none, for example on the CPU.
    pub fn load_cuda_kernels(&self, options: ForwardOptions, length: i64) -> Vec<String> {
        self.ops(options).load_cuda_kernels(&self.config, length)
    }

    pub(crate) fn ops(&self, options: ForwardOptions) -> Ops {
        Ops::new(self.device(), options)
    }

    /// Outputs of the network, which the head multiplies: ids `[B, T]` int64 -> `[B, T, D]`.
    pub fn hidden(&self, ids: &Tensor, options: ForwardOptions) -> Tensor {
        let (size, ops) = (ids.size(), self.ops(options));
        self.outputs(&ops.shared_embedding(self.body().wte()), &ids.into(), ops).view([size[0], size[1], -1])
    }

    /// [`LanguageModel::hidden`] as rows `[B T, D]`, with the shared embedding `wte` `[V, D]`.
    fn outputs(&self, wte: &Tensor, batch: &TokenBatch, ops: Ops) -> Tensor {
        match &self.network {
            Network::Backpack(backpack) => backpack.outputs(wte, batch, ops),
            Network::Gpt2(body) => {
                mark(&body.hidden_states(wte, batch.ids(), ops), Section::Body, Section::HeadAndLossBackward)
            }
        }
    }

    /// The output head: `[.., D]` -> logits `[.., V]` fp32, including the padding of the
    /// vocabulary.
    pub fn head(&self, hidden: &Tensor, options: ForwardOptions) -> Tensor {
        self.output_head(hidden, self.ops(options))
    }

    pub(crate) fn output_head(&self, hidden: &Tensor, ops: Ops) -> Tensor {
        ops.logits(hidden, &self.head)
    }

    /// Logits: ids `[B, T]` int64 -> `[B, T, V]` fp32.
    pub fn logits(&self, ids: &Tensor, options: ForwardOptions) -> Tensor {
        self.head(&self.hidden(ids, options), options)
    }

    /// Whether a forward pass with these options computes the senses of each distinct token once. A
    /// batch for it should contain the distinct tokens ([`crate::HostBatch::new`]).
    pub fn shares_senses(&self, options: ForwardOptions) -> bool {
        self.backpack().is_some() && self.ops(options).shares_senses()
    }

    /// Mean cross-entropy of predicting the targets `[B, T]` from a batch with ids `[B, T]` (a tensor
    /// or a [`TokenBatch`]), an fp32 scalar. Attention is not masked at document boundaries.
    ///
    /// # Errors
    /// A target is outside the vocabulary (found on the CPU only), or memory is exhausted while the
    /// loss is computed from the outputs of the network.
    ///
    /// # Panics
    /// Panics if an id is outside the vocabulary or memory is exhausted in the network, as the
    /// methods of tch do.
    pub fn loss(&self, batch: impl Into<TokenBatch>, targets: &Tensor, options: ForwardOptions) -> Result<Tensor> {
        let ops = self.ops(options);
        let wte = ops.shared_embedding(self.body().wte());
        let outputs = self.outputs(&wte, &batch.into(), ops);
        ops.cross_entropy(&outputs, &self.head, &wte, &targets.flatten(0, 1))
    }

    /// Returns a model with the same weights, edits and evaluation options, except for one
    /// parameter.
    ///
    /// # Errors
    /// Returns an error if the model has no such parameter or its shape differs.
    pub fn with_parameter(&self, name: &str, value: Tensor) -> Result<Self> {
        ensure!(self.parameters.iter().any(|(own, _)| own == name), "the model has no parameter {name}");
        let mut tensors: BTreeMap<String, Tensor> =
            self.parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.detach())).collect();
        tensors.extend(self.edited_tensors().into_iter().map(|(name, tensor)| (name.to_owned(), tensor)));
        tensors.insert(name.to_owned(), value);
        let model = Self::from_tensors(self.config.clone(), tensors, self.device())?;
        Ok(model.with_evaluation_kind(self.evaluation.kind))
    }

    /// Returns an error for ids that do not fit into one forward pass.
    ///
    /// # Errors
    /// There are no ids, more than `n_positions`, or an id outside the vocabulary; the message
    /// names the id and its position.
    pub fn check_ids(&self, ids: &[i64]) -> Result<()> {
        let (vocab_size, context) = (self.config.vocab_size, self.config.n_positions);
        ensure!(!ids.is_empty(), "there are no tokens: give at least one");
        if let Some((position, id)) = ids.iter().enumerate().find(|(_, id)| !(0..vocab_size).contains(id)) {
            bail!(
                "id {id} at position {position} is outside the model's vocabulary of {vocab_size} (0 to {})",
                vocab_size - 1
            );
        }
        ensure!(
            ids.len() as i64 <= context,
            "{} tokens are more than the model's context of {context} (n_positions): give fewer",
            ids.len()
        );
        Ok(())
    }
}

/// Edits of senses.
impl LanguageModel {
    /// The ids of the tokens whose senses are edited, in increasing order.
    pub fn edited_tokens(&self) -> &[i64] {
        self.backpack().and_then(Backpack::edited).map_or(&[], EditedSenses::tokens)
    }

    /// The tensors that record the edits in a model file.
    pub(crate) fn edited_tensors(&self) -> Vec<(&'static str, Tensor)> {
        self.backpack().and_then(Backpack::edited).map(|edited| edited.tensors().into()).unwrap_or_default()
    }

    /// Edits senses, in addition to earlier edits.
    ///
    /// # Errors
    /// The model is a GPT-2, or an edit has a token, sense or vector length that the model does not
    /// have.
    pub fn edit(&mut self, edits: &[SenseEdit]) -> Result<()> {
        let (config, device) = (self.config.clone(), self.device());
        let ops = self.ops(ForwardOptions::evaluation());
        let backpack = self.backpack_mut().context("a GPT-2 has no senses to edit: give a Backpack")?;
        let senses = |tokens: &Tensor| {
            let senses = tch::no_grad(|| backpack.senses_of_tokens(tokens, ops));
            senses.view([-1, config.num_senses, config.n_embd])
        };
        let edited = EditedSenses::compile(&config, edits, backpack.edited(), senses, device)?;
        backpack.set_edited(Some(edited));
        Ok(())
    }

    /// Calls `f` with the model under additional edits, and removes these edits afterward.
    ///
    /// # Errors
    /// Returns the error of [`LanguageModel::edit`] or of `f`.
    pub fn with_edits<R>(&mut self, edits: &[SenseEdit], f: impl FnOnce(&LanguageModel) -> Result<R>) -> Result<R> {
        if edits.is_empty() {
            return f(self);
        }
        let before = self.backpack().and_then(Backpack::edited).map(EditedSenses::shallow_clone);
        let result = self.edit(edits).and_then(|()| f(self));
        if let Some(backpack) = self.backpack_mut() {
            backpack.set_edited(before);
        }
        result
    }
}

/// Number of tokens whose senses are computed at once for a table: 1,024 x 16 x 768 fp32 take 50
/// MB.
const TABLE_CHUNK_TOKENS: i64 = 1_024;
/// Number of rows of a table that are compared with the sense network.
const TABLE_SAMPLE_ROWS: i64 = 16;

/// The table of all senses.
impl LanguageModel {
    /// Writes the senses of all tokens, `[V, L, D]` in `kind`, to a file. Calls `progress` with the
    /// number of completed tokens.
    ///
    /// # Errors
    /// The model is a GPT-2, a sense is too large for `kind`, or the file cannot be written.
    pub fn write_sense_table(&self, path: &Path, kind: Kind, progress: &mut dyn FnMut(i64)) -> Result<()> {
        let backpack = self.backpack().context("a GPT-2 has no senses: only a Backpack's can be written as a table")?;
        let (config, ops) = (self.config(), self.ops(ForwardOptions::evaluation()));
        let chunks = (0..config.vocab_size).step_by(TABLE_CHUNK_TOKENS as usize).map(|first| {
            progress(first);
            let end = (first + TABLE_CHUNK_TOKENS).min(config.vocab_size);
            let tokens = Tensor::arange_start(first, end, (Kind::Int64, self.device()));
            let senses = tch::no_grad(|| backpack.senses_of_tokens(&tokens, ops)).to_kind(kind);
            ensure!(is_finite(&senses), "a sense is too large for {kind:?}: export with --dtype fp32");
            Ok(senses)
        });
        table::write(path, config, kind, chunks)
    }

    /// Replaces the sense network by a table that was written for this model. Edits still apply.
    /// For evaluation only: no gradient passes through the table.
    ///
    /// # Errors
    /// The model is a GPT-2, the table cannot be read, or it has the senses of other weights.
    pub fn use_sense_table(&mut self, path: &Path) -> Result<()> {
        let table =
            SenseTable::open(path, self.config()).with_context(|| format!("{} is not usable", path.display()))?;
        let (vocab_size, device) = (self.config().vocab_size, self.device());
        let ops = self.ops(ForwardOptions::evaluation());
        let backpack = self.backpack_mut().context("a GPT-2 has no senses: remove the table")?;
        // Rows from the whole vocabulary show whether the table belongs to this model.
        let sample: Vec<i64> = (0..TABLE_SAMPLE_ROWS).map(|i| i * (vocab_size - 1) / (TABLE_SAMPLE_ROWS - 1)).collect();
        let sample = Tensor::from_slice(&sample).to_device(device);
        let computed = tch::no_grad(|| backpack.senses_of_tokens(&sample, ops));
        let stored = table.rows(&sample).to_device(device).to_kind(Kind::Float);
        let scale = computed.abs().max().double_value(&[]);
        let difference = (computed - stored).abs().max().double_value(&[]);
        // Sums differ between machines, and bf16 has eight bits.
        let tolerance = if table.kind() == Kind::Float { 1e-4 } else { 4e-3 };
        ensure!(
            difference <= tolerance * scale,
            "{} holds the senses of other weights than this model's: export it again with --senses, or remove it",
            path.display()
        );
        backpack.set_table(table);
        Ok(())
    }
}
