//! The zip archives that `torch.save` writes: uncompressed entries, with zip64 records for large
//! ones. Nothing is decompressed, so that no entry is larger than the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

#[derive(Debug)]
struct ZipEntry {
    /// Offset of the local header.
    header: u64,
    size: u64,
    /// CRC-32 checksum; 0 if torch was configured not to compute it.
    crc: u32,
}

/// An open archive and its directory of entries.
#[derive(Debug)]
pub(super) struct Archive {
    file: File,
    length: u64,
    entries: BTreeMap<String, ZipEntry>,
}

/// Maximum size of the directory in bytes. That of a large checkpoint has less than a megabyte.
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;
/// Value of a 32-bit field whose actual value is in a zip64 record.
const IN_ZIP64: u64 = 0xffff_ffff;

impl Archive {
    /// Opens an archive and reads its directory.
    ///
    /// # Errors
    /// The file is not such an archive, or it is damaged.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut archive = Archive { file, length, entries: BTreeMap::new() };
        let (offset, size) = archive.directory()?;
        ensure!(size <= MAX_DIRECTORY_BYTES, "its directory claims {size} bytes");
        let directory = archive.read_at(offset, size).context("its directory is missing")?;
        archive.entries = parse_directory(&directory).context("its directory is invalid")?;
        // Entries that overlap could claim far more bytes than the file has.
        let total = archive.entries.values().try_fold(0u64, |sum, entry| sum.checked_add(entry.size));
        ensure!(total.is_some_and(|total| total <= length), "its entries claim more bytes than the file's {length}");
        Ok(archive)
    }

    /// Iterates over the names of all entries.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns the size of an entry; `None` if it does not exist.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.entries.get(name).map(|entry| entry.size)
    }

    /// Reads the bytes of an entry.
    ///
    /// # Errors
    /// The entry does not exist, the file is truncated, or the checksum is wrong.
    pub(super) fn read(&mut self, name: &str) -> Result<Vec<u8>> {
        let entry = self.entries.get(name).with_context(|| format!("entry {name} is missing"))?;
        let (header, size, crc) = (entry.header, entry.size, entry.crc);
        let broken = || format!("entry {name} is damaged or truncated");
        let local = self.read_at(header, 30).with_context(broken)?;
        ensure!(local.starts_with(b"PK\x03\x04"), "{}", broken());
        let names = u64::from(u16_at(&local, 26)?) + u64::from(u16_at(&local, 28)?);
        let bytes = self.read_at(header + 30 + names, size).with_context(broken)?;
        if crc != 0 {
            ensure!(crc32fast::hash(&bytes) == crc, "entry {name} is damaged: its checksum is wrong");
        }
        Ok(bytes)
    }

    fn read_at(&mut self, offset: u64, size: u64) -> Result<Vec<u8>> {
        let end = offset.checked_add(size).filter(|&end| end <= self.length);
        ensure!(end.is_some(), "it claims {size} bytes at {offset} of {}", self.length);
        let mut bytes = vec![0; size as usize];
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Returns offset and size of the directory, from the record at the end of the file.
    fn directory(&mut self) -> Result<(u64, u64)> {
        // The record has 22 bytes and a comment of at most 65,535 bytes.
        let tail_size = self.length.min(22 + 65_535);
        let tail_start = self.length - tail_size;
        let tail = self.read_at(tail_start, tail_size)?;
        let position = tail
            .windows(4)
            .rposition(|window| window == b"PK\x05\x06")
            .context("its directory is missing: the file is truncated or not an archive")?;
        let record = &tail[position..];
        let (size, offset) = (u64::from(u32_at(record, 12)?), u64::from(u32_at(record, 16)?));
        if size != IN_ZIP64 && offset != IN_ZIP64 && u16_at(record, 10)? != u16::MAX {
            return Ok((offset, size));
        }
        // A locator of 20 bytes before this record has the offset of the zip64 record.
        let locator_at = (tail_start + position as u64).checked_sub(20).context("its zip64 locator is missing")?;
        let locator = self.read_at(locator_at, 20)?;
        ensure!(locator.starts_with(b"PK\x06\x07"), "its zip64 locator is missing");
        let record = self.read_at(u64_at(&locator, 8)?, 56)?;
        ensure!(record.starts_with(b"PK\x06\x06"), "its zip64 record is missing");
        Ok((u64_at(&record, 48)?, u64_at(&record, 40)?))
    }
}

/// Parses the directory.
fn parse_directory(mut directory: &[u8]) -> Result<BTreeMap<String, ZipEntry>> {
    let mut entries = BTreeMap::new();
    while directory.starts_with(b"PK\x01\x02") {
        let length = |at: usize| u16_at(directory, at).map(usize::from);
        let (flags, method) = (u16_at(directory, 8)?, u16_at(directory, 10)?);
        let crc = u32_at(directory, 16)?;
        let (mut packed, mut size) = (u64::from(u32_at(directory, 20)?), u64::from(u32_at(directory, 24)?));
        let mut header = u64::from(u32_at(directory, 42)?);
        let name_end = 46 + length(28)?;
        let extra_end = name_end + length(30)?;
        let end = extra_end + length(32)?;
        let name = directory.get(46..name_end).context("a name is truncated")?;
        let name = std::str::from_utf8(name).context("a name is not UTF-8")?.to_owned();
        let mut extra = directory.get(name_end..extra_end).context("an entry is truncated")?;
        while extra.len() >= 4 {
            let (tag, length) = (u16_at(extra, 0)?, usize::from(u16_at(extra, 2)?));
            let mut field = extra.get(4..4 + length).context("an extra field is truncated")?;
            extra = &extra[4 + length..];
            // Zip64: only the values that do not fit into their 32-bit fields, in this order.
            if tag == 1 {
                for value in [&mut size, &mut packed, &mut header] {
                    if *value == IN_ZIP64 {
                        *value = u64_at(field, 0)?;
                        field = &field[8..];
                    }
                }
            }
        }
        ensure!(flags & 1 == 0, "entry {name} is encrypted");
        ensure!(method == 0 && packed == size, "entry {name} is compressed, which torch.save never does");
        if entries.insert(name.clone(), ZipEntry { header, size, crc }).is_some() {
            bail!("entry {name} appears twice");
        }
        directory = directory.get(end..).context("an entry is truncated")?;
    }
    Ok(entries)
}

fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N]> {
    Ok(bytes.get(at..at + N).context("a record is truncated")?.try_into()?)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    bytes_at(bytes, at).map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    bytes_at(bytes, at).map(u32::from_le_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    bytes_at(bytes, at).map(u64::from_le_bytes)
}
