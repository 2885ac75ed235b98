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
    /// Of the terminal's line, and of the log's.
    last_progress: [Option<Instant>; 2],
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
        Ok(Console { log, terminal: std::io::stderr().is_terminal(), last_progress: [None; 2], open: false })
    }

    /// A line that stays.
    pub(crate) fn line(&mut self, text: &str) {
        self.close();
        let _ = writeln!(std::io::stderr(), "{text}");
        let _ = writeln!(self.log, "{text}");
    }

    /// A line of `log.txt` alone: what stderr gets elsewhere.
    pub(crate) fn log_only(&mut self, text: &str) {
        self.close();
        let _ = writeln!(self.log, "{text}");
    }

    /// How far the run is: rewritten in place on a terminal; a line now and then elsewhere, and
    /// in the log. `text` is made only when it will be shown.
    pub(crate) fn progress(&mut self, always: bool, text: impl FnOnce() -> String) {
        let [shown, logged] = self.last_progress;
        let due = |last: Option<Instant>, pause| always || last.is_none_or(|last| last.elapsed() >= pause);
        let (log, show) = (due(logged, PLAIN_PAUSE), self.terminal && due(shown, TERMINAL_PAUSE));
        if !log && !show {
            return;
        }
        let text = text();
        if log {
            self.last_progress[1] = Some(Instant::now());
            let _ = writeln!(self.log, "{text}");
            if !self.terminal {
                let _ = writeln!(std::io::stderr(), "{text}");
            }
        }
        if show {
            self.last_progress[0] = Some(Instant::now());
            // Return, text, clear what the longer line before left.
            let _ = write!(std::io::stderr(), "\r{}\x1b[K", fit(&text, terminal_width()));
            self.open = true;
        }
    }

    /// Ends a progress line that stands open.
    pub(crate) fn close(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(std::io::stderr());
        }
    }
}

/// Columns of the terminal that stderr is.
fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|width| *width > 0).unwrap_or(usize::MAX)
}

/// What of a line goes into one row: one that wraps could not be rewritten.
fn fit(text: &str, width: usize) -> &str {
    text.char_indices().nth(width).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::fit;

    #[test]
    fn a_progress_line_stays_in_one_row() {
        assert_eq!((fit("step 1/2", 6), fit("step", 4), fit("step", usize::MAX)), ("step 1", "step", "step"));
    }
}
