//! The senses of the whole vocabulary as a table `[V, L, D]` in a file of the model directory. It
//! replaces the sense network, and only the rows that a text needs are read.

use std::path::Path;

use anyhow::{Result, ensure};
use tch::{Kind, Tensor};
use torch_ext::MappedFile;

use crate::config::ModelConfig;
use crate::safetensors::{TensorLocation, locate_tensor, write_rows};

/// Name of the sense table in a model directory.
pub const SENSE_TABLE_FILE: &str = "senses.safetensors";
/// Name of the only tensor in the file.
const TENSOR: &str = "senses";

/// A sense table on disk, memory-mapped.
#[derive(Debug)]
pub(crate) struct SenseTable {
    file: MappedFile,
    location: TensorLocation,
    row_bytes: usize,
}

impl SenseTable {
    /// Opens the table of a model with this configuration.
    ///
    /// # Errors
    /// The file cannot be read, or its tensor has another shape or type.
    pub(crate) fn open(path: &Path, config: &ModelConfig) -> Result<Self> {
        let location = locate_tensor(path, TENSOR)?;
        let shape = shape(config);
        ensure!(
            location.shape == shape && matches!(location.kind, Kind::Float | Kind::BFloat16 | Kind::Half),
            "it holds {:?} of {:?}, but this model's senses are floating-point numbers of {shape:?}",
            location.kind,
            location.shape
        );
        let row_bytes = (config.num_senses * config.n_embd) as usize * location.kind.elt_size_in_bytes();
        Ok(SenseTable { file: MappedFile::open(path)?, location, row_bytes })
    }

    /// The type of the stored values.
    pub(crate) fn kind(&self) -> Kind {
        self.location.kind
    }

    /// Returns the senses of tokens `[U]`, whose ids are below V: `[U, L D]` in the type of the
    /// table, on the CPU.
    pub(crate) fn rows(&self, tokens: &Tensor) -> Tensor {
        let ids: Vec<i64> = Vec::try_from(tokens).unwrap_or_default();
        let mut bytes = Vec::with_capacity(ids.len() * self.row_bytes);
        for id in &ids {
            let start = self.location.start + *id as usize * self.row_bytes;
            bytes.extend_from_slice(&self.file[start..start + self.row_bytes]);
        }
        let width = self.location.shape[1] * self.location.shape[2];
        Tensor::from_data_size(&bytes, &[ids.len() as i64, width], self.location.kind)
    }
}

/// Writes a table from chunks of its rows, in order.
///
/// # Errors
/// Returns the error of a chunk, or names the file that cannot be written.
pub(crate) fn write(
    path: &Path,
    config: &ModelConfig,
    kind: Kind,
    chunks: impl Iterator<Item = Result<Tensor>>,
) -> Result<()> {
    write_rows(path, TENSOR, &shape(config), kind, chunks)
}

fn shape(config: &ModelConfig) -> [i64; 3] {
    [config.vocab_size, config.num_senses, config.n_embd]
}
