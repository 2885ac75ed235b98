//! When checkpoints are saved, and the result of each save.
//!
//! Weights and moments are copied between two steps, and the copy is written during the next steps.
//! Rank 0 writes. Decisions that concern all ranks are collective.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use model::LanguageModel;

use crate::checkpoint::async_writer::{CheckpointWriter, FinishedSave, WriterStatus};
use crate::checkpoint::checkpoint_dir::CheckpointDir;
use crate::checkpoint::config::CheckpointConfig;
use crate::checkpoint::state::TrainState;
use crate::distributed::collectives::Collectives;
use crate::logging::run_logger::RunLogger;
use crate::optim::adamw::Optimizer;
use crate::runtime::watchdog::Watchdog;

/// The phase of the process while it waits.
const WAITING: &str = "waiting for a checkpoint to be written";

/// Saves the checkpoints of a run, at most one at a time. All ranks have a manager and call its
/// collective methods in the same order.
pub(crate) struct CheckpointManager<'a> {
    collectives: &'a Collectives,
    watchdog: &'a Watchdog,
    /// `None` except on rank 0.
    writer: Option<CheckpointWriter>,
    /// Time without a checkpoint after which one is due; `None` for never.
    max_interval: Option<Duration>,
    last_save: Instant,
    /// Step of the newest complete checkpoint of this run, on rank 0.
    newest_step: Option<u64>,
    /// The error of the last save, until it is reported.
    failure: Option<anyhow::Error>,
}

impl<'a> CheckpointManager<'a> {
    /// Creates the manager of a run that starts at `step`. Collective.
    ///
    /// # Errors
    /// Rank 0 has no memory for the copies.
    pub(crate) fn new(
        config: &CheckpointConfig,
        dir: CheckpointDir,
        collectives: &'a Collectives,
        watchdog: &'a Watchdog,
        model: &LanguageModel,
        optimizer: &Optimizer,
        step: u64,
    ) -> Result<Self> {
        let writer = collectives.is_first().then(|| CheckpointWriter::new(dir, model, optimizer)).transpose();
        let writer = collectives.try_all(writer)?;
        // A run that resumes from another run's checkpoint has none itself.
        let newest_step = writer.as_ref().filter(|writer| writer.is_saved(step)).map(|_| step);
        let max_interval = (config.every_minutes > 0).then(|| Duration::from_secs(60 * config.every_minutes));
        let last_save = Instant::now();
        Ok(CheckpointManager { collectives, watchdog, writer, max_interval, last_save, newest_step, failure: None })
    }

    /// Returns whether a checkpoint is due because of the time. Only rank 0's clock counts, and only
    /// while no save is pending.
    pub(crate) fn is_due_by_time(&self) -> bool {
        let is_due = self.max_interval.is_some_and(|interval| self.last_save.elapsed() >= interval);
        is_due && self.writer.as_ref().is_some_and(CheckpointWriter::is_idle)
    }

    /// Returns the step of the newest complete checkpoint on rank 0, and `None` on other ranks.
    pub(crate) fn newest_step(&self) -> Option<u64> {
        self.newest_step
    }

    /// Waits for the pending save and returns the step of the newest complete checkpoint on all
    /// ranks. Collective.
    ///
    /// # Errors
    /// Another rank has disconnected.
    pub(crate) fn wait_for_newest_step(&mut self, log: &mut RunLogger) -> Result<Option<u64>> {
        self.wait_all(log)?;
        self.report_failure(log);
        let newest = self.collectives.broadcast_from_first(|| Ok(serde_json::to_string(&self.newest_step)?))?;
        serde_json::from_str(&newest).context("invalid checkpoint message from rank 0")
    }

    /// Returns the estimated time until one more checkpoint would be complete; zero except on rank 0.
    pub(crate) fn estimated_save_time(&self) -> Duration {
        self.writer.as_ref().map_or(Duration::ZERO, CheckpointWriter::estimated_save_time)
    }

    /// Logs the result of the pending save if it is done. A failure is a warning, because the next
    /// save may succeed.
    pub(crate) fn poll(&mut self, log: &mut RunLogger) {
        self.wait(Duration::ZERO, log);
        self.report_failure(log);
    }

