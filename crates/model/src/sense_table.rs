//! The senses of every word of the vocabulary, made once: a table `[V, L, D]` in a file beside the weights, of which
//! only the rows that a text needs are read. It stands where the sense network would.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::{Kind, Tensor};
use torch_ext::MappedFile;

use crate::config::ModelConfig;
use crate::language_model::LanguageModel;
use crate::layers::ForwardOptions;
use crate::safetensors::{TensorLocation, place_of, write_rows};
use crate::tensor::is_finite;

/// The table's file in a model folder.
pub const SENSES_FILE: &str = "senses.safetensors";
/// Its one tensor.
const TENSOR: &str = "senses";
/// Words whose senses are made at once: 1,024 x 16 x 768 fp32 are 50 MB.
const WORDS: i64 = 1_024;
/// Rows that are held against the network when a table is taken.
const SAMPLED: i64 = 16;

/// A table on disk, mapped.
#[derive(Debug)]
pub(crate) struct SenseTable {
    file: MappedFile,
    place: TensorLocation,
    row_bytes: usize,
}

impl SenseTable {
    fn open(path: &Path, config: &ModelConfig) -> Result<Self> {
        let place = place_of(path, TENSOR)?;
        let shape = [config.vocab_size, config.num_senses, config.n_embd];
        ensure!(
            place.shape == shape && matches!(place.kind, Kind::Float | Kind::BFloat16 | Kind::Half),
            "it holds {:?} of {:?}, but this model's senses are floating-point numbers of {shape:?}",
            place.kind,
            place.shape
        );
        let row_bytes = (config.num_senses * config.n_embd) as usize * place.kind.elt_size_in_bytes();
        Ok(SenseTable { file: MappedFile::open(path)?, place, row_bytes })
    }

    /// The senses of `words [U]`, ids below V: `[U, L D]` of the table's type, on the CPU.
    pub(crate) fn rows(&self, words: &Tensor) -> Tensor {
        let ids: Vec<i64> = Vec::try_from(words).unwrap_or_default();
        let mut bytes = Vec::with_capacity(ids.len() * self.row_bytes);
        for id in &ids {
            let start = self.place.start + *id as usize * self.row_bytes;
            bytes.extend_from_slice(&self.file[start..start + self.row_bytes]);
        }
        let width = self.place.shape[1] * self.place.shape[2];
        Tensor::from_data_size(&bytes, &[ids.len() as i64, width], self.place.kind)
    }
}

impl LanguageModel {
    /// Writes the senses of every id as `[V, L, D]` in `kind`; `progress` hears how many words are done.
    ///
    /// # Errors
    /// When the model is a GPT-2, or the file cannot be written.
    pub fn write_sense_table(&self, path: &Path, kind: Kind, progress: &mut dyn FnMut(i64)) -> Result<()> {
        let backpack = self.backpack().context("a GPT-2 has no senses: only a Backpack's can be written as a table")?;
        let config = self.config();
        let shape = [config.vocab_size, config.num_senses, config.n_embd];
        let chunks = (0..config.vocab_size).step_by(WORDS as usize).map(|first| {
            progress(first);
            let words =
                Tensor::arange_start(first, (first + WORDS).min(config.vocab_size), (Kind::Int64, self.device()));
            let senses = tch::no_grad(|| backpack.word_senses(&words, ForwardOptions::evaluation())).to_kind(kind);
            ensure!(is_finite(&senses), "a sense is too large for {kind:?}: export with --dtype fp32");
            Ok(senses)
        });
        write_rows(path, TENSOR, &shape, kind, chunks)
    }

    /// From now on the senses are the rows of this table, which must have been written for this model; edits go on
    /// top. For evaluation alone: nothing is learned through it.
    ///
    /// # Errors
    /// When it cannot be read, or holds the senses of other weights.
    pub fn use_sense_table(&mut self, path: &Path) -> Result<()> {
        let table =
            SenseTable::open(path, self.config()).with_context(|| format!("{} is not usable", path.display()))?;
        let (vocab_size, device) = (self.config().vocab_size, self.device());
        let backpack = self.backpack_mut().context("a GPT-2 has no senses: leave the table out")?;
        // Rows from all over the vocabulary tell whether it is this model's.
        let sample: Vec<i64> = (0..SAMPLED).map(|i| i * (vocab_size - 1) / (SAMPLED - 1)).collect();
        let sample = Tensor::from_slice(&sample).to_device(device);
        let made = tch::no_grad(|| backpack.word_senses(&sample, ForwardOptions::evaluation()));
        let kept = table.rows(&sample).to_device(device).to_kind(Kind::Float);
        let scale = made.abs().max().double_value(&[]);
        let off = (made - kept).abs().max().double_value(&[]);
        // What another machine's sums, or the eight bits of bf16, are off by.
        let tolerance = if table.place.kind == Kind::Float { 1e-4 } else { 4e-3 };
        ensure!(
            off <= tolerance * scale,
            "{} holds the senses of other weights than this model's: export it again with --senses, or remove it",
            path.display()
        );
        backpack.use_table(table);
        Ok(())
    }
}
