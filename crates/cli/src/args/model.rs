//! The arguments of every command that computes with a model.

use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use evals::Tokenizer;
use model::{LanguageModel, ModelConfig, SENSE_TABLE_FILE};
use trainer::LocalRanks;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceName {
    /// A GPU where one can be used, else the CPU.
    Auto,
    Cpu,
    Cuda,
}

#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// A model folder (config.json and model.safetensors) or a training checkpoint
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    machine: DeviceArgs,
}

/// How a model's words are found, and what is changed of their senses.
#[derive(Debug, Args)]
pub(crate) struct TextArgs {
    /// The tokenizer.json to use [default: the model folder's, then data/gpt2/tokenizer.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Edit senses first: a JSON file (docs/senses.md)
    #[arg(long, value_name = "FILE")]
    edit: Option<PathBuf>,
}

impl TextArgs {
    /// The tokenizer of a model that came from `folder`.
    fn tokenizer(&self, folder: &Path, config: &ModelConfig) -> Result<Tokenizer> {
        Tokenizer::for_model(self.tokenizer.as_deref(), folder, config)
    }

    /// Edits the model that came from `folder`, where that is asked for.
    pub(crate) fn edit(&self, model: &mut LanguageModel, folder: &Path) -> Result<()> {
        let Some(path) = &self.edit else { return Ok(()) };
        let edits = evals::read_edits(path, || self.tokenizer(folder, model.config()))?;
        model.edit(&edits).with_context(|| format!("the edits of {} do not fit the model", path.display()))
    }
}

#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Where to compute
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceName,
    /// CPU threads; 0 for the physical cores by the local ranks
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl ModelArgs {
    /// Loads the model, edited where that is asked for; a checkpoint's files are checked against their hashes first.
    pub(crate) fn load(&self) -> Result<LanguageModel> {
        let mut model = self.machine.load(&self.model)?;
        self.text.edit(&mut model, &self.model)?;
        Ok(model)
    }

    /// The same, with senses from the folder's table where it has one.
    pub(crate) fn load_with_sense_table(&self) -> Result<LanguageModel> {
        let mut model = self.machine.load(&self.model)?;
        let table = self.model.join(SENSE_TABLE_FILE);
        if table.is_file() {
            model.use_sense_table(&table)?;
        }
        self.text.edit(&mut model, &self.model)?;
        Ok(model)
    }

    /// The tokenizer of the model that was loaded.
    pub(crate) fn tokenizer(&self, model: &LanguageModel) -> Result<Tokenizer> {
        self.text.tokenizer(&self.model, model.config())
    }

    /// The tokenizer to name ids by, where one is at hand.
    pub(crate) fn tokenizer_for_names(&self, model: &LanguageModel) -> Result<Option<Tokenizer>> {
        // Of the project's it does not matter why it is of no use.
        Ok(self.own_tokenizer()?.or_else(|| self.tokenizer(model).ok()))
    }

    /// A tokenizer that is surely the model's, where there is one: ids may be another vocabulary's than the project's.
    pub(crate) fn own_tokenizer(&self) -> Result<Option<Tokenizer>> {
        Tokenizer::path_in_model(self.text.tokenizer.as_deref(), &self.model)
            .map(|path| Tokenizer::open(&path))
            .transpose()
    }
}

impl DeviceArgs {
    pub(crate) fn load(&self, folder: &Path) -> Result<LanguageModel> {
        let local = LocalRanks::from_environment()?;
        trainer::set_threads(self.threads, true, local)?;
        let device = match self.device {
            DeviceName::Auto => trainer::DeviceKind::Auto,
            DeviceName::Cpu => trainer::DeviceKind::Cpu,
            DeviceName::Cuda => trainer::DeviceKind::Cuda,
        };
        let device = trainer::select_device(device, local)?;
        trainer::verify_model(folder)?;
        model::load_model(folder, device)
    }
}

/// A count from a command line.
///
/// # Errors
/// When it is none, or 0.
pub(crate) fn at_least_one<T: FromStr<Err = ParseIntError> + Default + PartialEq>(text: &str) -> Result<T> {
    let count = text.parse().context("it is no whole number")?;
    ensure!(count != T::default(), "it must be at least 1");
    Ok(count)
}

/// Ids from a command line: whole numbers with commas between them.
///
/// # Errors
/// Naming what is none.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<i64>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let id = |word: &str| {
        word.trim().parse().with_context(|| format!("\"{word}\" is no id: give whole numbers, as in 1,2,3"))
    };
    text.split(',').map(id).collect()
}
