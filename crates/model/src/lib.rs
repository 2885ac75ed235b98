//! The networks: a GPT-2 body, the Backpack on top of it, loss, initialisation, and
//! weights in and out under their Hugging Face names.
//!
//! Shapes in comments: B sequences, T positions, D width (`n_embd`), V vocabulary, H heads,
//! L senses. Knows no files but models': safetensors, config.json, and what `import` reads;
//! no processes, no command line.

mod backpack;
mod body;
mod config;
mod decoder;
mod edits;
mod export;
mod folder;
mod generate;
mod graft;
mod import;
mod language_model;
mod layers;
mod parameters;
mod safetensors_file;
mod seed;
mod sense_table;

pub use backpack::Backpack;
pub use body::Body;
pub use config::{GPT2_END_OF_TEXT, Kind, ModelConfig};
pub use decoder::{Decoder, SenseScale};
pub use edits::{EditedSenses, SenseChoice, SenseEdit, SenseOp};
pub use export::export_tensors;
pub use folder::{CONFIG_FILE, WEIGHTS_FILE, load_config, load_folder, save_folder, write_folder};
pub use generate::{Sampling, generate, generate_scaled};
pub use graft::graft_body;
pub use import::{Imported, import};
pub use language_model::LanguageModel;
pub use layers::{Kernels, Pass, is_finite};
pub use parameters::{Init, ParameterSpec, Parameters};
pub use safetensors_file::{read_tensors, write_tensors};
pub use seed::derive_seed;
pub use sense_table::SENSES_FILE;
