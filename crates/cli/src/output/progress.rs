//! Progress on stderr: a bar on a terminal, otherwise a log line every few seconds. Results alone
//! go to stdout.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use data_prep::{PrepareEvent, PrepareProgress, PrepareStage};
use indicatif::{ProgressBar, ProgressStyle};

/// Time between two log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Progress as log lines.
pub(crate) struct LogProgress {
    last_line: Instant,
}

impl LogProgress {
    /// Starts the interval before the first line.
    pub(crate) fn new() -> Self {
        LogProgress { last_line: Instant::now() }
    }

    /// Writes a line if [`LOG_INTERVAL`] has passed since the last one.
    pub(crate) fn log(&mut self, text: impl FnOnce() -> String) {
        if self.last_line.elapsed() >= LOG_INTERVAL {
            self.last_line = Instant::now();
            let _ = writeln!(io::stderr(), "{}", text());
        }
    }
}

/// Progress of `prepare-data`.
pub(crate) struct TerminalProgress {
    bar: Option<ProgressBar>,
    log: Mutex<LogProgress>,
    start: Instant,
}

impl TerminalProgress {
    /// Draws a bar if stderr is a terminal.
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            // The template is a constant, so an error in it shows in the first run.
            if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent}% ETA {eta}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        TerminalProgress { bar, log: Mutex::new(LogProgress::new()), start: Instant::now() }
    }

    /// Shows an event of the preparation.
    pub(crate) fn on_event(&self, event: PrepareEvent<'_>) {
        match (event, &self.bar) {
            (PrepareEvent::Progress(progress), _) => self.update(&progress),
            (PrepareEvent::Message(text), Some(bar)) => bar.println(text),
            (PrepareEvent::Message(text), None) => {
                let _ = writeln!(io::stderr(), "{text}");
            }
        }
    }

    fn update(&self, progress: &PrepareProgress) {
        let rate = progress.text_bytes as f64 / 1e6 / self.start.elapsed().as_secs_f64().max(1e-3);
        let stage = match progress.stage {
            PrepareStage::Tokenizing => "tokenizing",
            PrepareStage::Writing => "writing",
        };
        let message = || format!("{stage} {} documents, {rate:.1} MB/s", progress.documents);
        match &self.bar {
            Some(bar) => {
                bar.set_length(progress.total_bytes);
                bar.set_position(progress.done_bytes);
                bar.set_message(message());
            }
            None => {
                let Ok(mut log) = self.log.lock() else { return };
                log.log(|| {
                    let PrepareProgress { start_bytes, done_bytes, total_bytes, .. } = *progress;
                    if total_bytes == 0 {
                        return message(); // the length of standard input is unknown
                    }
                    let (done, left) = (done_bytes - start_bytes, total_bytes.saturating_sub(done_bytes));
                    let left = self.start.elapsed().as_secs_f64() * left as f64 / done.max(1) as f64;
                    format!("{}, {:.0}%, ETA {left:.0} s", message(), 100.0 * done_bytes as f64 / total_bytes as f64)
                });
            }
        }
    }

    /// Removes the bar.
    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
