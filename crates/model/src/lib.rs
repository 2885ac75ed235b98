//! The networks: a GPT-2 body, the Backpack on top of it, loss, initialisation, and
//! weights in and out under their Hugging Face names.
//!
//! Shapes in comments: B sequences, T positions, D width (`n_embd`), V vocabulary, H heads,
//! L senses. Knows no files but models': safetensors, config.json, and what `import` reads;
//! no processes, no command line.

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
mod parameters;
mod safetensors;
mod seed;
mod sense_table;
mod senses;
mod tensor;

pub use backpack::Backpack;
pub use batch::inputs_and_targets;
pub use config::{Architecture, GPT2_END_OF_TEXT, ModelConfig};
pub use generate::incremental_decoder::{IncrementalDecoder, SenseScale};
pub use generate::{Sampling, generate, generate_scaled};
pub use gpt2::Gpt2;
pub use hf_export::export_tensors;
pub use import::{ImportedModel, import};
pub use init_from_gpt2::graft_body;
pub use language_model::{LOGIT_ROWS, LanguageModel};
pub use layers::{ForwardOptions, Kernels};
pub use model_dir::{CONFIG_FILE, WEIGHTS_FILE, load_config, load_folder, save_folder, write_folder};
pub use parameters::{Init, ParameterSpec, Parameters};
pub use safetensors::{read_tensors, write_tensors};
pub use seed::derive_seed;
pub use sense_table::SENSES_FILE;
pub use senses::edits::{EditedSenses, SenseChoice, SenseEdit, SenseOp};
pub use tensor::is_finite;
