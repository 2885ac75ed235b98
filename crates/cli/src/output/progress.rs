//! How far a command is: a bar on a terminal, a plain line now and then elsewhere. On
//! stderr, so that stdout holds results alone.

use std::io::{self, IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use data_prep::{PrepareEvent, PrepareProgress, PrepareStage};
use indicatif::{ProgressBar, ProgressStyle};

/// Between plain lines.
const PAUSE: Duration = Duration::from_secs(10);

/// Plain lines alone.
pub(crate) struct LogProgress {
    last: Instant,
}

impl LogProgress {
    pub(crate) fn new() -> Self {
        LogProgress { last: Instant::now() }
    }

    /// Writes a line when it is time for one.
    pub(crate) fn say(&mut self, text: impl FnOnce() -> String) {
        if self.last.elapsed() >= PAUSE {
            self.last = Instant::now();
            let _ = writeln!(io::stderr(), "{}", text());
        }
    }
}

/// The progress of `prepare-data`.
pub(crate) struct TerminalProgress {
    bar: Option<ProgressBar>,
    plain: Mutex<LogProgress>,
    start: Instant,
}

impl TerminalProgress {
    pub(crate) fn new() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(0);
            // The template is a constant: a mistake in it shows at the first run.
            if let Ok(style) = ProgressStyle::with_template("{msg} [{bar:30}] {percent}% ETA {eta}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        TerminalProgress { bar, plain: Mutex::new(LogProgress::new()), start: Instant::now() }
    }

    pub(crate) fn hear(&self, event: PrepareEvent<'_>) {
        match (event, &self.bar) {
            (PrepareEvent::Progress(snapshot), _) => self.update(&snapshot),
            (PrepareEvent::Message(text), Some(bar)) => bar.println(text),
            (PrepareEvent::Message(text), None) => {
                let _ = writeln!(io::stderr(), "{text}");
            }
        }
    }

    fn update(&self, snapshot: &PrepareProgress) {
        let rate = snapshot.text_bytes as f64 / 1e6 / self.start.elapsed().as_secs_f64().max(1e-3);
        let stage = match snapshot.stage {
            PrepareStage::Tokenizing => "tokenising",
            PrepareStage::Writing => "writing",
        };
        let message = || format!("{stage} {} documents, {rate:.1} MB/s", snapshot.documents);
        match &self.bar {
            Some(bar) => {
                bar.set_length(snapshot.total_bytes);
                bar.set_position(snapshot.done_bytes);
                bar.set_message(message());
            }
            None => {
                let Ok(mut plain) = self.plain.lock() else { return };
                plain.say(|| {
                    let PrepareProgress { start_bytes, done_bytes, total_bytes, .. } = *snapshot;
                    if total_bytes == 0 {
                        return message(); // standard input does not say how long it is
                    }
                    let (done, left) = (done_bytes - start_bytes, total_bytes.saturating_sub(done_bytes));
                    let left = self.start.elapsed().as_secs_f64() * left as f64 / done.max(1) as f64;
                    format!("{}, {:.0}%, ETA {left:.0} s", message(), 100.0 * done_bytes as f64 / total_bytes as f64)
                });
            }
        }
    }

    pub(crate) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
