//! Output that several commands share: files and directories, number formats, progress, tables.

pub(crate) mod atomic_dir;
pub(crate) mod files;
pub(crate) mod format;
pub(crate) mod progress;
pub(crate) mod table;
