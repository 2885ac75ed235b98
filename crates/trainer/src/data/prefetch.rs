//! Batches read ahead of the pass that needs them, while the device computes.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow};
use tch::{Device, Tensor};

use crate::data::batch_reader::BatchReader;

/// Micro-batches that lie ready, besides the one being read: enough to hide a slow read
/// behind a pass, and little memory (64 KB of ids for 8,192 tokens).
const AHEAD: usize = 2;

/// A thread that reads, and the queue in which it leaves what it read.
///
/// The thread makes plain vectors: calling libtorch would give it threads of its own
/// (OpenMP keeps a pool a calling thread), beside those that compute.
#[derive(Debug)]
pub(crate) struct Prefetch {
    sequence_length: usize,
    device: Device,
    /// Both are there until the thread has ended.
    queue: Option<Receiver<Result<Vec<i64>>>>,
    reader: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts to read micro-batches of `count` sequences, whose first ones have the numbers
    /// `firsts`; the tensors will be made on `device`.
    ///
    /// # Errors
    /// When the system has no more threads.
    pub(crate) fn start(
        batches: BatchReader,
        firsts: impl Iterator<Item = u64> + Send + 'static,
        count: u64,
        device: Device,
    ) -> Result<Self> {
        let (sender, queue) = sync_channel(AHEAD);
        let sequence_length = batches.sequence_length();
        let read_all = move || {
            for first in firsts {
                let rows = batches.read(first, count);
                let failed = rows.is_err();
                // The receiver is gone when the run has ended.
                if sender.send(rows).is_err() || failed {
                    return;
                }
            }
        };
        let reader = Builder::new().name("batches".to_owned()).spawn(read_all).context(
            "the thread that reads batches ahead cannot be started: check the limit on processes (ulimit -u)",
        )?;
        Ok(Prefetch { sequence_length, device, queue: Some(queue), reader: Some(reader) })
    }

    /// Inputs and targets of the next micro-batch, each `[count, T]` int64. Waits for the
    /// reader where it is behind.
    ///
    /// # Errors
    /// When this very micro-batch could not be read, or the reader is gone.
    pub(crate) fn next_batch(&mut self) -> Result<(Tensor, Tensor)> {
        match self.queue.as_ref().map(Receiver::recv) {
            Some(Ok(rows)) => model::inputs_and_targets(&rows?, self.sequence_length, self.device),
            _ => Err(match self.end() {
                Err(panic) => anyhow!(
                    "the thread that reads batches ahead failed ({}): please report it, and go on from the last checkpoint",
                    torch_ext::panic_text(panic.as_ref())
                ),
                Ok(()) => anyhow!("all batches of the run are read"),
            }),
        }
    }

    /// Ends the thread, at the latest after the read it is in.
    fn end(&mut self) -> std::thread::Result<()> {
        // A reader that waits for room in the queue learns that nobody wants more.
        self.queue = None;
        self.reader.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use data_prep::{DataOrder, SequenceOrder, Split, TokenSplit};
    use tempfile::TempDir;

    use super::*;

    const LENGTH: usize = 8;
    const SEQUENCES: u64 = 50;

    /// 50 sequences of 8 ids below 500.
    fn folder() -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let ids = (0..=SEQUENCES as u16 * LENGTH as u16).map(|i| i * 7 % 500);
        let bytes: Vec<u8> = ids.flat_map(u16::to_le_bytes).collect();
        std::fs::write(folder.path().join("train.bin"), &bytes).unwrap();
        std::fs::write(folder.path().join("val.bin"), &bytes).unwrap();
        folder
    }

    fn batches(folder: &Path, order: DataOrder) -> BatchReader {
        let split = TokenSplit::open(folder, Split::Train, 500).unwrap();
        BatchReader::new(split, SequenceOrder::new(order, SEQUENCES, 7), LENGTH)
    }

    fn values(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape([-1])).unwrap()
    }

    /// From the start and from a sequence in the midst of an epoch, as after a resume.
    #[test]
    fn the_batches_are_those_read_one_by_one() {
        let folder = folder();
        let direct = batches(folder.path(), DataOrder::Shuffled);
        for start in [0u64, 33, 148] {
            let firsts = (start..start + 120).step_by(3);
            let reader = batches(folder.path(), DataOrder::Shuffled);
            let mut ahead = Prefetch::start(reader, firsts.clone(), 3, Device::Cpu).unwrap();
            for first in firsts {
                let (inputs, targets) = ahead.next_batch().unwrap();
                assert_eq!(inputs.size(), [3, LENGTH as i64]);
                let rows = direct.read(first, 3).unwrap();
                let row = |from: usize| -> Vec<i64> {
                    rows.chunks(LENGTH + 1).flat_map(|row| row[from..from + LENGTH].to_vec()).collect()
                };
                assert_eq!((values(&inputs), values(&targets)), (row(0), row(1)), "sequence {first}");
            }
            assert!(ahead.next_batch().unwrap_err().to_string().contains("all batches of the run are read"));
        }
    }

    #[test]
    fn an_error_comes_with_the_batch_that_has_it() {
        let folder = folder();
        let (direct, reader) =
            (batches(folder.path(), DataOrder::Sequential), batches(folder.path(), DataOrder::Sequential));
        // Opening checks a small file: it is damaged after. Token 43 is in sequence 5, the
        // third micro-batch of two.
        let file = std::fs::OpenOptions::new().write(true).open(folder.path().join("train.bin")).unwrap();
        file.write_all_at(&60_000u16.to_le_bytes(), 2 * 43).unwrap();
        let mut ahead = Prefetch::start(reader, (0..SEQUENCES).step_by(2), 2, Device::Cpu).unwrap();
        let _ = ahead.next_batch().unwrap();
        let _ = ahead.next_batch().unwrap();
        let error = ahead.next_batch().unwrap_err().to_string();
        assert_eq!(error, direct.read(4, 2).unwrap_err().to_string());
        assert!(error.contains("holds id 60000 at token 43"), "{error}");
    }

    /// What the thread owns is dropped with it: nobody else has a part in it after.
    #[test]
    fn the_thread_reads_a_little_ahead_and_ends_with_the_run() {
        let folder = folder();
        for taken in [0, 1, 5] {
            let asked = Arc::new(AtomicU64::new(0));
            let counter = Arc::clone(&asked);
            let endless = (0u64..).inspect(move |_| _ = counter.fetch_add(1, Ordering::Relaxed));
            let reader = batches(folder.path(), DataOrder::Shuffled);
            let mut ahead = Prefetch::start(reader, endless, 1, Device::Cpu).unwrap();
            for _ in 0..taken {
                let _ = ahead.next_batch().unwrap();
            }
            // The queue is full, and one more is read and waits for room.
            let most = taken + AHEAD as u64 + 1;
            while asked.load(Ordering::Relaxed) < most {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!((asked.load(Ordering::Relaxed), Arc::strong_count(&asked)), (most, 2));
            drop(ahead);
            assert_eq!(Arc::strong_count(&asked), 1);
        }
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error() {
        let folder = folder();
        let firsts = (0u64..).inspect(|&first| assert!(first < 2, "no more than two"));
        let mut ahead = Prefetch::start(batches(folder.path(), DataOrder::Shuffled), firsts, 1, Device::Cpu).unwrap();
        let _ = ahead.next_batch().unwrap();
        let _ = ahead.next_batch().unwrap();
        let error = ahead.next_batch().unwrap_err().to_string();
        assert!(error.starts_with("the thread that reads batches ahead failed (no more than two)"), "{error}");
        assert!(ahead.next_batch().is_err());
    }
}
