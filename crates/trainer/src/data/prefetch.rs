//! Reading of micro-batches ahead of their use, while the device computes.

use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, anyhow};
use model::{HostBatch, TokenBatch};
use tch::{Device, Tensor};

use crate::data::batch_reader::BatchReader;

/// Micro-batches in the queue, besides the one being read: enough to hide a slow read behind a
/// forward and backward pass, at a low memory cost (64 KB of ids for 8,192 tokens).
const QUEUE_DEPTH: usize = 2;

/// A thread that reads micro-batches, and its queue.
///
/// The thread makes plain vectors, and finds the distinct tokens for a model that needs them. If it
/// called libtorch, OpenMP would create one more pool of threads for it (one pool per calling
/// thread), which would compete with the computing threads.
#[derive(Debug)]
pub(crate) struct Prefetch {
    device: Device,
    /// `None` once the thread has ended.
    queue: Option<Receiver<Result<HostBatch>>>,
    /// `None` once the thread has ended.
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts a thread that reads micro-batches of `count` sequences, which begin at the sequences
    /// numbered `firsts`, and finds their distinct tokens if `shares_senses`.
    /// [`Prefetch::next_batch`] creates their tensors on `device`.
    ///
    /// # Errors
    /// The system cannot start a thread.
    pub(crate) fn start(
        reader: BatchReader,
        firsts: impl Iterator<Item = u64> + Send + 'static,
        count: u64,
        shares_senses: bool,
        device: Device,
    ) -> Result<Self> {
        let (sender, queue) = sync_channel(QUEUE_DEPTH);
        let sequence_length = reader.sequence_length();
        let read_all = move || {
            for first in firsts {
                let rows = reader.read(first, count);
                let batch = rows.map(|rows| HostBatch::new(rows, sequence_length, shares_senses));
                let failed = batch.is_err();
                // The receiver is dropped when the run ends.
                if sender.send(batch).is_err() || failed {
                    return;
                }
            }
        };
        let thread = Builder::new()
            .name("batches".to_owned())
            .spawn(read_all)
            .context("the data prefetch thread cannot be started: check the limit on processes (ulimit -u)")?;
        Ok(Prefetch { device, queue: Some(queue), thread: Some(thread) })
    }

    /// Returns inputs and targets of the next micro-batch, each `[count, T]` int64. Waits if the
    /// micro-batch is not read yet.
    ///
    /// # Errors
    /// Returns an error if this micro-batch could not be read, or if the thread has ended.
    pub(crate) fn next_batch(&mut self) -> Result<(TokenBatch, Tensor)> {
        match self.queue.as_ref().map(Receiver::recv) {
            Some(Ok(batch)) => batch?.to_device(self.device),
            _ => Err(match self.end() {
                Err(panic) => anyhow!(
                    "the data prefetch thread failed ({}): report this as a bug, and resume from the last checkpoint",
                    torch_ext::panic_text(panic.as_ref())
                ),
                Ok(()) => anyhow!("all micro-batches of the run have been read"),
            }),
        }
    }

    /// Ends the thread after its current read at the latest.
    fn end(&mut self) -> std::thread::Result<()> {
        // A thread that waits for space in the queue receives an error.
        self.queue = None;
        self.thread.take().map_or(Ok(()), JoinHandle::join)
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
    fn data_dir() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let ids = (0..=SEQUENCES as u16 * LENGTH as u16).map(|i| i * 7 % 500);
        let bytes: Vec<u8> = ids.flat_map(u16::to_le_bytes).collect();
        std::fs::write(dir.path().join("train.bin"), &bytes).unwrap();
        std::fs::write(dir.path().join("val.bin"), &bytes).unwrap();
        dir
    }

    fn batches(dir: &Path, order: DataOrder) -> BatchReader {
        let split = TokenSplit::open(dir, Split::Train, 500).unwrap();
        BatchReader::new(split, SequenceOrder::new(order, SEQUENCES, 7), LENGTH)
    }

