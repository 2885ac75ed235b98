//! The original `openwebtext.tar.xz`: a tar of xz-compressed tars of `.txt` files, read as a
//! stream in archive order, nothing unpacked to disk.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use liblzma::read::XzDecoder;
use tar::{Archive, Entry};

use super::{Item, Sink};

/// Counts what is read of the file itself.
struct CountingFile<'a> {
    file: File,
    read: &'a Cell<u64>,
}

impl Read for CountingFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.read.set(self.read.get() + n as u64);
        Ok(n)
    }
}

pub(super) fn read(path: &Path, sink: &mut Sink) -> Result<()> {
    let position = Cell::new(0);
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let file = BufReader::with_capacity(1 << 20, CountingFile { file, read: &position });
    // Where the reading is, for messages: documents so far, archive, member.
    let (document, archive, member) = (Cell::new(0u64), RefCell::new(String::new()), RefCell::new(String::new()));
    let place = || format!("document {} ({} {})", document.get(), archive.borrow(), member.borrow());
    let mut document_of = |name: &str, entry: &mut dyn Read| -> Result<ControlFlow<()>> {
        *member.borrow_mut() = name.to_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        let item = match std::str::from_utf8(&bytes) {
            Ok(text) => Item::Text(normalise(text)),
            Err(e) => {
                let at = e.valid_up_to();
                Item::Bad(anyhow!("{} {} is not UTF-8 at byte {at} of its text", path.display(), place()))
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
            "{} cannot be read after {}, byte {} of the file: it is damaged or cut short",
            path.display(),
            place(),
            position.get()
        ))),
    }
}

/// Takes a file's name and bytes, and says whether to go on.
type TarAction<'a> = dyn FnMut(&str, &mut dyn Read) -> Result<ControlFlow<()>> + 'a;

/// Hands every file of an xz-compressed tar whose name has this ending to `act`.
fn each_file(reader: impl Read, ending: &str, act: &mut TarAction) -> Result<ControlFlow<()>> {
    let mut archive = Archive::new(BufReader::with_capacity(1 << 16, XzDecoder::new_multi_decoder(reader)));
    for entry in archive.entries()? {
        let mut entry: Entry<_> = entry?;
        let name = entry.path()?.display().to_string();
        if entry.header().entry_type().is_file() && name.ends_with(ending) && act(&name, &mut entry)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    // Past the tar's end mark: the xz stream has checks of its own there.
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(ControlFlow::Continue(()))
}

/// A text as the Hugging Face builder of the dataset makes it of a file: Python's universal
/// newlines, `re.sub("\n\n\n+", "\n\n", text)`, and `.strip()`.
fn normalise(text: &str) -> String {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut normal = String::with_capacity(text.len());
    let mut newlines = 0;
    for c in text.chars() {
        newlines = if c == '\n' { newlines + 1 } else { 0 };
        if newlines <= 2 {
            normal.push(c);
        }
    }
    // Python counts four control characters as white space that Unicode does not.
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
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("openwebtext.tar.xz");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        super::super::collect(|sink| read(&path, sink))
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
    fn texts_come_in_archive_order_normalised() {
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
    fn an_archive_cut_anywhere_is_found_out() {
        let whole = two_archives();
        for length in [10, whole.len() / 2, whole.len() - 40, whole.len() - 1] {
            let error = documents(&whole[..length]).2.unwrap_or_default();
            assert!(
                error.contains("cannot be read after document") && error.contains("cut short"),
                "{length}: {error}"
            );
        }
    }
}
