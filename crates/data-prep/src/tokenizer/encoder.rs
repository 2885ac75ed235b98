//! Encoder of the first stage, and the use of the native BPE or of the `tokenizers` crate.

use std::fs;
use std::path::Path;
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};
use memchr::memmem;
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokenizers::Tokenizer;

use crate::hash::hex;
use crate::tokenizer::bpe::{ByteLevelBpe, MergeBuffers, TokenizerFile};
use crate::tokenizer::recipe::Recipe;

const END_OF_TEXT: &str = "<|endoftext|>";

/// Documents per task of the thread pool.
const DOCUMENTS_PER_TASK: usize = 16;

/// Implementation that converts text to ids.
enum Engine {
    /// BPE of this crate. It does not handle the special token.
    Native(Box<ByteLevelBpe>),
    /// The `tokenizers` crate, for all other tokenizers, at a thirtieth of the speed. With the
    /// recipe `backpack` it recognizes the special token.
    HfTokenizers(Box<Tokenizer>),
}

/// Tokenizer with a recipe.
pub(crate) struct Encoder {
    engine: Engine,
    recipe: Recipe,
    /// Buffers, one per thread of the pool. Only that thread locks them.
    buffers: Vec<Mutex<MergeBuffers>>,
    end_marker: memmem::Finder<'static>,
    /// Reason why the native BPE is not used; `None` if it is used.
    pub fallback_reason: Option<String>,
    /// Id between documents.
    pub end_of_text: u32,
    /// Upper bound of the ids: every id is below it.
    pub vocab_size: u32,
    /// SHA-256 of the tokenizer file.
    pub sha256: String,
}

/// Ids of consecutive documents.
pub(crate) struct EncodedDocuments {
    /// Ids as little-endian uint16.
    pub bytes: Vec<u8>,
    /// Number of tokens of each document.
    pub lengths: Vec<u32>,
}

impl Encoder {
    /// Reads a `tokenizer.json`, for use on a pool of `threads` threads.
    ///
    /// # Errors
    /// The file cannot be read, has no end-of-text token, or has ids that do not fit into uint16.
    pub(crate) fn load(path: &Path, recipe: Recipe, threads: usize) -> Result<Self> {
        let unusable = || format!("unusable tokenizer {}", path.display());
        let bytes = fs::read(path).with_context(|| format!("cannot read the tokenizer {}", path.display()))?;
        let file: TokenizerFile = serde_json::from_slice(&bytes).with_context(unusable)?;
        let max_id = file.max_id();
        ensure!(
            max_id <= u32::from(u16::MAX),
            "{}: its largest id is {max_id}, but shards contain uint16 ids",
            unusable()
        );
        let end_of_text =
            file.id(END_OF_TEXT).with_context(|| format!("{}: it has no token {END_OF_TEXT}", unusable()))?;
        let (engine, fallback_reason) = match native_bpe(&file) {
            Ok(bpe) => (Engine::Native(Box::new(bpe)), None),
            Err(reason) => {
                let mut json: Value = serde_json::from_slice(&bytes).with_context(unusable)?;
                if recipe == Recipe::Nanogpt {
                    // Without the added token, a literal one in a text is ordinary text.
                    json["added_tokens"] = Value::Array(Vec::new());
                }
                // Truncation and padding do not apply to documents.
                let read = || {
                    let mut tokenizer = Tokenizer::from_bytes(json.to_string())?;
                    tokenizer.with_truncation(None)?.with_padding(None);
                    Ok(tokenizer)
                };
                let tokenizer = read().map_err(|e: tokenizers::Error| anyhow!("{e}")).with_context(unusable)?;
                (Engine::HfTokenizers(Box::new(tokenizer)), Some(format!("{reason:#}")))
            }
        };
        Ok(Encoder {
            engine,
            recipe,
            buffers: (0..threads.max(1)).map(|_| Mutex::new(MergeBuffers::new())).collect(),
            end_marker: memmem::Finder::new(END_OF_TEXT).into_owned(),
            fallback_reason,
            end_of_text,
            vocab_size: max_id + 1,
            sha256: hex(&Sha256::digest(&bytes)),
        })
    }

    /// Appends the ids of one document, including its end.
    pub(crate) fn encode(&self, text: &str, out: &mut Vec<u16>) -> Result<()> {
        // `load` refuses tokenizers with ids that do not fit into uint16.
        let end = self.end_of_text as u16;
        if self.recipe == Recipe::Backpack && text.is_empty() {
            return Ok(());
        }
        match &self.engine {
            Engine::Native(bpe) => {
                let thread = rayon::current_thread_index().unwrap_or(0) % self.buffers.len();
                let mut buffers =
                    self.buffers[thread].lock().map_err(|_| anyhow!("another tokenizing thread failed"))?;
                match self.recipe {
                    Recipe::Backpack => {
                        let mut start = 0;
                        for at in self.end_marker.find_iter(text.as_bytes()) {
                            bpe.encode(&text[start..at], &mut buffers, out);
                            out.push(end);
                            start = at + END_OF_TEXT.len();
                        }
                        bpe.encode(&text[start..], &mut buffers, out);
                    }
                    Recipe::Nanogpt => bpe.encode(text, &mut buffers, out),
                }
            }
            Engine::HfTokenizers(tokenizer) => {
                let encoding =
                    tokenizer.encode_fast(text, false).map_err(|e| anyhow!("cannot tokenize a document: {e}"))?;
                out.extend(encoding.get_ids().iter().map(|&id| id as u16));
            }
        }
        out.push(end);
        Ok(())
    }

    /// Tokenizes documents on the current rayon pool, and returns their ids in the same order.
    pub(crate) fn encode_all(&self, texts: &[String]) -> Result<Vec<EncodedDocuments>> {
        let encode = |texts: &[String]| -> Result<EncodedDocuments> {
            // English text has about 4.5 bytes per token.
            let text_bytes: usize = texts.iter().map(String::len).sum();
            let mut ids = Vec::with_capacity(text_bytes / 4 + texts.len());
            let mut lengths = Vec::with_capacity(texts.len());
            for text in texts {
                let before = ids.len();
                self.encode(text, &mut ids)?;
                lengths.push(u32::try_from(ids.len() - before).context("a document has more than 2^32 tokens")?);
            }
            Ok(EncodedDocuments { bytes: ids.iter().flat_map(|id| id.to_le_bytes()).collect(), lengths })
        };
        texts.par_chunks(DOCUMENTS_PER_TASK).map(encode).collect()
    }
}

/// Builds the native BPE, for a tokenizer with the structure of GPT-2's.
///
/// # Errors
/// The structure differs; the error is the reason for the fallback.
fn native_bpe(file: &TokenizerFile) -> Result<ByteLevelBpe> {
    let [token] = &file.added_tokens[..] else {
        bail!("it has other added tokens than {END_OF_TEXT}");
    };
    ensure!(token.content == END_OF_TEXT, "it has other added tokens than {END_OF_TEXT}");
    ensure!(
        !(token.single_word || token.lstrip || token.rstrip),
        "its {END_OF_TEXT} does not match exactly its own text"
    );
    ByteLevelBpe::new(file)
}
