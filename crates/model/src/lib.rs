//! The networks: a GPT-2 trunk, the Backpack on top of it, their loss, and their initialization.
//! Reads and writes their weights under Hugging Face names.
//!
//! Shapes in comments use these letters: B sequences, T positions, D width (`n_embd`), V vocabulary
//! size, H heads, L senses, U tokens whose senses are computed. The crate reads and writes model
//! files only: safetensors, `config.json`, and the formats that [`import`] accepts.

mod backpack;
mod batch;
mod config;
mod generate;
mod gpt2;
mod hf_export;
mod import;
mod init_from_gpt2;
mod language_model;
mod layers;
mod model_dir;
mod ops;
mod parameters;
mod residual_stream;
mod safetensors;
mod seed;
mod senses;
mod tensor;

pub use backpack::Backpack;
pub use batch::{HostBatch, TokenBatch};
pub use config::{Architecture, GPT2_END_OF_TEXT, ModelConfig};
pub use generate::{IncrementalDecoder, Sampling, SenseScale, generate, generate_scaled};
pub use gpt2::Gpt2;
pub use hf_export::export_tensors;
pub use import::{ImportedModel, import};
pub use init_from_gpt2::init_from_gpt2;
pub use language_model::LanguageModel;
pub use model_dir::{CONFIG_FILE, WEIGHTS_FILE, load_config, load_model, save_model, write_model_dir};
pub use ops::{ForwardOptions, Kernels, logit_rows};
pub use parameters::{ParameterSpec, Parameters};
pub use safetensors::{read_tensors, write_tensors};
pub use seed::derive_seed;
pub use senses::edits::{SenseChoice, SenseEdit, SenseOp};
pub use senses::table::SENSE_TABLE_FILE;
pub use tensor::is_finite;
