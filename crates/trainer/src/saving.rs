//! A run's checkpoints: copied between two steps, written while the next ones go on, at most one
//! at a time. Rank 0 writes; what concerns all ranks is agreed on.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use model::LanguageModel;

use crate::checkpoint::CheckpointConfig;
use crate::optimizer::Optimizer;
use crate::ranks::Ranks;
use crate::recorder::Recorder;
use crate::state::State;
use crate::watchdog::Watchdog;
use crate::writer::{Progress, Writer, Written};

/// When checkpoints are saved, and what became of them.
pub(crate) struct Saving<'a> {
    ranks: &'a Ranks,
    /// Rank 0's.
    writer: Option<Writer>,
    /// Time without a checkpoint after which one is due.
    patience: Option<Duration>,
    begun: Instant,
    /// Step of the newest one that was begun or that the run goes on from.
    newest: Option<u64>,
    /// Why the newest one was not written.
    failed: Option<anyhow::Error>,
}

/// What is saved.
#[derive(Clone, Copy)]
pub(crate) struct Saved<'a> {
    pub(crate) model: &'a LanguageModel,
    pub(crate) optimizer: &'a Optimizer,
    pub(crate) state: &'a State,
}

/// Who hears of it.
pub(crate) struct Heard<'a> {
    pub(crate) recorder: &'a mut Option<Recorder>,
    pub(crate) watchdog: &'a Watchdog,
}

impl<'a> Saving<'a> {
    /// For all ranks of a run that begins at this step; `writer` on rank 0.
    pub(crate) fn new(config: &CheckpointConfig, ranks: &'a Ranks, writer: Option<Writer>, step: u64) -> Self {
        let patience = (config.every_minutes > 0).then(|| Duration::from_secs(60 * config.every_minutes));
        Saving { ranks, writer, patience, begun: Instant::now(), newest: (step > 0).then_some(step), failed: None }
    }

    /// Whether one is due because of the time; rank 0's clock counts, and only while nothing
    /// is in flight.
    pub(crate) fn is_due_by_time(&self) -> bool {
        let due = self.patience.is_some_and(|patience| self.begun.elapsed() >= patience);
        due && self.writer.as_ref().is_some_and(Writer::is_idle)
    }

    /// Step of the newest one, complete or in flight.
    pub(crate) fn newest(&self) -> Option<u64> {
        self.newest
    }

    /// How long it may take from now on until one more is complete, by what this rank has seen.
    pub(crate) fn reckoned(&self) -> Duration {
        self.writer.as_ref().map_or(Duration::ZERO, Writer::reckoned)
    }

    /// Says what became of the one in flight, if it has ended. A failure is a warning: the next
    /// one may succeed.
    pub(crate) fn look(&mut self, recorder: &mut Option<Recorder>) {
        self.wait(Duration::ZERO, recorder, true);
    }

    /// Whether it is still being written after so long.
    fn wait(&mut self, at_most: Duration, recorder: &mut Option<Recorder>, goes_on: bool) -> bool {
        let Some(writer) = &mut self.writer else { return false };
        let mut say = |text: String| {
            if let Some(recorder) = recorder {
                recorder.line(&text);
            }
        };
        match writer.wait(at_most) {
            Progress::Idle => return false,
            Progress::Busy => return true,
            Progress::Done(Ok(Written { saved, copying, writing })) => {
                let (copying, writing) = (copying.as_secs_f64(), writing.as_secs_f64());
                say(format!(
                    "checkpoint  {} (copied in {copying:.3} s, written in {writing:.1} s)",
                    saved.path.display()
                ));
                if let Some(error) = saved.untidied {
                    say(format!("warning     older checkpoints stay: {error:#}"));
                }
            }
            Progress::Done(Err(error)) => self.failed = Some(error),
        }
        if goes_on {
            self.warn(recorder);
        }
        false
    }

    fn warn(&mut self, recorder: &mut Option<Recorder>) {
        if let (Some(error), Some(recorder)) = (self.failed.take(), recorder) {
            recorder
                .line(&format!("warning     {error:#}; the run goes on, and the next one that is due is tried again"));
        }
    }

    /// All ranks wait for the one in flight. However long rank 0 takes, no exchange of the
    /// others is out of time; only the watchdog ends a wait.
    fn settle(&mut self, heard: &mut Heard<'_>, goes_on: bool) -> Result<()> {
        heard.watchdog.progress("waiting for a checkpoint to be written");
        while self.ranks.any([self.wait(self.ranks.pause(), heard.recorder, goes_on)])?[0] {}
        Ok(())
    }

    /// Copies what is trained, once the one before is written, and begins to write it. A failure
    /// is a warning.
    ///
    /// # Errors
    /// When another rank is gone.
    pub(crate) fn save(&mut self, trained: Saved<'_>, heard: &mut Heard<'_>) -> Result<()> {
        self.start(trained, heard)?;
        self.warn(heard.recorder);
        Ok(())
    }

    fn start(&mut self, trained: Saved<'_>, heard: &mut Heard<'_>) -> Result<()> {
        self.settle(heard, true)?;
        heard.watchdog.progress("copying a checkpoint");
        if let Some(recorder) = heard.recorder {
            recorder.flush_events();
        }
        if let Some(writer) = &mut self.writer {
            self.failed = writer.start(trained.model, trained.optimizer, trained.state.clone()).err();
        }
        (self.begun, self.newest) = (Instant::now(), Some(trained.state.step));
        Ok(())
    }

    /// Saves and waits until it is written: the last one of a run.
    ///
    /// # Errors
    /// On all ranks, when it cannot be written.
    pub(crate) fn save_last(&mut self, trained: Saved<'_>, heard: &mut Heard<'_>) -> Result<()> {
        self.start(trained, heard)?;
        self.settle(heard, false)?;
        self.ranks.all(self.failed.take().map_or(Ok(()), Err))
    }

    /// Waits for the one in flight after an error that ends the run, without the other ranks,
    /// which may be gone: the error, and that of the checkpoint if it fails too.
    pub(crate) fn close(&mut self, error: anyhow::Error, heard: &mut Heard<'_>) -> anyhow::Error {
        heard.watchdog.progress("waiting for a checkpoint to be written");
        while self.wait(self.ranks.pause(), heard.recorder, false) {}
        match self.failed.take() {
            Some(failed) => anyhow!("{error:#}; besides, {failed:#}"),
            None => error,
        }
    }
}
