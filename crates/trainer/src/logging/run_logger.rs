//! The logger of a run: log lines, metrics, TensorBoard events and the session record.

use anyhow::{Context, Result};
use data_prep::fs::{Durability, write_atomic};

use crate::logging::console::Console;
use crate::logging::metrics::{LoggingConfig, MetricsRecord, MetricsWriter, TrainingMetrics, ValidationMetrics};
use crate::logging::run_dir::RunDir;
use crate::logging::sessions::{HardwareInfo, SessionOutcome, SessionRecord};
use crate::logging::tensorboard::EventWriter;
use crate::perf::profiler::{Profile, TRACE_FILE};

/// The name of the resolved configuration in a run directory.
pub(crate) const CONFIG_FILE: &str = "config.toml";

/// Writes all records of a run except its checkpoints. Rank 0 has one that writes; the other ranks
/// have a disabled one.
pub(crate) struct RunLogger {
    /// `None` for a disabled logger.
    run_dir: Option<RunDir>,
    console: Console,
    /// `None` before [`RunLogger::open_session`].
    metrics: Option<MetricsWriter>,
    /// Whether the newest metrics line could not be written.
    metrics_are_failing: bool,
    events: EventWriter,
    /// `None` before [`RunLogger::open_session`].
    session: Option<SessionRecord>,
}

impl RunLogger {
    /// Returns a logger that writes nothing.
    pub(crate) fn disabled() -> Self {
        RunLogger {
            run_dir: None,
            console: Console::disabled(),
            metrics: None,
            metrics_are_failing: false,
            events: EventWriter::disabled(),
            session: None,
        }
    }

    /// Opens the log in a run directory and keeps the directory's lock.
    ///
    /// # Errors
    /// `log.txt` cannot be opened.
    pub(crate) fn open(run_dir: RunDir) -> Result<Self> {
        Ok(RunLogger { console: Console::open(run_dir.path())?, run_dir: Some(run_dir), ..RunLogger::disabled() })
    }

    /// Writes the configuration and opens metrics, events and the session record for a run that has
    /// done `step` steps. Metrics of later steps are deleted.
    ///
    /// # Errors
    /// The configuration or the metrics cannot be written.
    pub(crate) fn open_session(
        &mut self,
        config_toml: &str,
        config: &LoggingConfig,
        hardware: HardwareInfo,
        step: u64,
    ) -> Result<()> {
        let Some(path) = self.run_dir.as_ref().map(|run_dir| run_dir.path().to_owned()) else { return Ok(()) };
        let config_path = path.join(CONFIG_FILE);
        write_atomic(&config_path, config_toml, Durability::Buffered)
            .with_context(|| format!("{} cannot be written", config_path.display()))?;
        if config.tensorboard {
            let first = if step == 0 { 0 } else { step + 1 };
            match EventWriter::create(&path, first) {
                Ok(events) => self.events = events,
                Err(error) => self.info(&format!("warning     TensorBoard: {error:#}")),
            }
            self.write_events(|events| events.text(first, "config", config_toml));
        }
        self.metrics = Some(MetricsWriter::open(&path, step)?);
        self.session = Some(SessionRecord::open(&path, hardware, step));
        Ok(())
    }

    /// Records how the session ended, for `backpack status` and in the log.
    pub(crate) fn close_session(&mut self, step: u64, outcome: SessionOutcome, error: Option<String>) {
        self.write_events(EventWriter::flush);
        if let Some(error) = &error {
            self.console.log_only(&format!("error       {error}"));
        }
        if let Some(session) = &mut self.session {
            session.close(step, outcome, error);
        }
    }

    /// Records for `backpack status` that the run is alive, at this step and in this phase.
    pub(crate) fn heartbeat(&mut self, step: u64, phase: &str) {
        if let Some(session) = &mut self.session {
            session.heartbeat(step, phase);
        }
    }

    /// Records for `backpack status` that the run is alive, at the step of the last heartbeat.
    pub(crate) fn heartbeat_idle(&mut self, phase: &str) {
        if let Some(session) = &mut self.session {
            session.heartbeat_idle(phase);
        }
    }

