//! `backpack status` and `backpack plot`: progress, end time, cost and health of a run, read from
//! its run directory.

pub(crate) mod display;
pub(crate) mod health;
pub(crate) mod plot;

use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::checkpoint::{self, checkpoint_dir::CheckpointDir};
use crate::config::Config;
use crate::logging::metrics::{self, MetricLine};
use crate::logging::run_dir::{is_held, taken_at};
use crate::logging::run_logger::CONFIG_FILE;
use crate::logging::sessions::{self, Session, SessionOutcome, unix_seconds};
use crate::perf::cost::{CostRates, RunCost};
use crate::status::health::{Health, Trend};
use crate::time::human_duration;

/// Seconds without activity after which a run counts as stalled, if they are also longer than
/// [`STALL_STEPS`] steps.
const STALL_TIMEOUT: f64 = 60.0;
/// Number of steps without activity after which a run counts as stalled.
const STALL_STEPS: f64 = 10.0;
/// Seconds without activity after which a run counts as stalled, if the time of a step is unknown.
const STALL_TIMEOUT_STARTING: f64 = 1_800.0;
/// Largest difference in seconds between the clock of the file system and that of a process.
const CLOCK_SKEW: f64 = 1.0;
/// Number of attempts to verify a checkpoint, which the run may delete at the same time.
const READ_ATTEMPTS: usize = 3;

/// The activity of a run, as its run directory shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// A process holds the lock of the run directory.
    Running,
    /// The run ended early, by request, and saved a checkpoint.
    Stopped,
    /// All steps are done.
    Finished,
    /// The run ended with an error.
    Failed,
    /// No process holds the lock, and the last one did not record how it ended. It was probably
    /// killed.
    Dead,
}

/// The state of the newest checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointStatus {
    /// Number of completed steps.
    pub step: u64,
    /// Directory of the checkpoint.
    pub path: PathBuf,
    /// Seconds since the checkpoint was completed.
    pub age_seconds: f64,
    /// Whether every file has the hash that is recorded in `state.json`.
    pub verified: bool,
    /// Error of the verification.
    pub error: Option<String>,
}

/// The status of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Run directory.
    pub run_dir: PathBuf,
    /// Whether the run is running, and else how it ended.
    pub activity: Activity,
    /// Current operation of the running process.
    pub phase: Option<String>,
    /// Seconds since the last heartbeat of the running process. Before the first one: seconds since
    /// it took the lock.
    pub silent_seconds: Option<f64>,
    /// Whether a process holds the lock but sends no heartbeat.
    pub stalled: bool,
    /// Error with which the run ended.
    pub error: Option<String>,
    /// Number of completed steps.
    pub step: u64,
    /// Number of steps of the whole run.
    pub max_steps: u64,
    /// Estimated seconds for the remaining steps, including validations and checkpoints.
    pub seconds_left: Option<f64>,
    /// Estimated end in seconds since 1970. `None` if the run is not running.
    pub done_at: Option<f64>,
    /// Learning rate of the last step.
    pub learning_rate: Option<f64>,
    /// Losses and speeds.
    pub health: Health,
    /// Step and loss of the newest validation.
    pub validation: Option<(u64, f64)>,
    /// Step and loss of the validation with the lowest loss.
    pub best_validation: Option<(u64, f64)>,
    /// Newest checkpoint.
    pub checkpoint: Option<CheckpointStatus>,
    /// Number of sessions, that is, calls of `backpack train`.
    pub sessions: u64,
    /// Total seconds of all sessions.
    pub seconds: f64,
    /// Cost of all sessions so far.
    pub cost: RunCost,
    /// Problems of the run. Empty for a healthy run.
    pub problems: Vec<String>,
}

