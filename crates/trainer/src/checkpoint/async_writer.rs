//! A thread that writes one checkpoint at a time while training continues.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use model::LanguageModel;

use crate::checkpoint::checkpoint_dir::{CheckpointDir, SaveReport};
use crate::checkpoint::snapshot::HostSnapshot;
use crate::checkpoint::state::TrainState;
use crate::optim::adamw::Optimizer;

/// The status of the pending save.
#[derive(Debug)]
pub(crate) enum WriterStatus {
    /// No save is pending.
    Idle,
    /// The checkpoint is being written.
    Busy,
    /// The save is complete or has failed. Returned once per save.
    Done(Result<FinishedSave>),
}

/// A complete checkpoint and the time it took.
#[derive(Debug)]
pub(crate) struct FinishedSave {
    /// The step of the checkpoint.
    pub(crate) step: u64,
    pub(crate) report: SaveReport,
    /// Time of the copy, during which training waited.
    pub(crate) copy_time: Duration,
    /// Time of the rest, during which training continued.
    pub(crate) write_time: Duration,
}

/// Writes checkpoints on a thread, at most one at a time.
#[derive(Debug)]
pub(crate) struct CheckpointWriter {
    dir: CheckpointDir,
    /// The memory for the next copy; `None` while a checkpoint is written from it.
    buffer: Option<HostSnapshot>,
    pending: Option<PendingSave>,
    /// Time from the start of a copy to the complete checkpoint.
    save_time: SaveTimeEstimate,
}

/// The time that a checkpoint takes.
#[derive(Debug, Clone, Copy)]
enum SaveTimeEstimate {
    /// Estimated from the size, before the first checkpoint.
    Estimated(Duration),
    /// The longest time so far.
    Measured(Duration),
}

/// Bytes per second of a slow disk, on which a checkpoint is written and read again for its hashes.
const SLOW_DISK_RATE: f64 = 50e6;

#[derive(Debug)]
struct PendingSave {
    path: PathBuf,
    step: u64,
    started: Instant,
    copy_time: Duration,
    result: Receiver<(HostSnapshot, Result<(SaveReport, Duration)>)>,
}

impl CheckpointWriter {
    /// Allocates the memory for copies of this model and optimizer.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn new(dir: CheckpointDir, model: &LanguageModel, optimizer: &Optimizer) -> Result<Self> {
        let buffer = HostSnapshot::allocate(model, optimizer)?;
        let estimate = Duration::from_secs_f64(buffer.bytes() as f64 / SLOW_DISK_RATE);
        let save_time = SaveTimeEstimate::Estimated(estimate);
        Ok(CheckpointWriter { dir, buffer: Some(buffer), pending: None, save_time })
    }

    /// Returns whether there is a checkpoint of this step.
    pub(crate) fn is_saved(&self, step: u64) -> bool {
        self.dir.path_of(step).is_dir()
    }

    /// Copies weights and moments and starts to write the copy. The previous save must be done.
    ///
    /// # Errors
    /// Out of memory, or no thread can be started. Nothing is written then.
    pub(crate) fn start(&mut self, model: &LanguageModel, optimizer: &Optimizer, state: TrainState) -> Result<()> {
        let started = Instant::now();
        let mut snapshot = match self.buffer.take() {
            Some(buffer) => buffer,
            // The thread of the previous save could not be started or panicked.
            None => HostSnapshot::allocate(model, optimizer)?,
        };
        snapshot.copy_from(model, optimizer)?;
        let copy_time = started.elapsed();
        let (sender, result) = mpsc::channel();
        let (dir, step) = (self.dir.clone(), state.step);
        let path = dir.path_of(step);
        let write = move || {
            lower_thread_priority();
            let started = Instant::now();
            let saved = dir.save(&snapshot, state).map(|report| (report, started.elapsed()));
            // The receiver is dropped if the run ends without waiting.
            let _ = sender.send((snapshot, saved));
        };
        std::thread::Builder::new().name("checkpoint".to_owned()).spawn(write).with_context(|| {
            format!("the checkpoint {} cannot be written: the system cannot start a thread", path.display())
        })?;
        self.pending = Some(PendingSave { path, step, started, copy_time, result });
        Ok(())
    }

    /// Waits at most `timeout` for the pending save.
    pub(crate) fn wait(&mut self, timeout: Duration) -> WriterStatus {
        let Some(pending) = &self.pending else { return WriterStatus::Idle };
        let result = if timeout.is_zero() {
            pending.result.try_recv().map_err(|error| error == TryRecvError::Empty)
        } else {
            pending.result.recv_timeout(timeout).map_err(|error| error == RecvTimeoutError::Timeout)
        };
        let (copy_time, step) = (pending.copy_time, pending.step);
        let finished = match result {
            Err(true) => return WriterStatus::Busy,
            Err(false) => {
                Err(anyhow!("the checkpoint {} was not written: its thread panicked", pending.path.display()))
            }
            Ok((snapshot, saved)) => {
                self.buffer = Some(snapshot);
                saved.map(|(report, write_time)| FinishedSave { step, report, copy_time, write_time })
            }
        };
        let elapsed = pending.started.elapsed();
        self.save_time = SaveTimeEstimate::Measured(match self.save_time {
            SaveTimeEstimate::Estimated(_) => elapsed,
            SaveTimeEstimate::Measured(longest) => longest.max(elapsed),
        });
        self.pending = None;
        WriterStatus::Done(finished)
    }

    /// Returns the estimated time until one more checkpoint would be complete, after the pending one.
    pub(crate) fn estimated_save_time(&self) -> Duration {
        let (SaveTimeEstimate::Estimated(time) | SaveTimeEstimate::Measured(time)) = self.save_time;
        if self.pending.is_some() { 2 * time } else { time }
    }

    /// Returns whether no save is pending.
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_none()
    }
}

/// Lowers the priority of this thread. A step waits for its slowest thread, so the writing thread
/// must not take a core from a computing one. It still gets about a tenth of a core.
fn lower_thread_priority() {
    const NICE: i32 = 10;
    // If this fails, training is only slower during a save.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
}
