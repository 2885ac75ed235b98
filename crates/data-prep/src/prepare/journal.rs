//! How far a preparation has come, so that one that was killed goes on from there. Lines
//! are appended after what they speak of is on the disk; a torn last line is passed over.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::prepare::spool::SpoolRange;

/// How far the reading is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct SourcePosition {
    /// Which source file.
    pub file: usize,
    /// Items taken of it, bad ones included.
    pub items: u64,
    /// What is spooled of all files.
    pub spooled: SpoolRange,
}

/// One line of the reading's journal.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Commit {
    /// Where the reading was.
    pub position: SourcePosition,
    /// Where it was when it began the file it is in: to there it goes back if that file has
    /// been mended meanwhile.
    pub file_start: SourcePosition,
    /// SHA-256 of the files finished since the line before; null where one cannot be read.
    pub hashes: Vec<Option<String>>,
}

/// Lines appended to a file, each on the disk before the next thing is done.
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Starts a file afresh with these lines.
    pub(crate) fn rewrite<T: Serialize>(path: &Path, lines: &[T]) -> Result<Self> {
        let temporary = path.with_extension("new");
        let write = || -> Result<File> {
            let mut file = File::create(&temporary)?;
            for line in lines {
                file.write_all((serde_json::to_string(line)? + "\n").as_bytes())?;
            }
            file.sync_data()?;
            std::fs::rename(&temporary, path)?;
            Ok(OpenOptions::new().append(true).open(path)?)
        };
        let file = write().with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Journal { path: path.to_owned(), file })
    }

    pub(crate) fn append<T: Serialize>(&mut self, line: &T) -> Result<()> {
        let text = serde_json::to_string(line)? + "\n";
        let written = self.file.write_all(text.as_bytes()).and_then(|()| self.file.sync_data());
        written.with_context(|| format!("{} cannot be written", self.path.display()))
    }
}

/// The whole lines of a journal, up to the first that cannot be read; none where there is none.
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
    fn a_torn_line_is_passed_over_and_rewriting_cuts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        assert!(read::<u32>(&path).is_empty());
        let mut journal = Journal::rewrite(&path, &[1, 2]).unwrap();
        journal.append(&3).unwrap();
        std::fs::write(&path, std::fs::read_to_string(&path).unwrap() + "4").unwrap();
        assert_eq!(read::<u32>(&path), [1, 2, 3]);
        Journal::rewrite(&path, &[1]).unwrap().append(&9).unwrap();
        assert_eq!(read::<u32>(&path), [1, 9]);
    }
}
