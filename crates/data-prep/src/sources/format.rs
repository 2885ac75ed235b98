//! How a file is read, by its name or its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Around a stream of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// How a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CorpusFormat {
    Jsonl(Compression),
    Parquet,
    /// Arrow IPC, as the Hugging Face cache keeps it.
    Arrow,
    /// A tar of xz-compressed tars of texts: the original OpenWebText.
    TarXz,
    /// One document.
    Text,
}

/// Endings and what they mean.
const ENDINGS: [(&str, CorpusFormat); 8] = [
    (".jsonl", CorpusFormat::Jsonl(Compression::None)),
    (".jsonl.gz", CorpusFormat::Jsonl(Compression::Gzip)),
    (".jsonl.zst", CorpusFormat::Jsonl(Compression::Zstd)),
    (".ndjson", CorpusFormat::Jsonl(Compression::None)),
    (".parquet", CorpusFormat::Parquet),
    (".arrow", CorpusFormat::Arrow),
    (".tar.xz", CorpusFormat::TarXz),
    (".txt", CorpusFormat::Text),
];

/// First bytes and what they mean, for files of other names. Arrow's streaming format
/// begins with a continuation marker.
const BEGINNINGS: [(&[u8], CorpusFormat); 6] = [
    (b"PAR1", CorpusFormat::Parquet),
    (b"ARROW1", CorpusFormat::Arrow),
    (b"\xff\xff\xff\xff", CorpusFormat::Arrow),
    (b"\xfd7zXZ\0", CorpusFormat::TarXz),
    (b"\x1f\x8b", CorpusFormat::Jsonl(Compression::Gzip)),
    (b"\x28\xb5\x2f\xfd", CorpusFormat::Jsonl(Compression::Zstd)),
];

/// By its name, where that says it.
pub(super) fn by_name(path: &Path) -> Option<CorpusFormat> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    ENDINGS.iter().find(|(ending, _)| name.ends_with(ending)).map(|(_, format)| *format)
}

/// By its name or, where that says nothing, its first bytes.
///
/// # Errors
/// When neither says what it is, or it cannot be read.
pub(super) fn of(path: &Path) -> Result<CorpusFormat> {
    if let Some(format) = by_name(path) {
        return Ok(format);
    }
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4096).read_to_end(&mut first))
        .with_context(|| format!("{} cannot be read", path.display()))?;
    if let Some((_, format)) = BEGINNINGS.iter().find(|(bytes, _)| first.starts_with(bytes)) {
        return Ok(*format);
    }
    if first.trim_ascii_start().starts_with(b"{") {
        return Ok(CorpusFormat::Jsonl(Compression::None));
    }
    bail!(
        "{} is of no kind that can be read: neither its name ({}) nor its first bytes say what it is",
        path.display(),
        endings()
    )
}

/// All endings, for messages.
pub(super) fn endings() -> String {
    ENDINGS.map(|(ending, _)| ending).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_win_and_first_bytes_help() {
        let folder = tempfile::tempdir().unwrap();
        let format = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            of(&path).map_err(|e| e.to_string())
        };
        assert_eq!(format("a.TXT", b"PAR1"), Ok(CorpusFormat::Text));
        assert_eq!(format("train-00000-of-00080.parquet", b""), Ok(CorpusFormat::Parquet));
        assert_eq!(format("blob-1", b"PAR1..."), Ok(CorpusFormat::Parquet));
        assert_eq!(format("blob-2", b"\xff\xff\xff\xff\x10"), Ok(CorpusFormat::Arrow));
        assert_eq!(format("openwebtext", b"\xfd7zXZ\0..."), Ok(CorpusFormat::TarXz));
        assert_eq!(format("lines.gz", b"\x1f\x8b\x08"), Ok(CorpusFormat::Jsonl(Compression::Gzip)));
        assert_eq!(format("data.json", b"\n {\"text\": 1}"), Ok(CorpusFormat::Jsonl(Compression::None)));
        assert!(format("notes.md", b"# Notes").unwrap_err().contains("is of no kind that can be read"));
    }
}
