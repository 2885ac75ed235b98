//! A network with its tied head: logits and the training loss.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Reduction, Tensor};
use torch_ext::ProductWeight;
use torch_ext::profiler::mark;

use crate::backpack::Backpack;
use crate::config::{self, ModelConfig};
use crate::gpt2::Gpt2;
use crate::layers::{ForwardOptions, Kernels, Weight, sure};
use crate::parameters::Parameters;
use crate::senses::edits::{EditedSenses, SenseEdit};

/// The two networks.
#[derive(Debug)]
pub(crate) enum Network {
    Backpack(Box<Backpack>),
    Gpt2(Gpt2),
}

/// A Backpack or its GPT-2 baseline, ready to be trained or asked.
#[derive(Debug)]
pub struct LanguageModel {
    config: ModelConfig,
    parameters: Parameters,
    network: Network,
    /// The tied embedding, `[V, D]`.
    head: Weight,
}

/// Rows of logits that exist at once in training: 512 x 50,264 bf16 are 51 MB. On two cores
/// 1,024 were up to 3% faster, for the weight's gradient is summed once a chunk.
pub const LOGIT_ROWS: i64 = 512;

impl LanguageModel {
    /// The network over given parameters, which it shares.
    pub fn new(config: ModelConfig, parameters: Parameters) -> Self {
        let network = match config.architecture {
            config::Architecture::Backpack => Network::Backpack(Box::new(Backpack::new(&config, &parameters))),
            config::Architecture::Gpt2 => Network::Gpt2(Gpt2::new(&config, &parameters)),
        };
        let head = Weight::new(&parameters, &format!("{}.wte.weight", config.body_prefix()));
        LanguageModel { config, parameters, network, head }
    }

    /// The network over the tensors of a model's file, edits of its senses included.
    ///
    /// # Errors
    /// Naming the tensor that is missing, of the wrong shape, or not of this model.
    pub(crate) fn from_tensors(
        config: ModelConfig,
        mut tensors: BTreeMap<String, Tensor>,
        device: Device,
    ) -> Result<Self> {
        let edited = match config.architecture {
            config::Architecture::Backpack => EditedSenses::take(&config, &mut tensors, device)?,
            config::Architecture::Gpt2 => None,
        };
        let parameters = Parameters::from_tensors(&config, tensors, device)?;
        let mut model = Self::new(config, parameters);
        if let Some(backpack) = model.backpack_mut() {
            backpack.set_edited(edited);
        }
        Ok(model)
    }

    /// Keeps bf16 copies of the weights where this pass would make them anew for each product:
    /// fused kernels in bf16 on the CPU. From then on only an optimiser that rewrites them
    /// ([`Parameters::copy_of`]) may change the weights.
    pub fn prepare_for(self, pass: ForwardOptions) -> Self {
        if pass.kind != Kind::BFloat16 || !pass.is_fused_on(self.device()) {
            return self;
        }
        let LanguageModel { config, mut parameters, .. } = self;
        parameters.keep_copies();
        Self::new(config, parameters)
    }

    /// A fresh model, its weights drawn from `seed`.
    ///
    /// # Errors
    /// When the shapes make no network.
    pub fn initialise(config: ModelConfig, seed: u64, device: Device) -> Result<Self> {
        config.validate()?;
        let parameters = Parameters::initialise(&config, seed, device);
        Ok(Self::new(config, parameters))
    }

    /// Its shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Changes what its `config.json` says of dropout; a [`ForwardOptions`] carries what is done.
    pub fn set_dropout(&mut self, dropout: f64) {
        self.config.dropout = dropout;
    }

    /// Its weights.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The Backpack, where it is one.
    pub fn backpack(&self) -> Option<&Backpack> {
        match &self.network {
            Network::Backpack(backpack) => Some(backpack),
            Network::Gpt2(_) => None,
        }
    }

    pub(crate) fn backpack_mut(&mut self) -> Option<&mut Backpack> {
        match &mut self.network {
            Network::Backpack(backpack) => Some(backpack),
            Network::Gpt2(_) => None,
        }
    }

    /// Edits its senses, on top of what is edited already: from now on it computes with them.
    ///
    /// # Errors
    /// When it is a GPT-2, or an edit names a token or sense that it lacks or has a vector of another length.
    pub fn edit(&mut self, edits: &[SenseEdit]) -> Result<()> {
        let (config, device) = (self.config.clone(), self.device());
        let backpack = self.backpack_mut().context("a GPT-2 has no senses to edit: give a Backpack")?;
        let senses = |tokens: &Tensor| {
            let senses = tch::no_grad(|| backpack.word_senses(tokens, ForwardOptions::evaluation()));
            senses.view([-1, config.num_senses, config.n_embd])
        };
        let edited = EditedSenses::compile(&config, edits, backpack.edited(), senses, device)?;
        backpack.set_edited(Some(edited));
        Ok(())
    }

