//! Arguments of the commands that load a model.

use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use evals::Tokenizer;
use model::{LanguageModel, ModelConfig, SENSE_TABLE_FILE};
use trainer::{LocalRanks, Precision};

#[derive(Debug, Clone, Copy, ValueEnum)]
enum DeviceName {
    /// A GPU if one is usable, otherwise the CPU
    Auto,
    /// The CPU
    Cpu,
    /// The GPU; an error if none is usable
    Cuda,
}

/// The type of matrix products in evaluation.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum EvalPrecision {
    /// fp32 products, without TF32 on a GPU
    Fp32,
    /// bfloat16 products, which are faster on a GPU and on CPUs with AMX or AVX-512 BF16
    Bf16,
}

/// The model directory with its tokenizer, sense edits, device and precision.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// Model directory (config.json and model.safetensors) or training checkpoint
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) text: TextArgs,
    #[command(flatten)]
    device: DeviceArgs,
    /// Type of matrix products in passes over texts. Sense vectors of single words are always
    /// computed in fp32
    #[arg(long, value_enum, default_value = "fp32")]
    precision: EvalPrecision,
}

/// The tokenizer and the sense edits.
#[derive(Debug, Args)]
pub(crate) struct TextArgs {
    /// Tokenizer file [default: tokenizer.json of the model directory, else
    /// data/gpt2/tokenizer.json]
    #[arg(long, value_name = "FILE")]
    pub(crate) tokenizer: Option<PathBuf>,
    /// Apply the sense edits of this JSON file to the model; docs/senses.md describes the format
    #[arg(long, value_name = "FILE")]
    edit: Option<PathBuf>,
}

impl TextArgs {
    /// Opens the tokenizer of the model in `model_dir`.
    fn tokenizer(&self, model_dir: &Path, config: &ModelConfig) -> Result<Tokenizer> {
        Tokenizer::for_model(self.tokenizer.as_deref(), model_dir, config)
    }

    /// Applies the edits of `--edit`, if given, to the model of `model_dir`.
    pub(crate) fn apply_edits(&self, model: &mut LanguageModel, model_dir: &Path) -> Result<()> {
        let Some(path) = &self.edit else { return Ok(()) };
        let edits = evals::read_edits(path, || self.tokenizer(model_dir, model.config()))?;
        model.edit(&edits).with_context(|| format!("cannot apply the edits of {}", path.display()))
    }
}

/// The device and the number of CPU threads.
#[derive(Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Device to compute on
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceName,
    /// CPU threads; 0: all physical cores, shared among the processes on this machine
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
}

impl ModelArgs {
    /// Loads the model with the given precision and applies `--edit`. The files of a checkpoint are
    /// first checked against their hashes.
    pub(crate) fn load(&self) -> Result<LanguageModel> {
        let mut model = self.load_unedited()?;
        self.text.apply_edits(&mut model, &self.model)?;
        Ok(model)
    }

    /// Loads the model, which must be a Backpack, and applies `--edit`.
    pub(crate) fn load_backpack(&self) -> Result<LanguageModel> {
        let model = self.load()?;
        ensure!(
            model.backpack().is_some(),
            "{} is a GPT-2, which has no senses: choose a Backpack",
            self.model.display()
        );
        Ok(model)
    }

    /// Loads the model as [`ModelArgs::load`] does, but reads the senses from the sense table if
    /// the model directory has one.
    pub(crate) fn load_with_sense_table(&self) -> Result<LanguageModel> {
        let mut model = self.load_unedited()?;
        let table = self.model.join(SENSE_TABLE_FILE);
        if table.is_file() {
            model.use_sense_table(&table)?;
        }
        self.text.apply_edits(&mut model, &self.model)?;
        Ok(model)
    }

    fn load_unedited(&self) -> Result<LanguageModel> {
        Ok(self.device.load(&self.model)?.with_evaluation_kind(self.precision().kind()))
    }

    /// The value of `--precision`.
    pub(crate) fn precision(&self) -> Precision {
        match self.precision {
            EvalPrecision::Fp32 => Precision::Fp32,
            EvalPrecision::Bf16 => Precision::Bf16,
        }
    }

    /// Opens the tokenizer of the loaded model.
    pub(crate) fn tokenizer(&self, model: &LanguageModel) -> Result<Tokenizer> {
        self.text.tokenizer(&self.model, model.config())
    }

    /// Opens a tokenizer to display ids with, if there is a usable one.
    pub(crate) fn tokenizer_for_names(&self, model: &LanguageModel) -> Result<Option<Tokenizer>> {
        // An unusable default tokenizer is not an error: ids are displayed instead.
        Ok(self.own_tokenizer()?.or_else(|| self.tokenizer(model).ok()))
    }

    /// Opens the tokenizer of `--tokenizer` or of the model directory, if there is one. The default
    /// tokenizer is not used, because the ids may belong to another vocabulary.
    pub(crate) fn own_tokenizer(&self) -> Result<Option<Tokenizer>> {
        Tokenizer::path_in_model(self.text.tokenizer.as_deref(), &self.model)
            .map(|path| Tokenizer::open(&path))
            .transpose()
    }
}

impl DeviceArgs {
    /// Sets the threads, selects the device and loads the model of `model_dir`. The files of a
    /// checkpoint are first checked against their hashes.
    pub(crate) fn load(&self, model_dir: &Path) -> Result<LanguageModel> {
        let local = LocalRanks::from_environment()?;
        trainer::set_threads(self.threads, true, local)?;
        let device = match self.device {
            DeviceName::Auto => trainer::DeviceKind::Auto,
            DeviceName::Cpu => trainer::DeviceKind::Cpu,
            DeviceName::Cuda => trainer::DeviceKind::Cuda,
        };
        let device = trainer::select_device(device, local)?;
        trainer::verify_model(model_dir)?;
        model::load_model(model_dir, device)
    }
}

/// Parses a whole number of at least 1.
///
/// # Errors
/// If the text is not a whole number, or 0.
pub(crate) fn at_least_one<T: FromStr<Err = ParseIntError> + Default + PartialEq>(text: &str) -> Result<T> {
    let count = text.parse().context("not a whole number")?;
    ensure!(count != T::default(), "must be at least 1");
    Ok(count)
}

/// Parses token ids separated by commas.
///
/// # Errors
/// If a part is not a whole number; the error names it.
pub(crate) fn parse_ids(text: &str) -> Result<Vec<i64>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let id = |word: &str| {
        word.trim().parse().with_context(|| format!("\"{word}\" is not a token id: give whole numbers, as in 1,2,3"))
    };
    text.split(',').map(id).collect()
}