impl Status {
    /// Reads the current status from a run directory.
    ///
    /// # Errors
    /// Returns an error if the directory is not a run directory, or if one of its files cannot be
    /// parsed.
    pub fn read(run_dir: &Path, rates: &CostRates) -> Result<Self> {
        rates.validate()?;
        let file = run_dir.join(CONFIG_FILE);
        ensure!(file.is_file(), "{} is not a run directory: it has no {CONFIG_FILE}", run_dir.display());
        let config = Config::load(&file, &[]).context("cannot read the configuration of the run")?;
        // The lock is read first, so that everything else is at least as new.
        let lock_held = is_held(run_dir);
        let locked_at = taken_at(run_dir).and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_secs_f64());
        let sessions = sessions::read(run_dir)?;
        let lines = metrics::read(run_dir)?;
        let checkpoint = newest_checkpoint(&CheckpointDir::new(run_dir, &config.checkpoint))?;
        Ok(Status::from_observation(
            run_dir,
            &config,
            &RunObservation { lock_held, locked_at, sessions, lines, checkpoint, now: unix_seconds() },
            rates,
        ))
    }

    /// Computes the status from the contents of a run directory.
    fn from_observation(run_dir: &Path, config: &Config, observed: &RunObservation, rates: &CostRates) -> Self {
        let lines = &observed.lines;
        // A process that has just locked the directory has no session yet. It verifies the
        // checkpoint it resumes from.
        let starting = observed.lock_held
            && observed.sessions.last().is_some_and(|last| {
                last.end.is_some() || observed.locked_at.is_some_and(|time| time > last.updated + CLOCK_SKEW)
            });
        let last = observed.sessions.last();
        let current = last.filter(|_| observed.lock_held && !starting);
        let max_steps = config.schedule.max_steps;
        let logged = lines.last().map_or(0, |line| line.step);
        let saved = observed.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.step);
        let activity = activity(observed, saved >= max_steps);
        let step = match current {
            Some(session) => session.step.max(if session.step > 0 { logged } else { 0 }),
            // The steps of an ended process after its last checkpoint are lost.
            None => saved.min(max_steps),
        };
        let health = Health::from_metrics(lines, last.map_or(0, |session| session.first_step));
        let seconds_left =
            seconds_left(lines, last, config.batch.tokens_per_step, max_steps.saturating_sub(step), &health);
        let validations: Vec<(u64, f64)> = lines.iter().filter_map(|line| Some((line.step, line.val_loss?))).collect();
        let silent_seconds = if starting {
            observed.locked_at.map(|time| (observed.now - time).max(0.0))
        } else {
            current.map(|session| (observed.now - session.updated).max(0.0))
        };
        // The time of a step is unknown during the start and the first step of a session.
        let rate = health.tokens_per_s.filter(|_| !starting);
        let stall_timeout = rate.map_or(STALL_TIMEOUT_STARTING, |rate| {
            STALL_TIMEOUT.max(STALL_STEPS * config.batch.tokens_per_step as f64 / rate)
        });
        let stalled = silent_seconds.is_some_and(|silent| silent > stall_timeout);
        let hours = |session: &Session| session.seconds / 3_600.0 * session.processes as f64;
        let process_hours = observed.sessions.iter().map(hours).sum();
        let on_gpu = last.is_some_and(|session| session.device == "cuda");
        let cpu_hours =
            (!on_gpu).then(|| observed.sessions.iter().map(|session| hours(session) * session.threads as f64).sum());
        let mut status = Status {
            run_dir: run_dir.to_owned(),
            activity,
            phase: if starting { Some("starting".to_owned()) } else { current.map(|session| session.phase.clone()) },
            silent_seconds,
            stalled,
            error: last.filter(|_| activity == Activity::Failed).and_then(|session| session.error.clone()),
            step,
            max_steps,
            seconds_left,
            done_at: seconds_left.filter(|_| activity == Activity::Running).map(|left| observed.now + left),
            learning_rate: lines.iter().rev().find_map(|line| line.lr),
            health,
            validation: validations.last().copied(),
            best_validation: validations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)),
            checkpoint: observed.checkpoint.clone(),
            sessions: observed.sessions.len() as u64,
            seconds: observed.sessions.iter().map(|session| session.seconds).sum(),
            cost: rates.cost(process_hours, cpu_hours),
            problems: Vec::new(),
        };
        status.problems = status.find_problems();
        status
    }

    /// Returns one sentence for each problem of the run.
    fn find_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.activity {
            Activity::Failed => problems.push(format!(
                "the run ended with an error ({}); resume with --resume auto",
                self.error.as_deref().unwrap_or("unknown")
            )),
            Activity::Dead => problems
                .push("the process ended without recording an exit (killed?); resume with --resume auto".to_owned()),
            _ => {}
        }
        if let Some(silent) = self.silent_seconds.filter(|_| self.stalled) {
            let phase = self.phase.as_deref().unwrap_or("running");
            problems.push(format!("no heartbeat for {} while {phase}: stalled or suspended", human_duration(silent)));
        }
        let health = &self.health;
        if let (Trend::Rising, Some(loss), Some(before)) = (health.trend, health.loss, health.loss_before) {
            problems.push(format!("the loss rises ({before:.3} to {loss:.3})"));
        }
        if health.bad_steps > 0 {
            problems.push(format!("bad steps (skipped or not finite): {}", health.bad_steps));
        }
        if let (Some(now), Some(best)) = (health.tokens_per_s, health.best_tokens_per_s)
            && health.is_slow()
        {
            problems.push(format!("speed fell from {best:.0} to {now:.0} tokens/s"));
        }
        if let Some(CheckpointStatus { verified: false, path, error, .. }) = &self.checkpoint {
            problems.push(format!("{} is damaged ({})", path.display(), error.as_deref().unwrap_or("unknown")));
        }
        problems
    }
}