    /// What a model's file holds of its edits.
    pub(crate) fn edited_tensors(&self) -> Vec<(&'static str, Tensor)> {
        self.backpack().and_then(Backpack::edited).map(|edited| edited.tensors().into()).unwrap_or_default()
    }

    /// The same model, edits of its senses included, with another value of one parameter.
    ///
    /// # Errors
    /// When there is no such parameter, or it has another shape.
    pub fn with_parameter(&self, name: &str, value: Tensor) -> Result<Self> {
        ensure!(self.parameters.iter().any(|(own, _)| own == name), "the model has no parameter {name}");
        let mut tensors: BTreeMap<String, Tensor> =
            self.parameters.iter().map(|(name, tensor)| (name.to_owned(), tensor.detach())).collect();
        tensors.extend(self.edited_tensors().into_iter().map(|(name, tensor)| (name.to_owned(), tensor)));
        tensors.insert(name.to_owned(), value);
        Self::from_tensors(self.config.clone(), tensors, self.device())
    }

    /// What `f` makes of the model under further edits, which are gone after it.
    ///
    /// # Errors
    /// As [`LanguageModel::edit`], or what `f` says.
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

    pub(crate) fn network(&self) -> &Network {
        &self.network
    }

    /// The device of its weights.
    pub fn device(&self) -> Device {
        self.head.master().device()
    }

    /// What the head sees: `[B, T]` int64 -> `[B, T, D]`.
    pub fn hidden(&self, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        let size = ids.size();
        self.rows(&self.body().tied(pass), ids, pass).view([size[0], size[1], -1])
    }

    /// The same as rows, `[B T, D]`, of the embedding `wte`.
    fn rows(&self, wte: &Tensor, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        match &self.network {
            Network::Backpack(backpack) => backpack.forward(wte, ids, pass),
            Network::Gpt2(body) => mark(&body.forward_from(wte, ids, pass), "body", "head and loss backward"),
        }
    }

    fn body(&self) -> &Gpt2 {
        match &self.network {
            Network::Backpack(backpack) => backpack.body(),
            Network::Gpt2(body) => body,
        }
    }

    /// The head: `[.., D]` -> `[.., V]` fp32, padding rows included.
    pub fn head(&self, hidden: &Tensor, pass: ForwardOptions) -> Tensor {
        let hidden = hidden.to_kind(pass.kind);
        if !pass.is_fused_on(hidden.device()) {
            return hidden.linear::<Tensor>(&self.head.cast(pass), None).to_kind(Kind::Float);
        }
        let (mut shape, rows) = (hidden.size(), hidden.reshape([-1, self.config.n_embd]));
        let logits = sure(self.head.with(pass, |head| torch_ext::linear(&rows, head, true)));
        shape.pop();
        shape.push(self.config.vocab_size);
        logits.view(shape.as_slice()).to_kind(Kind::Float)
    }

    /// `[B, T]` int64 -> logits `[B, T, V]` fp32.
    pub fn logits(&self, ids: &Tensor, pass: ForwardOptions) -> Tensor {
        self.head(&self.hidden(ids, pass), pass)
    }

    /// Mean cross-entropy over every position of `ids [B, T]` predicting `targets [B, T]`,
    /// an fp32 scalar. No document mask.
    ///
    /// # Errors
    /// When libtorch refuses, for instance for lack of memory.
    pub fn loss(&self, ids: &Tensor, targets: &Tensor, pass: ForwardOptions) -> Result<Tensor> {
        let wte = self.body().tied(pass);
        let hidden = self.rows(&wte, ids, pass);
        let targets = targets.flatten(0, 1);
        Ok(match pass.kernels {
            Kernels::Reference => {
                let none: Option<Tensor> = None;
                self.head(&hidden, pass).f_cross_entropy_loss(&targets, none, Reduction::Mean, -100, 0.0)?
            }
            Kernels::Fused => {
                let hidden = hidden.to_kind(pass.kind);
                self.head.with(pass, |head| {
                    let head = ProductWeight { master: &wte, ..head };
                    torch_ext::linear_cross_entropy(&hidden, head, &targets, LOGIT_ROWS)
                })?
            }
        })
    }

    /// Refuses ids that the model cannot take in one pass.
    ///
    /// # Errors
    /// When there are none, more than `n_positions`, or one outside the vocabulary, which
    /// is named with its place.
    pub fn check_ids(&self, ids: &[i64]) -> Result<()> {
        let (vocab_size, context) = (self.config.vocab_size, self.config.n_positions);
        ensure!(!ids.is_empty(), "there are no tokens: give at least one");
        if let Some((place, id)) = ids.iter().enumerate().find(|(_, id)| !(0..vocab_size).contains(id)) {
            bail!(
                "id {id} at place {place} is outside the model's vocabulary of {vocab_size} (0 to {})",
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
