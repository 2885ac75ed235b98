//! Output that several commands share: atomic directories, progress bars, tables.

pub(crate) mod atomic_dir;
pub(crate) mod progress;
pub(crate) mod table;
