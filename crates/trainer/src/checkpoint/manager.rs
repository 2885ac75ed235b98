//! A run's checkpoints: copied between two steps, written while the next ones go on, at most one
//! at a time. Rank 0 writes; what concerns all ranks is agreed on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use model::LanguageModel;

use crate::checkpoint::CheckpointConfig;
use crate::checkpoint::async_writer::{CheckpointWriter, FinishedSave, WriterStatus};
use crate::checkpoint::state::TrainState;
use crate::distributed::collectives::Collectives;
use crate::logging::run_logger::RunLogger;
use crate::optim::adamw::Optimizer;
use crate::runtime::watchdog::Watchdog;

/// What the process does meanwhile.
const WAITING: &str = "waiting for a checkpoint to be written";

/// When checkpoints are saved, and what became of them.
pub(crate) struct CheckpointManager<'a> {
    ranks: &'a Collectives,
    /// Rank 0's.
    writer: Option<CheckpointWriter>,
    /// Time without a checkpoint after which one is due.
    patience: Option<Duration>,
    begun: Instant,
    /// Step of the newest one that is complete, on rank 0.
    newest: Option<u64>,
    /// Why the newest one was not written.
    failed: Option<anyhow::Error>,
}

/// What is saved.
#[derive(Clone, Copy)]
pub(crate) struct SaveInputs<'a> {
    pub(crate) model: &'a LanguageModel,
    pub(crate) optimizer: &'a Optimizer,
    pub(crate) state: &'a TrainState,
}

/// Who hears of it.
pub(crate) struct Heard<'a> {
    pub(crate) recorder: &'a mut Option<RunLogger>,
    pub(crate) watchdog: &'a Watchdog,
}

impl<'a> CheckpointManager<'a> {
    /// For all ranks of a run that begins at this step; `writer` on rank 0.
    pub(crate) fn new(
        config: &CheckpointConfig,
        ranks: &'a Collectives,
        writer: Option<CheckpointWriter>,
        step: u64,
    ) -> Self {
        let patience = (config.every_minutes > 0).then(|| Duration::from_secs(60 * config.every_minutes));
        // Of a run that goes on from another run's there is none yet.
        let newest = writer.as_ref().filter(|writer| writer.has(step)).map(|_| step);
        CheckpointManager { ranks, writer, patience, begun: Instant::now(), newest, failed: None }
    }

    /// Whether one is due because of the time; rank 0's clock counts, and only while nothing
    /// is in flight.
    pub(crate) fn is_due_by_time(&self) -> bool {
        let due = self.patience.is_some_and(|patience| self.begun.elapsed() >= patience);
        due && self.writer.as_ref().is_some_and(CheckpointWriter::is_idle)
    }

    /// Step of the newest one that is complete, on all ranks, after the one in flight.
    ///
    /// # Errors
    /// When another rank is gone.
    pub(crate) fn newest(&mut self, heard: &mut Heard<'_>) -> Result<Option<u64>> {
        self.settle(heard, true)?;
        let newest = self.ranks.broadcast_from_first(|| Ok(serde_json::to_string(&self.newest)?))?;
        serde_json::from_str(&newest).context("what rank 0 says of its checkpoints is no JSON")
    }

    /// How long it may take from now on until one more is complete, by what this rank has seen.
    pub(crate) fn reckoned(&self) -> Duration {
        self.writer.as_ref().map_or(Duration::ZERO, CheckpointWriter::reckoned)
    }

    /// Says what became of the one in flight, if it has ended. A failure is a warning: the next
    /// one may succeed.
    pub(crate) fn look(&mut self, recorder: &mut Option<RunLogger>) {
        self.wait(Duration::ZERO, recorder, true);
    }

    /// Whether it is still being written after so long.
    fn wait(&mut self, at_most: Duration, recorder: &mut Option<RunLogger>, goes_on: bool) -> bool {
        let Some(writer) = &mut self.writer else { return false };
        let say = |recorder: &mut Option<RunLogger>, text: String| {
            if let Some(recorder) = recorder {
                recorder.line(&text);
            }
        };
        match writer.wait(at_most) {
            WriterStatus::Idle => return false,
            WriterStatus::Busy => {
                if let Some(recorder) = recorder.as_mut().filter(|_| !at_most.is_zero()) {
                    recorder.still(WAITING);
                }
                return true;
            }
            WriterStatus::Done(Ok(FinishedSave { step, saved, copying, writing })) => {
                let (copying, writing) = (copying.as_secs_f64(), writing.as_secs_f64());
                say(
                    recorder,
                    format!(
                        "checkpoint  {} (copied in {copying:.3} s, written in {writing:.1} s)",
                        saved.path.display()
                    ),
                );
                if let Some(error) = saved.untidied {
                    say(recorder, format!("warning     older checkpoints stay: {error:#}"));
                }
                self.newest = Some(step);
                if let Some(recorder) = recorder.as_mut() {
                    recorder.saved(step);
                }
            }
            WriterStatus::Done(Err(error)) => self.failed = Some(error),
        }
        if goes_on {
            self.warn(recorder);
        }
        false
    }

