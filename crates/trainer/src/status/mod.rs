//! Where a run is, when it ends, what it cost, and whether it is healthy: from its folder alone.

pub(crate) mod health;
pub(crate) mod plot;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::checkpoint::{self, CheckpointDir};
use crate::config::Config;
use crate::logging::metrics::{self, MetricLine};
use crate::logging::run_dir::{is_held, taken_at};
use crate::logging::sessions::{self, Session, SessionOutcome, unix_seconds};
use crate::perf::cost::{CostRates, RunCost};
use crate::status::health::{Health, Trend};
use crate::time::human_duration;
use crate::time::utc;

/// Without a sign for this long, and for [`MISSED_STEPS`] steps, a run counts as stalled.
const SILENCE: f64 = 60.0;
const MISSED_STEPS: f64 = 10.0;
/// The same where it is not known how long a step takes.
const SILENCE_OF_UNKNOWN: f64 = 1_800.0;
/// What a file system's clock may be ahead of a process's.
const CLOCKS_APART: f64 = 1.0;
/// Looks at a checkpoint that is let go of meanwhile.
const LOOKS: usize = 3;

/// What a run's folder says of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Activity {
    /// A process holds the folder.
    Running,
    /// It ended early with a checkpoint, as it was asked to.
    Stopped,
    /// All steps are done.
    Finished,
    /// It ended with an error.
    Failed,
    /// No process holds the folder, and the last one did not say how it ended: it was killed.
    Dead,
}

/// A checkpoint, looked into.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CheckpointStatus {
    /// Steps done.
    pub step: u64,
    /// Its folder.
    pub path: PathBuf,
    /// Seconds since it was complete.
    pub age_seconds: f64,
    /// Every file has the hash that its state names.
    pub verified: bool,
    /// What is wrong with it.
    pub error: Option<String>,
}

/// What is known of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Its folder.
    pub run_dir: PathBuf,
    /// Whether and how it goes.
    pub activity: Activity,
    /// What the running process said last of what it does.
    pub phase: Option<String>,
    /// Seconds since the process last said where it is.
    pub silent_seconds: Option<f64>,
    /// A process has the folder and gives no sign.
    pub stalled: bool,
    /// The error it ended with.
    pub error: Option<String>,
    /// Steps done.
    pub step: u64,
    /// Steps of the whole run.
    pub max_steps: u64,
    /// Seconds that the remaining steps take, validations and checkpoints included.
    pub seconds_left: Option<f64>,
    /// Seconds since 1970 when it will be done; for a run that goes on.
    pub done_at: Option<f64>,
    /// Learning rate of the last step.
    pub learning_rate: Option<f64>,
    /// Losses and speeds.
    pub health: Health,
    /// The newest validation: step and loss.
    pub validation: Option<(u64, f64)>,
    /// The one of lowest loss.
    pub best_validation: Option<(u64, f64)>,
    /// The newest checkpoint.
    pub checkpoint: Option<CheckpointStatus>,
    /// Calls of `train`.
    pub sessions: u64,
    /// Seconds that they took.
    pub seconds: f64,
    /// What they cost so far.
    pub cost: RunCost,
    /// What is wrong; empty for a healthy run.
    pub problems: Vec<String>,
}

impl Status {
    /// Of a run folder, now.
    ///
    /// # Errors
    /// When it is no run folder, or its record cannot be read.
    pub fn read(run_dir: &Path, rates: &CostRates) -> Result<Self> {
        rates.validate()?;
        let file = run_dir.join("config.toml");
        ensure!(file.is_file(), "{} is not a run folder: it has no config.toml", run_dir.display());
        let config = Config::load(&file, &[]).context("what the run was started with cannot be read")?;
        // Before all else: what is read later is at least as new.
        let held = is_held(run_dir);
        let taken = taken_at(run_dir).and_then(|at| at.duration_since(UNIX_EPOCH).ok()).map(|at| at.as_secs_f64());
        let sessions = sessions::read(run_dir)?;
        let lines = metrics::read(run_dir)?;
        let checkpoint = newest(&CheckpointDir::new(run_dir, &config.checkpoint))?;
        Ok(Status::judge(
            run_dir,
            &config,
            &RunObservation { held, taken, sessions, lines, checkpoint, now: unix_seconds() },
            rates,
        ))
    }

