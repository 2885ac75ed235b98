//! The command `dump`.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use model::write_tensors;
use tch::{Kind, Tensor};

use crate::args::model::{ModelArgs, parse_ids};

/// Write a model's logits, contextualization weights and senses for a text to a file
///
/// The safetensors file holds the fp32 tensors logits [T, V], contextualization [L, T, T] and
/// senses [T, L, D], and the int64 tensor ids [T]. For a GPT-2 it holds only logits and ids. T is
/// the number of tokens, V the vocabulary size, L the number of senses and D the width. With
/// --precision bf16 the values have the accuracy of bf16 products.
///
/// Example: backpack dump --model runs/quickstart-model --ids 1,2,3 --output runs/dump.safetensors
#[derive(Debug, Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    input: DumpInput,
    /// File to write
    #[arg(long, value_name = "F.safetensors")]
    output: PathBuf,
}

/// The input: exactly one of the flags.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct DumpInput {
    /// Text to compute
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Token ids to compute, separated by commas; needs no tokenizer
    #[arg(long, value_name = "1,2,3", allow_hyphen_values = true)]
    ids: Option<String>,
    /// File of token ids to compute (uint16, little-endian)
    #[arg(long, value_name = "F.bin")]
    ids_file: Option<PathBuf>,
}

impl Dump {
    /// Computes the tensors and writes them.
    pub(crate) fn run(self) -> Result<()> {
        let model = self.model.load()?;
        let ids = match (&self.input.text, &self.input.ids, &self.input.ids_file) {
            (Some(text), _, _) => self.model.tokenizer(&model)?.encode(text)?,
            (_, Some(ids), _) => parse_ids(ids)?,
            (_, _, Some(path)) => read_ids(path, model.config().n_positions as u64)?,
            _ => Vec::new(),
        };
        model.check_ids(&ids)?;
        let row = Tensor::from_slice(&ids);
        let input = row.unsqueeze(0).to_device(model.device());
        let options = model.evaluation_options();
        let tensors = tch::no_grad(|| {
            let mut tensors = vec![("ids", row)];
            let hidden = match model.backpack() {
                Some(backpack) => {
                    let weights = backpack.contextualization(&input, options);
                    let senses = backpack.senses(&input, options);
                    let hidden = backpack.combine_senses(&weights, &senses, options);
                    tensors.push(("contextualization", weights.get(0)));
                    tensors.push(("senses", senses.get(0).to_kind(Kind::Float)));
                    hidden
                }
                None => model.hidden(&input, options),
            };
            tensors.push(("logits", model.head(&hidden, options).get(0).to_kind(Kind::Float)));
            tensors
        });
        if let Some(parent) = self.output.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        write_tensors(&self.output, tensors.iter().map(|(name, tensor)| (*name, tensor)))
    }
}

/// Reads token ids, at most `context` of them: a wrong path may name a file of any size.
fn read_ids(path: &Path, context: u64) -> Result<Vec<i64>> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(2 * (context + 1)).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read the ids file {}", path.display()))?;
    ensure!(
        bytes.len() as u64 <= 2 * context,
        "the ids file {} has more ids than the model's context of {context} (n_positions)",
        path.display()
    );
    ensure!(
        bytes.len() % 2 == 0,
        "the ids file {} has {} bytes: a file of uint16 ids has an even number of bytes",
        path.display(),
        bytes.len()
    );
    Ok(bytes.chunks_exact(2).map(|pair| i64::from(u16::from_le_bytes([pair[0], pair[1]]))).collect())
}