    /// Copies weights and moments, after the pending save is done, and starts to write them.
    /// Collective.
    ///
    /// [`CheckpointManager::poll`] or [`CheckpointManager::wait_for_save`] reports a failure.
    ///
    /// # Errors
    /// Another rank has disconnected.
    pub(crate) fn save(
        &mut self,
        model: &LanguageModel,
        optimizer: &Optimizer,
        state: &TrainState,
        log: &mut RunLogger,
    ) -> Result<()> {
        self.wait_all(log)?;
        self.report_failure(log);
        self.watchdog.progress("copying a checkpoint");
        if let Some(writer) = &mut self.writer {
            let flushed = log.flush().context("no checkpoint is saved before the metrics are written");
            let started = flushed.and_then(|()| writer.start(model, optimizer, state.clone()));
            self.failure = started.err();
        }
        self.last_save = Instant::now();
        Ok(())
    }

    /// Waits until the save that was started last is complete. Collective.
    ///
    /// # Errors
    /// The checkpoint cannot be written; the error is returned on all ranks.
    pub(crate) fn wait_for_save(&mut self, log: &mut RunLogger) -> Result<()> {
        self.wait_all(log)?;
        self.collectives.try_all(self.failure.take().map_or(Ok(()), Err))
    }

    /// Waits for the pending save after an error that ends the run. Does not involve the other
    /// ranks, which may have disconnected. Returns the error, and the one of the save if it failed.
    pub(crate) fn finish(&mut self, error: anyhow::Error, log: &mut RunLogger) -> anyhow::Error {
        self.watchdog.progress(WAITING);
        while self.wait(self.collectives.poll_interval(), log) {}
        match self.failure.take() {
            Some(failure) => anyhow!("{error:#}; in addition, {failure:#}"),
            None => error,
        }
    }

    /// Waits on all ranks for the pending save. The ranks meet once per poll interval, so that no
    /// collective times out; only the watchdog ends a wait. Collective.
    fn wait_all(&mut self, log: &mut RunLogger) -> Result<()> {
        self.watchdog.progress(WAITING);
        while self.collectives.any([self.wait(self.collectives.poll_interval(), log)])?[0] {}
        Ok(())
    }

    /// Waits at most `timeout` for the pending save, and logs it once it is complete. Returns whether
    /// it is still being written.
    fn wait(&mut self, timeout: Duration, log: &mut RunLogger) -> bool {
        let Some(writer) = &mut self.writer else { return false };
        match writer.wait(timeout) {
            WriterStatus::Idle => {}
            WriterStatus::Busy => {
                if !timeout.is_zero() {
                    log.heartbeat_idle(WAITING);
                }
                return true;
            }
            WriterStatus::Done(Ok(FinishedSave { step, report, copy_time, write_time })) => {
                log.info(&format!(
                    "checkpoint  {} (copied in {:.3} s, written in {:.1} s)",
                    report.path.display(),
                    copy_time.as_secs_f64(),
                    write_time.as_secs_f64()
                ));
                if let Some(error) = report.cleanup_error {
                    log.info(&format!("warning     older checkpoints were not deleted: {error:#}"));
                }
                self.newest_step = Some(step);
            }
            WriterStatus::Done(Err(error)) => self.failure = Some(error),
        }
        false
    }