    fn warn(&mut self, recorder: &mut Option<RunLogger>) {
        if let (Some(error), Some(recorder)) = (self.failed.take(), recorder) {
            recorder
                .line(&format!("warning     {error:#}; the run goes on, and the next one that is due is tried again"));
        }
    }

    /// All ranks wait for the one in flight. However long rank 0 takes, no exchange of the
    /// others is out of time; only the watchdog ends a wait.
    fn settle(&mut self, heard: &mut Heard<'_>, goes_on: bool) -> Result<()> {
        heard.watchdog.progress(WAITING);
        while self.ranks.any([self.wait(self.ranks.poll_interval(), heard.recorder, goes_on)])?[0] {}
        Ok(())
    }

    /// Copies what is trained, once the one before is written, and begins to write it. A failure
    /// is a warning.
    ///
    /// # Errors
    /// When another rank is gone.
    pub(crate) fn save(&mut self, trained: SaveInputs<'_>, heard: &mut Heard<'_>) -> Result<()> {
        self.start(trained, heard)?;
        self.warn(heard.recorder);
        Ok(())
    }

    fn start(&mut self, trained: SaveInputs<'_>, heard: &mut Heard<'_>) -> Result<()> {
        self.settle(heard, true)?;
        heard.watchdog.progress("copying a checkpoint");
        if let (Some(writer), Some(recorder)) = (&mut self.writer, &mut *heard.recorder) {
            let flushed = recorder.flush().context("no checkpoint is begun before the metrics are written");
            let started = flushed.and_then(|()| writer.start(trained.model, trained.optimizer, trained.state.clone()));
            self.failed = started.err();
        }
        self.begun = Instant::now();
        Ok(())
    }

    /// Saves and waits until it is written: the last one of a run.
    ///
    /// # Errors
    /// On all ranks, when it cannot be written.
    pub(crate) fn save_last(&mut self, trained: SaveInputs<'_>, heard: &mut Heard<'_>) -> Result<()> {
        self.start(trained, heard)?;
        self.settle(heard, false)?;
        self.ranks.try_all(self.failed.take().map_or(Ok(()), Err))
    }

