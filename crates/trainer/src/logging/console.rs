//! Log lines and the progress line, on stderr and in `log.txt`.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Writes log lines and the progress line. A failed write is ignored: it must not end the run.
#[derive(Debug)]
pub(crate) struct Console {
    /// `None` for a disabled console, which writes nothing.
    log: Option<File>,
    is_terminal: bool,
    last_logged: Option<Instant>,
    last_drawn: Option<Instant>,
    /// Whether the terminal shows a progress line that has no line end yet.
    line_is_open: bool,
}

/// Time between progress lines in the log and on a stderr that is not a terminal.
const LOG_INTERVAL: Duration = Duration::from_secs(10);
/// Time between updates of the progress line on a terminal.
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

impl Console {
    /// Returns a console that writes nothing.
    pub(crate) fn disabled() -> Self {
        Console { log: None, is_terminal: false, last_logged: None, last_drawn: None, line_is_open: false }
    }

    /// Opens `log.txt` in the run directory for appending.
    ///
    /// # Errors
    /// `log.txt` cannot be opened.
    pub(crate) fn open(run_dir: &Path) -> Result<Self> {
        let path = run_dir.join("log.txt");
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(Console { log: Some(log), is_terminal: std::io::stderr().is_terminal(), ..Console::disabled() })
    }

    /// Writes a line to stderr and the log.
    pub(crate) fn line(&mut self, text: &str) {
        self.end_progress();
        if let Some(log) = &mut self.log {
            let _ = writeln!(std::io::stderr(), "{text}");
            let _ = writeln!(log, "{text}");
        }
    }

    /// Writes a line to the log alone, for what is printed to stderr elsewhere.
    pub(crate) fn log_only(&mut self, text: &str) {
        self.end_progress();
        if let Some(log) = &mut self.log {
            let _ = writeln!(log, "{text}");
        }
    }

    /// Updates the progress line: in place on a terminal, and as a new line every
    /// [`LOG_INTERVAL`] in the log. `always` ignores the intervals. `text` is called only if the
    /// line is written.
    pub(crate) fn progress(&mut self, always: bool, text: impl FnOnce() -> String) {
        let Some(log) = &mut self.log else { return };
        let is_due = |last: Option<Instant>, interval| always || last.is_none_or(|last| last.elapsed() >= interval);
        let log_is_due = is_due(self.last_logged, LOG_INTERVAL);
        let redraw_is_due = self.is_terminal && is_due(self.last_drawn, REDRAW_INTERVAL);
        if !log_is_due && !redraw_is_due {
            return;
        }
        let text = text();
        if log_is_due {
            self.last_logged = Some(Instant::now());
            let _ = writeln!(log, "{text}");
            if !self.is_terminal {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
        if redraw_is_due {
            self.last_drawn = Some(Instant::now());
            // Carriage return, text, and the escape sequence that clears the rest of the line.
            let _ = write!(std::io::stderr(), "\r{}\x1b[K", truncate(&text, terminal_width()));
            self.line_is_open = true;
        }
    }

    /// Ends the progress line on the terminal, if one is shown.
    fn end_progress(&mut self) {
        if std::mem::take(&mut self.line_is_open) {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// Returns the width in columns of the terminal that stderr is.
fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0).unwrap_or(usize::MAX)
}

/// Cuts a line to `width` characters. A line that wraps could not be overwritten.
fn truncate(text: &str, width: usize) -> &str {
    text.char_indices().nth(width).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_line_is_cut_to_the_terminal_width() {
        assert_eq!(
            (truncate("step 1/2", 6), truncate("step", 4), truncate("step", usize::MAX)),
            ("step 1", "step", "step")
        );
    }

    #[test]
    fn disabled_console_does_not_format_progress() {
        Console::disabled().progress(true, || unreachable!());
    }
}