    /// Writes a log line.
    pub(crate) fn info(&mut self, text: &str) {
        self.console.line(text);
    }

    /// Updates the progress line if its interval has passed, or `always`.
    pub(crate) fn progress(&mut self, always: bool, text: impl FnOnce() -> String) {
        self.console.progress(always, text);
    }

    /// Writes the metrics of a training step. A failed write is a warning.
    pub(crate) fn training(&mut self, step: u64, tokens: u64, training: TrainingMetrics) {
        let scalars = [
            ("train/loss", training.loss.unwrap_or(f64::NAN)),
            ("train/learning_rate", training.lr),
            ("train/grad_norm", training.grad_norm.unwrap_or(f64::NAN)),
            ("speed/tokens_per_s", training.tokens_per_s),
            ("speed/mfu", training.mfu),
        ];
        self.write_metrics(&MetricsRecord { step, tokens, training: Some(training), validation: None });
        self.write_events(|events| events.scalars(step, &scalars));
    }

    /// Writes the metrics of a validation, and a log line. A failed write is a warning.
    pub(crate) fn validation(&mut self, step: u64, tokens: u64, validation: ValidationMetrics) {
        let ValidationMetrics { val_loss, val_ppl } = validation;
        self.write_metrics(&MetricsRecord { step, tokens, training: None, validation: Some(validation) });
        self.write_events(|events| events.scalars(step, &[("val/loss", val_loss), ("val/perplexity", val_ppl)]));
        self.info(&format!("validation  step {step}: loss {val_loss:.4}, perplexity {val_ppl:.2}"));
    }

    /// Writes a profile to the log, and its trace to a file. A failed write is a warning.
    pub(crate) fn profile(&mut self, profile: &Profile) {
        let Some(path) = self.run_dir.as_ref().map(|run_dir| run_dir.path().join(TRACE_FILE)) else { return };
        for line in &profile.lines {
            self.info(line);
        }
        match write_atomic(&path, &profile.trace, Durability::Buffered) {
            Ok(()) => self.info(&format!("            open {} at ui.perfetto.dev", path.display())),
            Err(error) => self.info(&format!("warning     {} cannot be written: {error}", path.display())),
        }
    }

    /// Writes everything that is still buffered, so that a checkpoint never precedes its metrics.
    ///
    /// # Errors
    /// The metrics cannot be written.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.write_events(EventWriter::flush);
        self.metrics.as_mut().map_or(Ok(()), MetricsWriter::flush)
    }

    /// Writes a metrics line. A line that cannot be written is kept and written with a later one.
    fn write_metrics(&mut self, record: &MetricsRecord) {
        let written = self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(record));
        let failed_before = std::mem::replace(&mut self.metrics_are_failing, written.is_err());
        match written {
            Ok(()) if failed_before => self.info("metrics     are written again; no line is missing"),
            Err(error) if !failed_before => {
                self.info(&format!("warning     {error:#}; the run continues and writes the lines later"));
            }
            _ => {}
        }
    }

    /// Writes TensorBoard events. A failure is a warning.
    fn write_events(&mut self, write: impl FnOnce(&mut EventWriter) -> Result<()>) {
        if let Err(error) = write(&mut self.events) {
            self.info(&format!("warning     TensorBoard: {error:#}; the run continues without events"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disabled_logger_accepts_every_call() {
        let mut log = RunLogger::disabled();
        let hardware = HardwareInfo { processes: 1, threads: 1, device: "cpu", host: String::new() };
        log.open_session("", &LoggingConfig::default(), hardware, 0).unwrap();
        log.heartbeat(1, "training");
        log.validation(1, 10, ValidationMetrics { val_loss: 2.0, val_ppl: 7.4 });
        log.flush().unwrap();
        log.close_session(1, SessionOutcome::Finished, None);
        assert!(log.session.is_none() && log.metrics.is_none());
    }
}
