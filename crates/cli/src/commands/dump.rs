use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use model::{Pass, write_tensors};
use tch::{Kind, Tensor};

use crate::compute::Compute;
use crate::tokenizer;

/// Write what a model computes for a text, as safetensors
///
/// fp32 tensors logits [T, V], contextualization [L, T, T] and senses [T, L, D], and ids
/// [T] as int64; a GPT-2 has logits and ids alone.
/// Example: backpack dump --model runs/quickstart-model --ids 1,2,3 --output runs/dump.safetensors
#[derive(Debug, Args)]
pub(crate) struct Dump {
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    input: Input,
    /// The file to write
    #[arg(long, value_name = "F.safetensors")]
    output: PathBuf,
    /// The tokenizer.json for --text [default: the model folder's, then data/gpt2/tokenizer.json]
    #[arg(long, value_name = "FILE")]
    tokenizer: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// A text
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// Ids
    #[arg(long, value_name = "1,2,3", value_delimiter = ',')]
    ids: Option<Vec<i64>>,
    /// A file of ids, uint16 little-endian
    #[arg(long, value_name = "F.bin")]
    ids_file: Option<PathBuf>,
}

impl Dump {
    pub(crate) fn run(self) -> Result<()> {
        let ids = match (&self.input.text, &self.input.ids, &self.input.ids_file) {
            (Some(text), _, _) => {
                tokenizer::encode(&tokenizer::load(self.tokenizer.as_deref(), &self.compute.model)?, text)?
            }
            (_, Some(ids), _) => ids.clone(),
            (_, _, Some(path)) => read_ids(path)?,
            _ => Vec::new(),
        };
        let model = self.compute.load()?;
        model.check_ids(&ids)?;
        let row = Tensor::from_slice(&ids);
        let input = row.unsqueeze(0).to_device(model.device());
        let pass = Pass::evaluation();
        let tensors = tch::no_grad(|| {
            let mut tensors = vec![("ids", row)];
            let hidden = match model.backpack() {
                Some(backpack) => {
                    let weights = backpack.contextualization(&input, pass);
                    let senses = backpack.senses(&input, pass);
                    let hidden = backpack.combine(&weights, &senses, pass);
                    tensors.push(("contextualization", weights.get(0)));
                    tensors.push(("senses", senses.get(0)));
                    hidden
                }
                None => model.hidden(&input, pass),
            };
            tensors.push(("logits", model.head(&hidden, pass).get(0).to_kind(Kind::Float)));
            tensors
        });
        write_tensors(&self.output, tensors.iter().map(|(name, tensor)| (*name, tensor)))
    }
}

fn read_ids(path: &Path) -> Result<Vec<i64>> {
    let bytes = fs::read(path).with_context(|| format!("the ids file {} cannot be read", path.display()))?;
    ensure!(
        bytes.len() % 2 == 0,
        "the ids file {} has {} bytes: uint16 ids take an even number",
        path.display(),
        bytes.len()
    );
    Ok(bytes.chunks_exact(2).map(|pair| i64::from(u16::from_le_bytes([pair[0], pair[1]]))).collect())
}
