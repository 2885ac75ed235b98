//! Journal of a preparation, from which a killed preparation resumes.
//!
//! A line is appended after the data that it describes is on disk. Reading stops at a torn line.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::fs::{Durability, write_atomic};
use crate::prepare::spool::SpoolRange;

/// Position in the source files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct SourcePosition {
    /// Index of the source file.
    pub file: usize,
    /// Items read from this file, bad ones included.
    pub items: u64,
    /// Spooled documents and tokens of all files up to this position.
    pub spooled: SpoolRange,
}

/// Line of the journal of the first stage.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Commit {
    /// Position up to which everything is spooled.
    pub position: SourcePosition,
    /// Position of the start of the current file. If this file has changed, reading resumes here.
    pub file_start: SourcePosition,
    /// SHA-256 of the files finished since the previous line; null for a file that cannot be read.
    pub hashes: Vec<Option<String>>,
}

/// File to which JSON lines are appended. Each append waits for the disk.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Replaces the journal at `path` with `lines`, and opens it for appending.
    pub(crate) fn rewrite<T: Serialize>(path: &Path, lines: &[T]) -> Result<Self> {
        let write = || -> Result<File> {
            let mut text = String::new();
            for line in lines {
                text += &(serde_json::to_string(line)? + "\n");
            }
            write_atomic(path, text, Durability::Synced)?;
            Ok(OpenOptions::new().append(true).open(path)?)
        };
        let file = write().with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Journal { path: path.to_owned(), file })
    }

    pub(crate) fn append<T: Serialize>(&mut self, line: &T) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let result = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        result.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Returns the complete lines of a journal, up to the first line that cannot be parsed. Returns no
/// line if the file does not exist.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Vec<T> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_inclusive('\n')
        .map_while(|line| line.strip_suffix('\n').and_then(|line| serde_json::from_str(line).ok()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_line_is_skipped_and_rewrite_replaces_all_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(read::<u32>(&path).is_empty());
        let mut journal = Journal::rewrite(&path, &[1, 2]).unwrap();
        journal.append(&3).unwrap();
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "4").unwrap();
        assert_eq!(read::<u32>(&path), [1, 2, 3]);
        Journal::rewrite(&path, &[1]).unwrap().append(&9).unwrap();
        assert_eq!(read::<u32>(&path), [1, 9]);
    }
}
