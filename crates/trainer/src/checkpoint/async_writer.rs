//! Writes checkpoints beside the training, one at a time.

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use model::LanguageModel;

use crate::checkpoint::snapshot::HostSnapshot;
use crate::checkpoint::state::TrainState;
use crate::checkpoint::{CheckpointDir, SaveReport};
use crate::optim::adamw::Optimizer;

/// Where the checkpoint in flight is.
#[derive(Debug)]
pub(crate) enum WriterStatus {
    /// There is none.
    Idle,
    /// It is being written.
    Busy,
    /// It is complete, or failed: told once.
    Done(Result<FinishedSave>),
}

/// A complete checkpoint, and what it cost.
#[derive(Debug)]
pub(crate) struct FinishedSave {
    /// Steps that its run had done.
    pub(crate) step: u64,
    pub(crate) saved: SaveReport,
    /// The copy, for which training waited.
    pub(crate) copying: Duration,
    /// The rest, for which it did not.
    pub(crate) writing: Duration,
}

/// At most one checkpoint in flight.
#[derive(Debug)]
pub(crate) struct CheckpointWriter {
    store: CheckpointDir,
    /// What the next one is copied into; away while one is written.
    room: Option<HostSnapshot>,
    in_flight: Option<PendingSave>,
    /// From a copy's begin to its checkpoint's end: the longest so far, or before the first a guess.
    longest: SaveTimeEstimate,
}

/// How long checkpoints take.
#[derive(Debug, Clone, Copy)]
enum SaveTimeEstimate {
    Guessed(Duration),
    Seen(Duration),
}

/// Bytes a second of a disk that writes, and reads again for the hashes, slowly.
const CAUTIOUS_RATE: f64 = 50e6;

#[derive(Debug)]
struct PendingSave {
    folder: PathBuf,
    step: u64,
    begun: Instant,
    copying: Duration,
    ended: Receiver<(HostSnapshot, Result<(SaveReport, Duration)>)>,
}

impl CheckpointWriter {
    /// With room for copies of these.
    ///
    /// # Errors
    /// When memory is short.
    pub(crate) fn new(store: CheckpointDir, model: &LanguageModel, optimizer: &Optimizer) -> Result<Self> {
        let room = HostSnapshot::room_for(model, optimizer)?;
        let longest = SaveTimeEstimate::Guessed(Duration::from_secs_f64(room.bytes() as f64 / CAUTIOUS_RATE));
        Ok(CheckpointWriter { store, room: Some(room), in_flight: None, longest })
    }

    /// Whether there is a checkpoint of this step.
    pub(crate) fn has(&self, step: u64) -> bool {
        self.store.folder_of(step).is_dir()
    }

    /// Copies weights and moments and begins to write the copy; the one before has to be done.
    ///
    /// # Errors
    /// When memory or threads are short; nothing is written then.
    pub(crate) fn start(&mut self, model: &LanguageModel, optimizer: &Optimizer, state: TrainState) -> Result<()> {
        let begun = Instant::now();
        let mut snapshot = match self.room.take() {
            Some(room) => room,
            // Lost with a thread that could not be started or broke.
            None => HostSnapshot::room_for(model, optimizer)?,
        };
        snapshot.take(model, optimizer)?;
        let copying = begun.elapsed();
        let (tell, ended) = mpsc::channel();
        let (store, step) = (self.store.clone(), state.step);
        let folder = store.folder_of(step);
        let write = move || {
            yield_to_training();
            let begun = Instant::now();
            let saved = store.save(&snapshot, state).map(|saved| (saved, begun.elapsed()));
            // Nobody listens to a run that is over.
            let _ = tell.send((snapshot, saved));
        };
        std::thread::Builder::new().name("checkpoint".to_owned()).spawn(write).with_context(|| {
            format!("the checkpoint {} cannot be written: the system starts no thread", folder.display())
        })?;
        self.in_flight = Some(PendingSave { folder, step, begun, copying, ended });
        Ok(())
    }

    /// Waits at most so long for the checkpoint in flight.
    pub(crate) fn wait(&mut self, at_most: Duration) -> WriterStatus {
        let Some(in_flight) = &self.in_flight else { return WriterStatus::Idle };
        let ended = if at_most.is_zero() {
            in_flight.ended.try_recv().map_err(|error| error == TryRecvError::Empty)
        } else {
            in_flight.ended.recv_timeout(at_most).map_err(|error| error == RecvTimeoutError::Timeout)
        };
        let (copying, step) = (in_flight.copying, in_flight.step);
        let written = match ended {
            Err(true) => return WriterStatus::Busy,
            Err(false) => {
                let folder = in_flight.folder.display();
                Err(anyhow!("the checkpoint {folder} was not written: its thread broke off"))
            }
            Ok((snapshot, saved)) => {
                self.room = Some(snapshot);
                saved.map(|(saved, writing)| FinishedSave { step, saved, copying, writing })
            }
        };
        let took = in_flight.begun.elapsed();
        self.longest = SaveTimeEstimate::Seen(match self.longest {
            SaveTimeEstimate::Guessed(_) => took,
            SaveTimeEstimate::Seen(longest) => longest.max(took),
        });
        self.in_flight = None;
        WriterStatus::Done(written)
    }

    /// How long one more checkpoint may take from now on until it is complete, after the one
    /// in flight.
    pub(crate) fn reckoned(&self) -> Duration {
        let (SaveTimeEstimate::Guessed(longest) | SaveTimeEstimate::Seen(longest)) = self.longest;
        if self.in_flight.is_some() { 2 * longest } else { longest }
    }

    /// Whether nothing is in flight.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_none()
    }
}

/// A step waits for its slowest thread, so that the writing thread had better not take a core from
/// one. It gets what is left, and at least about a tenth of a core.
fn yield_to_training() {
    const NICE: i32 = 10;
    // Refused: it is only slower so.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
}
