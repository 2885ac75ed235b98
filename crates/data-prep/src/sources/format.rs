//! Detection of the format of a file from its name or its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

/// Compression of a `.jsonl` file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Format of a source file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CorpusFormat {
    Jsonl(Compression),
    Parquet,
    /// Arrow IPC, as in the Hugging Face cache.
    Arrow,
    /// Tar archive of xz-compressed tar archives of texts: the original OpenWebText.
    TarXz,
    /// Text file with one document.
    Text,
}

/// File name extensions and their formats.
const EXTENSIONS: [(&str, CorpusFormat); 8] = [
    (".jsonl", CorpusFormat::Jsonl(Compression::None)),
    (".jsonl.gz", CorpusFormat::Jsonl(Compression::Gzip)),
    (".jsonl.zst", CorpusFormat::Jsonl(Compression::Zstd)),
    (".ndjson", CorpusFormat::Jsonl(Compression::None)),
    (".parquet", CorpusFormat::Parquet),
    (".arrow", CorpusFormat::Arrow),
    (".tar.xz", CorpusFormat::TarXz),
    (".txt", CorpusFormat::Text),
];

/// First bytes and their formats, for files with other names. Arrow's streaming format starts with
/// a continuation marker.
const MAGIC: [(&[u8], CorpusFormat); 6] = [
    (b"PAR1", CorpusFormat::Parquet),
    (b"ARROW1", CorpusFormat::Arrow),
    (b"\xff\xff\xff\xff", CorpusFormat::Arrow),
    (b"\xfd7zXZ\0", CorpusFormat::TarXz),
    (b"\x1f\x8b", CorpusFormat::Jsonl(Compression::Gzip)),
    (b"\x28\xb5\x2f\xfd", CorpusFormat::Jsonl(Compression::Zstd)),
];

/// Returns the format of a known file name extension.
pub(super) fn from_name(path: &Path) -> Option<CorpusFormat> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    EXTENSIONS.iter().find(|(extension, _)| name.ends_with(extension)).map(|(_, format)| *format)
}

/// Returns the format of a file, from its name or else from its first bytes.
///
/// # Errors
/// Neither has a known format, or the file cannot be read.
pub(super) fn detect(path: &Path) -> Result<CorpusFormat> {
    if let Some(format) = from_name(path) {
        return Ok(format);
    }
    let mut first = Vec::new();
    File::open(path)
        .and_then(|file| file.take(4096).read_to_end(&mut first))
        .with_context(|| format!("cannot read {}", path.display()))?;
    if let Some((_, format)) = MAGIC.iter().find(|(bytes, _)| first.starts_with(bytes)) {
        return Ok(*format);
    }
    if first.trim_ascii_start().starts_with(b"{") {
        return Ok(CorpusFormat::Jsonl(Compression::None));
    }
    bail!(
        "unknown format of {}: neither its extension ({}) nor its first bytes are known",
        path.display(),
        extensions()
    )
}

/// Returns all extensions, for messages.
pub(super) fn extensions() -> String {
    EXTENSIONS.map(|(extension, _)| extension).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_takes_precedence_over_first_bytes() {
        let dir = tempfile::tempdir().unwrap();
        let format = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            detect(&path).map_err(|e| e.to_string())
        };
        assert_eq!(format("a.TXT", b"PAR1"), Ok(CorpusFormat::Text));
        assert_eq!(format("train-00000-of-00080.parquet", b""), Ok(CorpusFormat::Parquet));
        assert_eq!(format("blob-1", b"PAR1..."), Ok(CorpusFormat::Parquet));
        assert_eq!(format("blob-2", b"\xff\xff\xff\xff\x10"), Ok(CorpusFormat::Arrow));
        assert_eq!(format("openwebtext", b"\xfd7zXZ\0..."), Ok(CorpusFormat::TarXz));
        assert_eq!(format("lines.gz", b"\x1f\x8b\x08"), Ok(CorpusFormat::Jsonl(Compression::Gzip)));
        assert_eq!(format("data.json", b"\n {\"text\": 1}"), Ok(CorpusFormat::Jsonl(Compression::None)));
        assert!(format("notes.md", b"# Notes").unwrap_err().contains("unknown format of"));
    }
}
