//! What a run leaves in its folder: lines for a person, metrics, events and checkpoints. Rank
//! 0 alone has one.

use anyhow::Result;

use crate::checkpoint::CheckpointDir;
use crate::config::Config;
use crate::logging::console::Console;
use crate::logging::metrics::{MetricsRecord, MetricsWriter, TrainingMetrics, ValidationMetrics};
use crate::logging::run_dir::RunDir;
use crate::logging::sessions::{self, HardwareInfo, SessionOutcome};
use crate::logging::tensorboard::EventWriter;
use crate::perf::profiler::{Profile, TRACE_FILE};

/// The run folder, open for writing.
pub(crate) struct RunLogger {
    folder: RunDir,
    store: CheckpointDir,
    console: Console,
    /// From [`RunLogger::begin`] on.
    metrics: Option<MetricsWriter>,
    /// Whether the newest line could not be written.
    metrics_fail: bool,
    events: EventWriter,
    /// From [`RunLogger::begin`] on, too.
    session: Option<sessions::SessionRecord>,
    /// Step of the newest checkpoint.
    newest_checkpoint: Option<u64>,
}

impl RunLogger {
    /// Over a folder that this process has locked.
    pub(crate) fn new(folder: RunDir, store: CheckpointDir) -> Result<Self> {
        let console = Console::open(folder.path())?;
        Ok(RunLogger {
            folder,
            store,
            console,
            metrics: None,
            metrics_fail: false,
            events: EventWriter::none(),
            session: None,
            newest_checkpoint: None,
        })
    }

    /// Opens what grows with the run, which has done `step` steps: lines past them are cut.
    pub(crate) fn begin(&mut self, config: &Config, machine: HardwareInfo, step: u64) -> Result<()> {
        let text = config.to_toml()?;
        self.folder.write("config.toml", &text)?;
        if config.logging.tensorboard {
            let first = if step == 0 { 0 } else { step + 1 };
            match EventWriter::create(self.folder.path(), first) {
                Ok(events) => self.events = events,
                Err(error) => self.line(&format!("warning     TensorBoard: {error:#}")),
            }
            self.events(|events| events.text(first, "config", &text));
        }
        self.metrics = Some(MetricsWriter::open(self.folder.path(), step)?);
        self.newest_checkpoint = (step > 0).then_some(step);
        self.session = Some(sessions::SessionRecord::begin(&self.folder, machine, step));
        Ok(())
    }

    /// Tells `backpack status` where the run is.
    pub(crate) fn beat(&mut self, step: u64, phase: &str, always: bool) {
        if let Some(session) = &mut self.session {
            session.beat(&self.folder, step, phase, always);
        }
    }

    /// The same of a run that is where it was.
    pub(crate) fn still(&mut self, phase: &str) {
        if let Some(session) = &mut self.session {
            session.still(&self.folder, phase);
        }
    }

    /// Tells it, and the log, how the session ended.
    pub(crate) fn end(&mut self, step: u64, end: SessionOutcome, error: Option<String>) {
        self.events(EventWriter::flush);
        if let Some(error) = &error {
            self.console.log_only(&format!("error       {error}"));
        }
        if let Some(session) = &mut self.session {
            session.end(&self.folder, step, end, error);
        }
    }

    /// A profile, in the log and as a file of the run folder. A failure to write it is a warning.
    pub(crate) fn profile(&mut self, profile: &Profile) {
        for line in &profile.lines {
            self.line(line);
        }
        match self.folder.write(TRACE_FILE, &profile.trace) {
            Ok(()) => self.line(&format!(
                "            {} opens in ui.perfetto.dev",
                self.folder.path().join(TRACE_FILE).display()
            )),
            Err(error) => self.line(&format!("warning     {error:#}")),
        }
    }

    /// A checkpoint of this step is complete.
    pub(crate) fn saved(&mut self, step: u64) {
        self.newest_checkpoint = Some(step);
    }

    /// Step of the newest checkpoint.
    pub(crate) fn newest_checkpoint(&self) -> Option<u64> {
        self.newest_checkpoint
    }

    /// The checkpoints.
    pub(crate) fn store(&self) -> &CheckpointDir {
        &self.store
    }

    /// A line for a person.
    pub(crate) fn line(&mut self, text: &str) {
        self.console.line(text);
    }

    /// How far the run is; shown now and then, or `always`.
    pub(crate) fn progress(&mut self, always: bool, text: impl FnOnce() -> String) {
        self.console.progress(always, text);
    }

    /// A step's figures.
    pub(crate) fn training(&mut self, step: u64, tokens: u64, training: TrainingMetrics) {
        let scalars = [
            ("train/loss", training.loss.unwrap_or(f64::NAN)),
            ("train/learning_rate", training.lr),
            ("train/grad_norm", training.grad_norm.unwrap_or(f64::NAN)),
            ("speed/tokens_per_s", training.tokens_per_s),
            ("speed/mfu", training.mfu),
        ];
        self.write(&MetricsRecord { step, tokens, training: Some(training), validation: None });
        self.events(|events| events.scalars(step, &scalars));
    }

    /// A validation's.
    pub(crate) fn validation(&mut self, step: u64, tokens: u64, validation: ValidationMetrics) {
        let ValidationMetrics { val_loss, val_ppl } = validation;
        self.write(&MetricsRecord { step, tokens, training: None, validation: Some(validation) });
        self.events(|events| events.scalars(step, &[("val/loss", val_loss), ("val/perplexity", val_ppl)]));
        self.line(&format!("validation  step {step}: loss {val_loss:.4}, perplexity {val_ppl:.2}"));
    }

    /// Hands over what is not written yet, so that nothing before a checkpoint can be missing.
    ///
    /// # Errors
    /// When there are metrics that cannot be written.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.events(EventWriter::flush);
        self.metrics.as_mut().map_or(Ok(()), MetricsWriter::flush)
    }

    /// A failure is a warning: the line is written with a later one, and no checkpoint before it.
    fn write(&mut self, record: &MetricsRecord) {
        let written = self.metrics.as_mut().map_or(Ok(()), |metrics| metrics.write(record));
        let failed_before = std::mem::replace(&mut self.metrics_fail, written.is_err());
        match written {
            Ok(()) if failed_before => self.line("metrics     can be written again; no line is missing"),
            Err(error) if !failed_before => {
                self.line(&format!("warning     {error:#}; the run goes on and keeps the lines until they can be"));
            }
            _ => {}
        }
    }

    /// Does something with the events; a failure is a warning.
    fn events(&mut self, act: impl FnOnce(&mut EventWriter) -> Result<()>) {
        if let Err(error) = act(&mut self.events) {
            self.line(&format!("warning     TensorBoard: {error:#}; the run goes on without it"));
        }
    }
}