    /// Waits for the one in flight after an error that ends the run, without the other ranks,
    /// which may be gone: the error, and that of the checkpoint if it fails too.
    pub(crate) fn close(&mut self, error: anyhow::Error, heard: &mut Heard<'_>) -> anyhow::Error {
        heard.watchdog.progress(WAITING);
        while self.wait(self.ranks.poll_interval(), heard.recorder, false) {}
        match self.failed.take() {
            Some(failed) => anyhow!("{error:#}; besides, {failed:#}"),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use model::ModelConfig;
    use tch::Device;

    use super::*;
    use crate::checkpoint::{CheckpointDir, verify};
    use crate::config::Config;
    use crate::distributed::world::World;
    use crate::optim::adamw::OptimizerConfig;

    fn tiny() -> (LanguageModel, Optimizer) {
        let config = ModelConfig {
            n_embd: 8,
            n_head: 2,
            n_layer: 1,
            num_senses: 2,
            vocab_size: 11,
            n_positions: 4,
            ..ModelConfig::default()
        };
        let model = LanguageModel::initialize(config, 1, Device::Cpu).unwrap();
        let optimizer = Optimizer::new(OptimizerConfig::default(), &model);
        (model, optimizer)
    }

    /// Saves at these steps, a last one where `last`; the result of the last call.
    fn save_at(run_dir: &Path, steps: &[u64], last: bool) -> Result<()> {
        let (model, optimizer) = tiny();
        let config = CheckpointConfig { keep_last: 9, ..CheckpointConfig::default() };
        let ranks = Collectives::alone();
        let writer = CheckpointWriter::new(CheckpointDir::new(run_dir, &config), &model, &optimizer).unwrap();
        let mut saving = CheckpointManager::new(&config, &ranks, Some(writer), 0);
        saving.patience = Some(Duration::ZERO);
        assert!(saving.is_due_by_time());
        let watchdog = Watchdog::start(&World::alone(), Duration::ZERO).unwrap();
        // Without a recorder nothing would be saved.
        let folder = crate::logging::run_dir::RunDir::open(run_dir).unwrap();
        let recorder = RunLogger::new(folder, CheckpointDir::new(run_dir, &config)).unwrap();
        let mut recorder = Some(recorder);
        let mut heard = Heard { recorder: &mut recorder, watchdog: &watchdog };
        for &step in steps {
            let state = TrainState { step, ..TrainState::new(&Config::example(), None, 10).unwrap() };
            let saved = SaveInputs { model: &model, optimizer: &optimizer, state: &state };
            if last && Some(&step) == steps.last() {
                return saving.save_last(saved, &mut heard);
            }
            saving.save(saved, &mut heard)?;
            // The copy is what is written, whatever becomes of the weights.
            tch::no_grad(|| model.parameters().iter().for_each(|(_, p)| drop(p.shallow_clone().zero_())));
        }
        let error = saving.close(anyhow!("the network is gone"), &mut heard).to_string();
        assert!(error.starts_with("the network is gone"), "{error}");
        Err(anyhow!(error))
    }

    #[test]
    fn the_newest_is_one_that_is_there() {
        let (model, optimizer) = tiny();
        let (config, ranks) = (CheckpointConfig::default(), Collectives::alone());
        let watchdog = Watchdog::start(&World::alone(), Duration::ZERO).unwrap();
        let newest = |run_dir: &Path, begun_at: u64, step: Option<u64>| {
            let writer = CheckpointWriter::new(CheckpointDir::new(run_dir, &config), &model, &optimizer).unwrap();
            let mut saving = CheckpointManager::new(&config, &ranks, Some(writer), begun_at);
            let folder = crate::logging::run_dir::RunDir::open(run_dir).unwrap();
            let mut recorder = Some(RunLogger::new(folder, CheckpointDir::new(run_dir, &config)).unwrap());
            let mut heard = Heard { recorder: &mut recorder, watchdog: &watchdog };
            if let Some(step) = step {
                let state = TrainState { step, ..TrainState::new(&Config::example(), None, 10).unwrap() };
                saving.save(SaveInputs { model: &model, optimizer: &optimizer, state: &state }, &mut heard).unwrap();
            }
            saving.newest(&mut heard).unwrap()
        };
        let (there, blocked) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(newest(there.path(), 0, Some(7)), Some(7));
        assert_eq!(newest(there.path(), 7, None), Some(7));
        // Resumed at another run's step, or not written for want of room.
        assert_eq!(newest(there.path(), 9, None), None);
        fs::write(blocked.path().join("checkpoints"), "a file").unwrap();
        assert_eq!(newest(blocked.path(), 0, Some(7)), None);
    }

    #[test]
    fn each_waits_for_the_one_before_and_the_end_for_the_last() {
        let folder = tempfile::tempdir().unwrap();
        save_at(folder.path(), &[1, 2, 3], true).unwrap();
        for step in 1..=3 {
            verify(&folder.path().join(format!("checkpoints/step-{step:08}"))).unwrap();
        }
        let first = model::load_model(&folder.path().join("checkpoints/step-00000001"), Device::Cpu).unwrap();
        assert!(first.parameters().iter().any(|(_, p)| p.abs().max().double_value(&[]) > 0.0));
        let log = fs::read_to_string(folder.path().join("log.txt")).unwrap();
        assert_eq!(log.lines().filter(|line| line.starts_with("checkpoint  ")).count(), 3, "{log}");
    }

    #[test]
    fn an_error_waits_for_the_one_in_flight_and_tells_of_its_failure_too() {
        let folder = tempfile::tempdir().unwrap();
        let error = save_at(folder.path(), &[1], false).unwrap_err().to_string();
        assert_eq!(error, "the network is gone");
        verify(&folder.path().join("checkpoints/step-00000001")).unwrap();
        let blocked = tempfile::tempdir().unwrap();
        fs::write(blocked.path().join("checkpoints"), "a file").unwrap();
        let error = save_at(blocked.path(), &[1, 2], false).unwrap_err().to_string();
        assert!(error.starts_with("the network is gone; besides, the checkpoint "), "{error}");
        assert!(error.contains("step-00000002 cannot be written"), "{error}");
        let log = fs::read_to_string(blocked.path().join("log.txt")).unwrap();
        assert!(log.contains("step-00000001 cannot be written") && log.contains("; the run goes on"), "{log}");
        let error = save_at(blocked.path(), &[3], true).unwrap_err();
        assert!(format!("{error:#}").contains("step-00000003 cannot be written"), "{error:#}");
    }
}