    fn values(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor.reshape([-1])).unwrap()
    }

    /// Starts at sequence 0, and within an epoch as after a resume.
    #[test]
    fn prefetched_batches_equal_those_read_directly() {
        let dir = data_dir();
        let direct = batches(dir.path(), DataOrder::Shuffled);
        for start in [0u64, 33, 148] {
            let firsts = (start..start + 120).step_by(3);
            let reader = batches(dir.path(), DataOrder::Shuffled);
            let mut ahead = Prefetch::start(reader, firsts.clone(), 3, start > 0, Device::Cpu).unwrap();
            for first in firsts {
                let (inputs, targets) = ahead.next_batch().unwrap();
                assert_eq!(inputs.ids().size(), [3, LENGTH as i64]);
                let rows = direct.read(first, 3).unwrap();
                let row = |from: usize| -> Vec<i64> {
                    rows.chunks(LENGTH + 1).flat_map(|row| row[from..from + LENGTH].to_vec()).collect()
                };
                assert_eq!((values(inputs.ids()), values(&targets)), (row(0), row(1)), "sequence {first}");
            }
            assert!(
                ahead.next_batch().unwrap_err().to_string().contains("all micro-batches of the run have been read")
            );
        }
    }

    #[test]
    fn an_error_is_returned_with_its_micro_batch() {
        let dir = data_dir();
        let (direct, reader) = (batches(dir.path(), DataOrder::Sequential), batches(dir.path(), DataOrder::Sequential));
        // Opening checks a small file, so the file is damaged later. Token 43 is in sequence 5,
        // which is in the third micro-batch of two sequences.
        let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("train.bin")).unwrap();
        file.write_all_at(&60_000u16.to_le_bytes(), 2 * 43).unwrap();
        let mut ahead = Prefetch::start(reader, (0..SEQUENCES).step_by(2), 2, false, Device::Cpu).unwrap();
        let _ = ahead.next_batch().unwrap();
        let _ = ahead.next_batch().unwrap();
        let error = ahead.next_batch().unwrap_err().to_string();
        assert_eq!(error, direct.read(4, 2).unwrap_err().to_string());
        assert!(error.contains("contains id 60000 at token 43"), "{error}");
    }

    /// The thread drops what it owns when it ends, so its reference to the counter is gone.
    #[test]
    fn the_thread_fills_its_queue_and_ends_with_the_run() {
        let dir = data_dir();
        for taken in [0, 1, 5] {
            let requested = Arc::new(AtomicU64::new(0));
            let counter = Arc::clone(&requested);
            let endless = (0u64..).inspect(move |_| _ = counter.fetch_add(1, Ordering::Relaxed));
            let reader = batches(dir.path(), DataOrder::Shuffled);
            let mut ahead = Prefetch::start(reader, endless, 1, false, Device::Cpu).unwrap();
            for _ in 0..taken {
                let _ = ahead.next_batch().unwrap();
            }
            // The queue is full, and one more micro-batch is read and waits for space.
            let max = taken + QUEUE_DEPTH as u64 + 1;
            while requested.load(Ordering::Relaxed) < max {
                std::thread::yield_now();
            }
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!((requested.load(Ordering::Relaxed), Arc::strong_count(&requested)), (max, 2));
            drop(ahead);
            assert_eq!(Arc::strong_count(&requested), 1);
        }
    }

    #[test]
    fn a_panic_of_the_thread_is_an_error() {
        let dir = data_dir();
        let firsts = (0u64..).inspect(|&first| assert!(first < 2, "two at most"));
        let mut ahead =
            Prefetch::start(batches(dir.path(), DataOrder::Shuffled), firsts, 1, false, Device::Cpu).unwrap();
        let _ = ahead.next_batch().unwrap();
        let _ = ahead.next_batch().unwrap();
        let error = ahead.next_batch().unwrap_err().to_string();
        assert!(error.starts_with("the data prefetch thread failed (two at most)"), "{error}");
        assert!(ahead.next_batch().is_err());
    }
}
