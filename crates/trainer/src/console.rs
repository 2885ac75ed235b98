//! What a person sees of a run: lines on stderr and in `log.txt`.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Writes lines for a person. Failing to write is never worth a run.
#[derive(Debug)]
pub(crate) struct Console {
    log: File,
    terminal: bool,
    last_progress: Option<Instant>,
    /// A progress line stands on the terminal, without a line end.
    open: bool,
}

/// Between plain progress lines, where there is no terminal.
const PLAIN_PAUSE: Duration = Duration::from_secs(10);
/// Between rewrites of the progress line on a terminal.
const TERMINAL_PAUSE: Duration = Duration::from_millis(200);

impl Console {
    /// Appends to `log.txt` in the run folder.
    pub(crate) fn open(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join("log.txt");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Console { log, terminal: std::io::stderr().is_terminal(), last_progress: None, open: false })
    }

    /// A line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        self.close();
        let _ = writeln!(std::io::stderr(), "{text}");
        let _ = writeln!(self.log, "{text}");
    }

    /// How far the run is: rewritten in place on a terminal, a line now and then elsewhere.
    /// `text` is made only when it will be shown.
    pub(crate) fn progress(&mut self, always: bool, text: impl FnOnce() -> String) {
        let pause = if self.terminal { TERMINAL_PAUSE } else { PLAIN_PAUSE };
        if !always && self.last_progress.is_some_and(|last| last.elapsed() < pause) {
            return;
        }
        self.last_progress = Some(Instant::now());
        let text = text();
        let _ = writeln!(self.log, "{text}");
        if self.terminal {
            // Return, text, clear what the longer line before left.
            let _ = write!(std::io::stderr(), "\r{text}\x1b[K");
            self.open = true;
        } else {
            let _ = writeln!(std::io::stderr(), "{text}");
        }
    }

    /// Ends a progress line that stands open.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// A duration as a person says it: `2d 3h`, `3h 20m`, `5m 12s`, `8s`.
pub(crate) fn human_duration(seconds: f64) -> String {
    if !seconds.is_finite() {
        return "?".to_owned();
    }
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3_600 => format!("{}m {:02}s", s / 60, s % 60),
        3_600..86_400 => format!("{}h {:02}m", s / 3_600, s / 60 % 60),
        _ => format!("{}d {:02}h", s / 86_400, s / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::human_duration;

    #[test]
    fn durations_read_well() {
        let cases = [(8.4, "8s"), (312.0, "5m 12s"), (12_000.0, "3h 20m"), (183_600.0, "2d 03h"), (f64::NAN, "?")];
        for (seconds, text) in cases {
            assert_eq!(human_duration(seconds), text);
        }
    }
}
