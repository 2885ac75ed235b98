//! Reader that counts bytes.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

/// Counts the bytes read from `inner`. Below a decompressor, this is the position in the file.
pub(super) struct CountingReader<R> {
    inner: R,
    position: Rc<Cell<u64>>,
}

impl<R> CountingReader<R> {
    /// Creates a reader that updates `position`.
    pub(super) fn new(inner: R, position: &Rc<Cell<u64>>) -> Self {
        CountingReader { inner, position: Rc::clone(position) }
    }
}

impl<R: Read> Read for CountingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.position.set(self.position.get() + n as u64);
        Ok(n)
    }
}
