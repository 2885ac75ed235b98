//! Memory maps: the only module of this crate with `unsafe` code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::Mmap;

/// Maps a whole file for reading. The map of an empty file is empty.
pub(crate) fn map_read_only(file: &File) -> io::Result<Mmap> {
    // SAFETY: shards are written in a staging directory and are not changed in place afterward. The
    // maps are private to this process and only read. If another program truncates a mapped
    // file, a read beyond its end stops this process with SIGBUS.
    unsafe { Mmap::map(file) }
}
