//! `sessions.json`: one record per call of `backpack train` on a run directory. `backpack status`
//! derives the cost of the run and the last heartbeat from it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use data_prep::fs::{Durability, write_atomic};
use serde::{Deserialize, Serialize};

/// The name of the file in a run directory.
const SESSIONS_FILE: &str = "sessions.json";

/// Time between heartbeats, each of which rewrites the file.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(5);

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SessionOutcome {
    /// All steps are done.
    Finished,
    /// Stopped early, with a checkpoint.
    Stopped,
    /// Ended with an error.
    Failed,
}

/// The record of one call of `backpack train`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Session {
    /// Start, in seconds since 1970.
    pub(crate) started: f64,
    /// Last heartbeat, in seconds since 1970.
    pub(crate) updated: f64,
    /// Duration in seconds, by a monotonic clock.
    pub(crate) seconds: f64,
    /// Steps of the run done before this session.
    pub(crate) first_step: u64,
    /// Steps of the run done so far.
    pub(crate) step: u64,
    /// The current activity, such as `training`.
    pub(crate) phase: String,
    /// World size.
    pub(crate) processes: u64,
    /// CPU threads per process.
    pub(crate) threads: usize,
    /// `cpu` or `cuda`.
    pub(crate) device: String,
    /// Host name of rank 0.
    pub(crate) host: String,
    /// How the session ended. `None` while it runs, and forever if its process was killed.
    pub(crate) end: Option<SessionOutcome>,
    /// The error that ended the session.
    pub(crate) error: Option<String>,
}

/// The hardware of a session.
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

/// Reads the sessions of a run directory, oldest first. Returns none if there is no file.
///
/// # Errors
/// The file exists but is not a list of sessions.
pub(crate) fn read(run_dir: &Path) -> Result<Vec<Session>> {
    let path = run_dir.join(SESSIONS_FILE);
    let text = match std::fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.with_context(|| format!("{} cannot be read", path.display()))?,
    };
    let file: SessionsFile = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    Ok(file.sessions)
}

/// The record of the running session. A failed write is ignored: it must not end the run.
#[derive(Debug)]
pub(crate) struct SessionRecord {
    path: PathBuf,
    file: SessionsFile,
    started: Instant,
    last_write: Instant,
}

impl SessionRecord {
    /// Appends a session that starts now at `step` to the sessions of the run directory. A file that
    /// cannot be read is replaced.
    pub(crate) fn open(run_dir: &Path, hardware: HardwareInfo, step: u64) -> Self {
        let mut file = SessionsFile { sessions: read(run_dir).unwrap_or_default() };
        let HardwareInfo { processes, threads, device, host } = hardware;
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
        let path = run_dir.join(SESSIONS_FILE);
        let mut record = SessionRecord { path, file, started: Instant::now(), last_write: Instant::now() };
        record.write();
        record
    }

    /// Records step and phase if [`HEARTBEAT_INTERVAL`] has passed since the last write.
    pub(crate) fn heartbeat(&mut self, step: u64, phase: &str) {
        if self.last_write.elapsed() >= HEARTBEAT_INTERVAL {
            self.update(step, phase);
        }
    }

    /// Does the same as [`SessionRecord::heartbeat`] at the recorded step.
    pub(crate) fn heartbeat_idle(&mut self, phase: &str) {
        if let Some(step) = self.file.sessions.last().map(|session| session.step) {
            self.heartbeat(step, phase);
        }
    }

    /// Records how the session ended.
    pub(crate) fn close(&mut self, step: u64, outcome: SessionOutcome, error: Option<String>) {
        if let Some(session) = self.file.sessions.last_mut() {
            (session.end, session.error) = (Some(outcome), error);
        }
        self.update(step, "ended");
    }

    fn update(&mut self, step: u64, phase: &str) {
        if let Some(session) = self.file.sessions.last_mut() {
            session.step = step;
            phase.clone_into(&mut session.phase);
            (session.updated, session.seconds) = (unix_seconds(), self.started.elapsed().as_secs_f64());
        }
        self.write();
    }

    fn write(&mut self) {
        self.last_write = Instant::now();
        if let Ok(text) = serde_json::to_string_pretty(&self.file) {
            let _ = write_atomic(&self.path, text + "\n", Durability::Buffered);
        }
    }
}

/// Returns the seconds since 1970.
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_accumulate_and_a_killed_one_has_no_outcome() {
        let scratch = tempfile::tempdir().unwrap();
        let hardware = HardwareInfo { processes: 2, threads: 4, device: "cpu", host: "here".to_owned() };
        let mut first = SessionRecord::open(scratch.path(), hardware.clone(), 0);
        first.update(3, "training");
        // Too soon after the last write.
        first.heartbeat(4, "training");
        let mut second = SessionRecord::open(scratch.path(), hardware, 2);
        second.close(9, SessionOutcome::Failed, Some("disk full".to_owned()));
        let sessions = read(scratch.path()).unwrap();
        let summaries: Vec<_> = sessions.iter().map(|s| (s.first_step, s.step, s.end)).collect();
        assert_eq!(summaries, [(0, 3, None), (2, 9, Some(SessionOutcome::Failed))]);
        assert_eq!((sessions[1].error.as_deref(), sessions[1].processes), (Some("disk full"), 2));
        assert!(sessions[1].seconds >= 0.0 && sessions[0].updated >= sessions[0].started);
    }

    #[test]
    fn a_damaged_file_is_an_error_for_readers_and_replaced_by_a_run() {
        let scratch = tempfile::tempdir().unwrap();
        assert_eq!(read(scratch.path()).unwrap(), []);
        std::fs::write(scratch.path().join(SESSIONS_FILE), "{").unwrap();
        assert!(read(scratch.path()).unwrap_err().to_string().ends_with("sessions.json is damaged"));
        let hardware = HardwareInfo { processes: 1, threads: 1, device: "cpu", host: String::new() };
        SessionRecord::open(scratch.path(), hardware, 0);
        assert_eq!(read(scratch.path()).unwrap().len(), 1);
    }
}