/// The contents of a run directory at one time.
struct RunObservation {
    /// Whether a process holds the lock.
    lock_held: bool,
    /// Seconds since 1970 at which the lock was taken.
    locked_at: Option<f64>,
    sessions: Vec<Session>,
    lines: Vec<MetricLine>,
    checkpoint: Option<CheckpointStatus>,
    /// Time of the observation in seconds since 1970.
    now: f64,
}

/// Returns the activity of a run. `all_done` is true if the last step has a checkpoint.
fn activity(observed: &RunObservation, all_done: bool) -> Activity {
    if observed.lock_held {
        return Activity::Running;
    }
    match observed.sessions.last().and_then(|session| session.end) {
        _ if all_done => Activity::Finished,
        Some(SessionOutcome::Finished) => Activity::Finished,
        Some(SessionOutcome::Stopped) => Activity::Stopped,
        Some(SessionOutcome::Failed) => Activity::Failed,
        None => Activity::Dead,
    }
}

/// Estimates the seconds for `steps` more steps: at the speed of the last lines, plus the share of
/// time that this session spent on validations, checkpoints and its start.
fn seconds_left(
    lines: &[MetricLine],
    session: Option<&Session>,
    tokens: u64,
    steps: u64,
    health: &Health,
) -> Option<f64> {
    let rate = health.tokens_per_s.or_else(|| lines.iter().rev().find_map(|line| line.tokens_per_s))?;
    let seconds_per_step = tokens as f64 / rate;
    let overhead = session.map_or(1.0, |session| {
        let done = session.step.saturating_sub(session.first_step);
        let trained: Vec<f64> = lines
            .iter()
            .filter(|line| line.step > session.first_step)
            .filter_map(|line| Some(tokens as f64 / line.tokens_per_s?))
            .collect();
        let training = trained.iter().sum::<f64>() / trained.len().max(1) as f64 * done as f64;
        // The overhead of fewer than 20 steps is not estimated.
        if done < 20 || training <= 0.0 { 1.0 } else { (session.seconds / training).clamp(1.0, 10.0) }
    });
    Some(seconds_per_step * overhead * steps as f64)
}

/// Returns the newest checkpoint after verifying every file.
fn newest_checkpoint(checkpoints: &CheckpointDir) -> Result<Option<CheckpointStatus>> {
    let Some((mut step, mut path)) = checkpoints.list()?.pop() else { return Ok(None) };
    let mut verified = checkpoint::verify(&path);
    for _ in 1..READ_ATTEMPTS {
        match checkpoints.list()?.pop() {
            // A newer checkpoint was completed during the verification, and this one may have been
            // deleted.
            Some((newer, newer_path)) if verified.is_err() && newer != step => {
                (step, path) = (newer, newer_path);
                verified = checkpoint::verify(&path);
            }
            _ => break,
        }
    }
    let age = path.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
    Ok(Some(CheckpointStatus {
        step,
        age_seconds: age.unwrap_or_default().as_secs_f64(),
        verified: verified.is_ok(),
        error: verified.err().map(|error| format!("{error:#}")),
        path,
    }))
}

#[cfg(test)]
mod tests;
