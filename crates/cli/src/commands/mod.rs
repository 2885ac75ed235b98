//! The commands, one file or folder each: their arguments and what they print.

pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod control;
pub(crate) mod doctor;
pub(crate) mod dump;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod launch;
pub(crate) mod man;
pub(crate) mod plan;
pub(crate) mod plot;
pub(crate) mod prepare_data;
pub(crate) mod senses;
pub(crate) mod serve;
pub(crate) mod status;
pub(crate) mod train;
pub(crate) mod verify_data;