    fn judge(run_dir: &Path, config: &Config, seen: &RunObservation, rates: &CostRates) -> Self {
        let lines = &seen.lines;
        // A process that has just taken the folder has no session yet: it reads, and checks, what it goes on from.
        let starting = seen.held
            && seen.sessions.last().is_some_and(|last| {
                last.end.is_some() || seen.taken.is_some_and(|taken| taken > last.updated + CLOCKS_APART)
            });
        let last = seen.sessions.last();
        let current = last.filter(|_| seen.held && !starting);
        let max_steps = config.schedule.max_steps;
        let logged = lines.last().map_or(0, |line| line.step);
        let saved = seen.checkpoint.as_ref().map_or(0, |saved| saved.step);
        let activity = activity(seen, saved >= max_steps);
        let step = match current {
            Some(session) => session.step.max(if session.step > 0 { logged } else { 0 }),
            // What a killed process had done since its last checkpoint is lost.
            None => saved.min(max_steps),
        };
        let health = Health::from_metrics(lines, last.map_or(0, |session| session.first_step));
        let seconds_left =
            seconds_left(lines, last, config.batch.tokens_per_step, max_steps.saturating_sub(step), &health);
        let validations: Vec<(u64, f64)> = lines.iter().filter_map(|line| Some((line.step, line.val_loss?))).collect();
        let silent_seconds = if starting {
            seen.taken.map(|taken| (seen.now - taken).max(0.0))
        } else {
            current.map(|session| (seen.now - session.updated).max(0.0))
        };
        // Of the first step of a session it is not known, nor how long a start takes.
        let rate = health.tokens_per_s.filter(|_| !starting);
        let patience = rate
            .map_or(SILENCE_OF_UNKNOWN, |rate| SILENCE.max(MISSED_STEPS * config.batch.tokens_per_step as f64 / rate));
        let stalled = silent_seconds.is_some_and(|silent| silent > patience);
        let hours = |session: &Session| session.seconds / 3_600.0 * session.processes as f64;
        let process_hours = seen.sessions.iter().map(hours).sum();
        let on_gpu = last.is_some_and(|session| session.device == "cuda");
        let cpu_hours =
            (!on_gpu).then(|| seen.sessions.iter().map(|session| hours(session) * session.threads as f64).sum());
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
            done_at: seconds_left.filter(|_| activity == Activity::Running).map(|left| seen.now + left),
            learning_rate: lines.iter().rev().find_map(|line| line.lr),
            health,
            validation: validations.last().copied(),
            best_validation: validations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)),
            checkpoint: seen.checkpoint.clone(),
            sessions: seen.sessions.len() as u64,
            seconds: seen.sessions.iter().map(|session| session.seconds).sum(),
            cost: rates.cost(process_hours, cpu_hours),
            problems: Vec::new(),
        };
        status.problems = status.find_problems();
        status
    }

    fn find_problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        match self.activity {
            Activity::Failed => problems.push(format!(
                "it ended with an error ({}); --resume auto goes on",
                self.error.as_deref().unwrap_or("unknown")
            )),
            Activity::Dead => {
                problems.push("its process is gone without a word, killed perhaps; --resume auto goes on".to_owned())
            }
            _ => {}
        }
        if let Some(silent) = self.silent_seconds.filter(|_| self.stalled) {
            let phase = self.phase.as_deref().unwrap_or("running");
            problems.push(format!("no sign for {} while {phase}: stalled or suspended", human_duration(silent)));
        }
        let health = &self.health;
        if let (Trend::Rising, Some(loss), Some(before)) = (health.trend, health.loss, health.loss_before) {
            problems.push(format!("the loss rises ({before:.3} to {loss:.3})"));
        }
        if health.bad_steps > 0 {
            problems.push(format!("bad steps, skipped or not finite: {}", health.bad_steps));
        }
        if let (Some(now), Some(best)) = (health.tokens_per_s, health.best_tokens_per_s)
            && health.is_slow()
        {
            problems.push(format!("slowed down to {now:.0} tokens/s from {best:.0}"));
        }
        if let Some(CheckpointStatus { verified: false, path, error, .. }) = &self.checkpoint {
            problems.push(format!("{} is damaged ({})", path.display(), error.as_deref().unwrap_or("unknown")));
        }
        problems
    }
}

/// What is found in a run folder.
struct RunObservation {
    held: bool,
    /// Seconds since 1970 when the folder was taken.
    taken: Option<f64>,
    sessions: Vec<Session>,
    lines: Vec<MetricLine>,
    checkpoint: Option<CheckpointStatus>,
    /// Seconds since 1970.
    now: f64,
}

fn activity(seen: &RunObservation, all_done: bool) -> Activity {
    if seen.held {
        return Activity::Running;
    }
    match seen.sessions.last().and_then(|session| session.end) {
        _ if all_done => Activity::Finished,
        Some(SessionOutcome::Finished) => Activity::Finished,
        Some(SessionOutcome::Stopped) => Activity::Stopped,
        Some(SessionOutcome::Failed) => Activity::Failed,
        None => Activity::Dead,
    }
}

