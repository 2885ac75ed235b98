//! `sessions.json`: each call of `train` on a run folder, how long it took and how it ended.
//! From it comes what a run has cost, and whether the one that runs still moves.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::logging::run_dir::RunDir;

/// Its name in a run folder.
const SESSIONS_FILE: &str = "sessions.json";

/// Between rewrites of the file.
const BEAT: Duration = Duration::from_secs(5);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SessionOutcome {
    /// All steps are done.
    Finished,
    /// Early, with a checkpoint.
    Stopped,
    /// With an error.
    Failed,
}

/// One call of `train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Seconds since 1970 at its start.
    pub(crate) started: f64,
    /// Seconds since 1970 when this was last written.
    pub(crate) updated: f64,
    /// How long it has taken, by a clock that never jumps.
    pub(crate) seconds: f64,
    /// Steps done before it.
    pub(crate) first_step: u64,
    /// Steps done.
    pub(crate) step: u64,
    /// What it was doing.
    pub(crate) phase: String,
    /// Processes.
    pub(crate) processes: u64,
    /// CPU threads of each.
    pub(crate) threads: usize,
    /// `cpu` or `cuda`.
    pub(crate) device: String,
    /// Rank 0's.
    pub(crate) host: String,
    /// Absent while it runs, and for good where it was killed.
    pub(crate) end: Option<SessionOutcome>,
    /// The error it ended with.
    pub(crate) error: Option<String>,
}

/// What a session runs on.
#[derive(Debug, Clone)]
pub(crate) struct HardwareInfo {
    pub(crate) processes: u64,
    pub(crate) threads: usize,
    pub(crate) device: &'static str,
    pub(crate) host: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct SessionsFile {
    sessions: Vec<Session>,
}

/// The sessions of a run folder, oldest first; none where there is no file.
///
/// # Errors
/// When the file is there and is no list of sessions.
pub(crate) fn read(run_dir: &Path) -> Result<Vec<Session>> {
    let path = run_dir.join(SESSIONS_FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.with_context(|| format!("{} cannot be read", path.display()))?,
    };
    let file: SessionsFile = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(file.sessions)
}

/// The record of the running session. A failure to write it is never worth a run.
#[derive(Debug)]
pub(crate) struct SessionRecord {
    file: SessionsFile,
    begun: Instant,
    written: Option<Instant>,
}

impl SessionRecord {
    /// Of a session that begins now, after those that the folder knows of.
    pub(crate) fn begin(folder: &RunDir, machine: HardwareInfo, step: u64) -> Self {
        let mut file = SessionsFile { sessions: read(folder.path()).unwrap_or_default() };
        let HardwareInfo { processes, threads, device, host } = machine;
        let now = unix_seconds();
        file.sessions.push(Session {
            started: now,
            updated: now,
            seconds: 0.0,
            first_step: step,
            step,
            phase: "starting".to_owned(),
            processes,
            threads,
            device: device.to_owned(),
            host,
            end: None,
            error: None,
        });
        let mut record = SessionRecord { file, begun: Instant::now(), written: None };
        record.write(folder);
        record
    }

    /// Where the session is; written now and then, or `always`.
    pub(crate) fn beat(&mut self, folder: &RunDir, step: u64, phase: &str, always: bool) {
        let due = always || self.written.is_none_or(|written| written.elapsed() >= BEAT);
        if let Some(session) = self.file.sessions.last_mut().filter(|_| due) {
            session.step = step;
            phase.clone_into(&mut session.phase);
            self.write(folder);
        }
    }

    /// The same of a session that is where it was.
    pub(crate) fn still(&mut self, folder: &RunDir, phase: &str) {
        if let Some(step) = self.file.sessions.last().map(|session| session.step) {
            self.beat(folder, step, phase, false);
        }
    }

    /// How the session ended.
    pub(crate) fn end(&mut self, folder: &RunDir, step: u64, end: SessionOutcome, error: Option<String>) {
        if let Some(session) = self.file.sessions.last_mut() {
            (session.step, session.end, session.error) = (step, Some(end), error);
            "ended".clone_into(&mut session.phase);
        }
        self.write(folder);
    }

    fn write(&mut self, folder: &RunDir) {
        if let Some(session) = self.file.sessions.last_mut() {
            (session.updated, session.seconds) = (unix_seconds(), self.begun.elapsed().as_secs_f64());
        }
        self.written = Some(Instant::now());
        if let Ok(text) = serde_json::to_string_pretty(&self.file) {
            let _ = folder.write(SESSIONS_FILE, &(text + "\n"));
        }
    }
}

/// Seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_add_up_and_one_that_was_killed_has_no_end() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = RunDir::open(scratch.path()).unwrap();
        let machine = HardwareInfo { processes: 2, threads: 4, device: "cpu", host: "here".to_owned() };
        let mut first = SessionRecord::begin(&folder, machine.clone(), 0);
        first.beat(&folder, 3, "training", true);
        // Too soon after the one before.
        first.beat(&folder, 4, "training", false);
        let mut second = SessionRecord::begin(&folder, machine, 2);
        second.end(&folder, 9, SessionOutcome::Failed, Some("disk full".to_owned()));
        let sessions = read(scratch.path()).unwrap();
        let seen: Vec<_> = sessions.iter().map(|s| (s.first_step, s.step, s.end)).collect();
        assert_eq!(seen, [(0, 3, None), (2, 9, Some(SessionOutcome::Failed))]);
        assert_eq!((sessions[1].error.as_deref(), sessions[1].processes), (Some("disk full"), 2));
        assert!(sessions[1].seconds >= 0.0 && sessions[0].updated >= sessions[0].started);
    }

    #[test]
    fn a_damaged_file_is_an_error_for_a_reader_and_none_for_a_run() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(read(scratch.path()).unwrap(), []);
        std::fs::write(scratch.path().join(SESSIONS_FILE), "{").unwrap();
        assert!(read(scratch.path()).unwrap_err().to_string().ends_with("sessions.json is damaged"));
        let folder = RunDir::open(scratch.path()).unwrap();
        let machine = HardwareInfo { processes: 1, threads: 1, device: "cpu", host: String::new() };
        SessionRecord::begin(&folder, machine, 0);
        assert_eq!(read(scratch.path()).unwrap().len(), 1);
    }
}
