//! The original `openwebtext.tar.xz`: a tar archive of xz-compressed tar archives of `.txt` files.
//! It is read as a stream, in archive order, and nothing is unpacked to disk.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

use anyhow::{Context, Result, anyhow};
use liblzma::read::XzDecoder;
use tar::{Archive, Entry};

use super::counting_reader::CountingReader;
use super::item::{Sink, SourceItem};

/// Reads the `.txt` files of the inner archives.
pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<()> {
    let position = Rc::new(Cell::new(0));
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let file = BufReader::with_capacity(1 << 20, CountingReader::new(file, &position));
    // Position for messages: number of documents, archive, member.
    let (document, archive, member) = (Cell::new(0u64), RefCell::new(String::new()), RefCell::new(String::new()));
    let describe = || format!("document {} ({} {})", document.get(), archive.borrow(), member.borrow());
    let mut document_of = |name: &str, entry: &mut dyn Read| -> Result<ControlFlow<()>> {
        *member.borrow_mut() = name.to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let item = match std::str::from_utf8(&bytes) {
            Ok(text) => SourceItem::Text(normalize(text)),
            Err(e) => {
                let at = e.valid_up_to();
                SourceItem::Malformed(anyhow!(
                    "{} {} is not UTF-8 at byte {at} of its text",
                    path.display(),
                    describe()
                ))
            }
        };
        document.set(document.get() + 1);
        Ok(sink(item, position.get()))
    };
    let mut archive_of = |name: &str, entry: &mut dyn Read| {
        *archive.borrow_mut() = name.to_owned();
        each_file(entry, ".txt", &mut document_of)
    };
    match each_file(file, "xz", &mut archive_of) {
        Ok(_) => Ok(()),
        Err(e) => Err(e.context(format!(
            "cannot read {} after {}, byte {} of the file: the file is damaged or truncated",
            path.display(),
            describe(),
            position.get()
        ))),
    }
}

/// Receives the name and the bytes of a file, and decides whether reading continues.
type TarAction<'a> = dyn FnMut(&str, &mut dyn Read) -> Result<ControlFlow<()>> + 'a;

/// Calls `action` for every file of an xz-compressed tar archive whose name ends with `extension`.
fn each_file(reader: impl Read, extension: &str, action: &mut TarAction) -> Result<ControlFlow<()>> {
    let mut archive = Archive::new(BufReader::with_capacity(1 << 16, XzDecoder::new_multi_decoder(reader)));
    for entry in archive.entries()? {
        let mut entry: Entry<_> = entry?;
        let name = entry.path()?.display().to_string();
        if entry.header().entry_type().is_file() && name.ends_with(extension) && action(&name, &mut entry)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    // The xz stream has checksums after the end mark of the tar archive.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(ControlFlow::Continue(()))
}

/// Normalizes a text like the Hugging Face builder of the dataset: with Python's universal
/// newlines, `re.sub("\n\n\n+", "\n\n", text)`, and `.strip()`.
fn normalize(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut normal = String::with_capacity(text.len());
    let mut newlines = 0;
    for c in text.chars() {
        newlines = if c == '\n' { newlines + 1 } else { 0 };
        if newlines <= 2 {
            normal.push(c);
        }
    }
    // Python treats four control characters as white space that are not white space in Unicode.
    normal.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\x1c'..='\x1f')).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use liblzma::write::XzEncoder;
    use std::io::Write;

    fn tar_xz(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(XzEncoder::new(Vec::new(), 1));
        for (name, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *bytes).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    fn documents(bytes: &[u8]) -> (Vec<String>, Vec<String>, Option<String>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("openwebtext.tar.xz");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        crate::sources::item::collect(|sink| read(&path, sink))
    }

    fn two_archives() -> Vec<u8> {
        let long = "word ".repeat(20_000);
        let first = tar_xz(&[("0002-b.txt", b"\n\nbee\n\n\n\n\nsee \x1f"), ("0001-a.txt", b"a\r\nb\r\r\rc")]);
        let second = tar_xz(&[("readme.md", b"no"), ("0003.txt", long.as_bytes()), ("0004.txt", b"caf\xe9")]);
        tar_xz(&[
            ("openwebtext/urlsf_subset00-1_data.xz", &first),
            ("openwebtext/notes", b"no"),
            ("openwebtext/urlsf_subset00-2_data.xz", &second),
        ])
    }

    /// python3 -c "import re; print([re.sub('\n\n\n+', '\n\n', t).strip() for t in ['\n\nbee\n\n\n\n\nsee \x1f', 'a\nb\n\n\nc']])"
    #[test]
    fn texts_are_in_archive_order_and_normalized() {
        let (texts, bad, error) = documents(&two_archives());
        assert_eq!((texts[0].as_str(), texts[1].as_str(), texts.len()), ("bee\n\nsee", "a\nb\n\nc", 3));
        assert!(texts[2].ends_with("word") && texts[2].len() == 99_999);
        assert!(
            bad.len() == 1
                && bad[0].contains("document 3 (openwebtext/urlsf_subset00-2_data.xz 0004.txt) is not UTF-8 at byte 3"),
            "{bad:?}"
        );
        assert_eq!(error, None);
    }

    #[test]
    fn truncated_archive_is_an_error() {
        let whole = two_archives();
        for length in [10, whole.len() / 2, whole.len() - 40, whole.len() - 1] {
            let error = documents(&whole[..length]).2.unwrap_or_default();
            assert!(
                error.contains("openwebtext.tar.xz after document") && error.contains("truncated"),
                "{length}: {error}"
            );
        }
    }
}