/// Seconds that `steps` more take: at the pace of the last lines, longer by what this session
/// spent on validations, checkpoints and its start.
fn seconds_left(
    lines: &[MetricLine],
    session: Option<&Session>,
    tokens: u64,
    steps: u64,
    health: &Health,
) -> Option<f64> {
    let rate = health.tokens_per_s.or_else(|| lines.iter().rev().find_map(|line| line.tokens_per_s))?;
    let each = tokens as f64 / rate;
    let beside = session.map_or(1.0, |session| {
        let done = session.step.saturating_sub(session.first_step);
        let trained: Vec<f64> = lines
            .iter()
            .filter(|line| line.step > session.first_step)
            .filter_map(|line| Some(tokens as f64 / line.tokens_per_s?))
            .collect();
        let training = trained.iter().sum::<f64>() / trained.len().max(1) as f64 * done as f64;
        // Too early to say what is spent beside training.
        if done < 20 || training <= 0.0 { 1.0 } else { (session.seconds / training).clamp(1.0, 10.0) }
    });
    Some(each * beside * steps as f64)
}

/// The newest checkpoint, with every file checked.
fn newest(store: &CheckpointDir) -> Result<Option<CheckpointStatus>> {
    let Some((mut step, mut path)) = store.list()?.pop() else { return Ok(None) };
    let mut checked = checkpoint::verify(&path);
    for _ in 1..LOOKS {
        match store.list()?.pop() {
            // A newer one came while this one was looked at, which may have been let go of.
            Some((newer, newer_path)) if checked.is_err() && newer != step => {
                (step, path) = (newer, newer_path);
                checked = checkpoint::verify(&path);
            }
            _ => break,
        }
    }
    let age = path.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|time| time.elapsed().ok());
    Ok(Some(CheckpointStatus {
        step,
        age_seconds: age.unwrap_or_default().as_secs_f64(),
        verified: checked.is_ok(),
        error: checked.err().map(|error| format!("{error:#}")),
        path,
    }))
}

/// Five lines: where it is and when it ends, figures, checkpoint, cost, health.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.step as f64 / self.max_steps.max(1) as f64;
        let how = match self.activity {
            Activity::Running => "running",
            Activity::Stopped => "stopped",
            Activity::Finished => "finished",
            Activity::Failed => "failed",
            Activity::Dead => "stale (no process, no word of its end)",
        };
        write!(
            f,
            "run         {}: {how}, step {} of {} ({percent:.0}%)",
            self.run_dir.display(),
            self.step,
            self.max_steps
        )?;
        match (self.activity, self.seconds_left, self.done_at) {
            (Activity::Finished, ..) => writeln!(f)?,
            (_, Some(left), Some(at)) => writeln!(f, ", done in {}, at {}", human_duration(left), utc(at))?,
            (_, Some(left), None) => writeln!(f, ", needs {} more once resumed", human_duration(left))?,
            (_, None, _) => writeln!(f, ", too early to say when it is done")?,
        }
        let health = &self.health;
        let mut figures = Vec::new();
        if let Some(loss) = health.loss {
            figures.push(format!("loss {loss:.3}"));
        }
        if let (Some((step, loss)), Some((best_step, best))) = (self.validation, self.best_validation) {
            let best = if best_step == step { "the best".to_owned() } else { format!("best {best:.3} at {best_step}") };
            figures.push(format!("validation {loss:.3} at step {step} ({best})"));
        }
        if let Some(lr) = self.learning_rate {
            figures.push(format!("lr {lr:.2e}"));
        }
        if let Some(rate) = health.tokens_per_s {
            figures.push(format!("{rate:.0} tokens/s"));
        }
        if let Some(mfu) = health.mfu {
            figures.push(format!("utilisation {:.0}%", 100.0 * mfu));
        }
        let none_yet = || "none yet".to_owned();
        writeln!(f, "figures     {}", if figures.is_empty() { none_yet() } else { figures.join(", ") })?;
        let checkpoint = self.checkpoint.as_ref().map_or_else(none_yet, |saved| {
            let state = if saved.verified { "complete, every file verified" } else { "DAMAGED" };
            format!("step {}, {} ago, {state}", saved.step, human_duration(saved.age_seconds))
        });
        writeln!(f, "checkpoint  {checkpoint}")?;
        let sessions = if self.sessions == 1 { "session" } else { "sessions" };
        writeln!(
            f,
            "cost        {} in {} {sessions}, {}",
            human_duration(self.seconds),
            self.sessions,
            self.cost.describe(self.cost.cpu_hours.is_none())
        )?;
        if !self.problems.is_empty() {
            return write!(f, "health      LOOK AT IT: {}", self.problems.join("; "));
        }
        let trend = match (health.trend, health.loss_before) {
            (Trend::Falling, Some(before)) => format!("loss falling (from {before:.3})"),
            (Trend::Flat, _) => "loss level within its noise".to_owned(),
            _ => "too few steps to say where the loss goes".to_owned(),
        };
        let spikes = if health.spikes == 0 { String::new() } else { format!(", loss spikes: {}", health.spikes) };
        write!(f, "health      good: {trend}, no bad steps{spikes}, speed steady")
    }
}

#[cfg(test)]
mod tests;