    /// Logs the error of the last save, if there is one, as a warning.
    fn report_failure(&mut self, log: &mut RunLogger) {
        if let Some(error) = self.failure.take() {
            log.info(&format!(
                "warning     {error:#}; the run continues and saves again when the next checkpoint is due"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use tch::Device;

    use super::*;
    use crate::checkpoint::testing::{state, tiny_model};
    use crate::checkpoint::verify;
    use crate::distributed::world::World;
    use crate::logging::run_dir::RunDir;

    fn logger(run_dir: &Path) -> RunLogger {
        RunLogger::open(RunDir::open(run_dir).unwrap()).unwrap()
    }

    /// Saves at these steps, and returns the result of the last call: `wait_for_save` after the last
    /// step if `last`, otherwise `finish`.
    fn save_at(run_dir: &Path, steps: &[u64], last: bool) -> Result<()> {
        let (model, optimizer) = tiny_model();
        let config = CheckpointConfig { keep_last: 9, ..CheckpointConfig::default() };
        let collectives = Collectives::alone();
        let watchdog = Watchdog::start(&World::alone(), Duration::ZERO).unwrap();
        let dir = CheckpointDir::new(run_dir, &config);
        let mut manager = CheckpointManager::new(&config, dir, &collectives, &watchdog, &model, &optimizer, 0).unwrap();
        manager.max_interval = Some(Duration::ZERO);
        assert!(manager.is_due_by_time());
        let mut log = logger(run_dir);
        for &step in steps {
            manager.save(&model, &optimizer, &state(step, None), &mut log)?;
            if last && Some(&step) == steps.last() {
                return manager.wait_for_save(&mut log);
            }
            // The copy is written, even if the weights change meanwhile.
            tch::no_grad(|| model.parameters().iter().for_each(|(_, p)| drop(p.shallow_clone().zero_())));
        }
        let error = manager.finish(anyhow!("the network is down"), &mut log).to_string();
        assert!(error.starts_with("the network is down"), "{error}");
        Err(anyhow!(error))
    }

    #[test]
    fn newest_step_is_that_of_an_existing_checkpoint() {
        let (model, optimizer) = tiny_model();
        let (config, collectives) = (CheckpointConfig::default(), Collectives::alone());
        let watchdog = Watchdog::start(&World::alone(), Duration::ZERO).unwrap();
        let newest = |run_dir: &Path, first_step: u64, save: Option<u64>| {
            let dir = CheckpointDir::new(run_dir, &config);
            let mut manager =
                CheckpointManager::new(&config, dir, &collectives, &watchdog, &model, &optimizer, first_step).unwrap();
            let mut log = logger(run_dir);
            if let Some(step) = save {
                manager.save(&model, &optimizer, &state(step, None), &mut log).unwrap();
            }
            manager.wait_for_newest_step(&mut log).unwrap()
        };
        let (writable, blocked) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert_eq!(newest(writable.path(), 0, Some(7)), Some(7));
        assert_eq!(newest(writable.path(), 7, None), Some(7));
        // Resumed at the step of another run's checkpoint.
        assert_eq!(newest(writable.path(), 9, None), None);
        fs::write(blocked.path().join("checkpoints"), "a file").unwrap();
        assert_eq!(newest(blocked.path(), 0, Some(7)), None);
    }

    #[test]
    fn each_save_waits_for_the_previous_one_and_the_last_for_itself() {
        let scratch = tempfile::tempdir().unwrap();
        save_at(scratch.path(), &[1, 2, 3], true).unwrap();
        for step in 1..=3 {
            verify(&scratch.path().join(format!("checkpoints/step-{step:08}"))).unwrap();
        }
        let first = model::load_model(&scratch.path().join("checkpoints/step-00000001"), Device::Cpu).unwrap();
        assert!(first.parameters().iter().any(|(_, p)| p.abs().max().double_value(&[]) > 0.0));
        let log = fs::read_to_string(scratch.path().join("log.txt")).unwrap();
        assert_eq!(log.lines().filter(|line| line.starts_with("checkpoint  ")).count(), 3, "{log}");
    }

    #[test]
    fn an_error_waits_for_the_pending_save_and_includes_its_failure() {
        let scratch = tempfile::tempdir().unwrap();
        let error = save_at(scratch.path(), &[1], false).unwrap_err().to_string();
        assert_eq!(error, "the network is down");
        verify(&scratch.path().join("checkpoints/step-00000001")).unwrap();
        let blocked = tempfile::tempdir().unwrap();
        fs::write(blocked.path().join("checkpoints"), "a file").unwrap();
        let error = save_at(blocked.path(), &[1, 2], false).unwrap_err().to_string();
        assert!(error.starts_with("the network is down; in addition, the checkpoint "), "{error}");
        assert!(error.contains("step-00000002 cannot be written"), "{error}");
        let log = fs::read_to_string(blocked.path().join("log.txt")).unwrap();
        assert!(log.contains("step-00000001 cannot be written") && log.contains("; the run continues"), "{log}");
        let error = save_at(blocked.path(), &[3], true).unwrap_err();
        assert!(format!("{error:#}").contains("step-00000003 cannot be written"), "{error:#}");
    }
}
