//! The one place of this crate with `unsafe`: memory maps.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file for reading. An empty file gives an empty map.
pub(crate) fn map_read_only(file: &File) -> io::Result<Mmap> {
    // SAFETY: shards and the spool are written under temporary names and never changed in
    // place afterwards; the maps are private to this process and only read. A file that
    // someone cuts while it is mapped ends the process with SIGBUS, as for any reader.
    unsafe { Mmap::map(file) }
}
