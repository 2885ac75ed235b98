//! The time limit of a run: `--time-limit`, or the end of its Slurm job.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::distributed::env::{self, Environment};
use crate::time::human_duration;

/// Longest time to wait for `squeue`, which can be slow if Slurm's controller is busy.
const SQUEUE_TIMEOUT: Duration = Duration::from_secs(3);

/// The source of a time limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LimitSource {
    /// The flag `--time-limit`.
    Flag,
    /// The end of the Slurm job.
    Slurm,
}

/// The time by which a run must have saved its last checkpoint and exited. A run may have none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeLimit {
    end: Option<LimitEnd>,
}

/// The end of a limited run.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LimitEnd {
    at: Instant,
    /// Time from the start of the run to `at`.
    left: Duration,
    /// Time reserved after the last checkpoint: the ranks disconnect, logs are flushed, and the job
    /// script requeues the job.
    reserve: Duration,
    source: LimitSource,
}

impl TimeLimit {
    /// Creates a limit that is `limit` or `slurm_left` from now, whichever is earlier. Without both
    /// there is no limit.
    pub(crate) fn new(limit: Option<Duration>, slurm_left: Option<Duration>) -> Self {
        Self::starting_at(Instant::now(), limit, slurm_left)
    }

    /// Returns whether there is a limit.
    pub(crate) fn is_set(&self) -> bool {
        self.end.is_some()
    }

    fn starting_at(now: Instant, limit: Option<Duration>, slurm_left: Option<Duration>) -> Self {
        let limits = [limit.map(|left| (left, LimitSource::Flag)), slurm_left.map(|left| (left, LimitSource::Slurm))];
        let earlier = limits.into_iter().flatten().min_by_key(|(left, _)| *left);
        let end = earlier.and_then(|(left, source)| {
            // 30 s are enough for the end of a job. For a short limit it is a twentieth.
            let reserve = Duration::from_secs(30).min(left / 20);
            // A limit that the clock cannot represent counts as no limit.
            Some(LimitEnd { at: now.checked_add(left)?, left, reserve, source })
        });
        TimeLimit { end }
    }

    /// Returns whether the run must stop now, because one more step and a checkpoint may not finish
    /// in time.
    ///
    /// Both are estimated as 1.25 times the longest so far, because a shared disk or network is
    /// sometimes slower than before. `longest_step` includes validations.
    pub(crate) fn is_reached(&self, longest_step: Duration, longest_save: Duration) -> bool {
        self.would_be_reached_at(Instant::now(), longest_step, longest_save)
    }

    fn would_be_reached_at(&self, now: Instant, longest_step: Duration, longest_save: Duration) -> bool {
        let Some(end) = &self.end else {
            return false;
        };
        let left = end.at.saturating_duration_since(now);
        left <= (longest_step + longest_save).mul_f64(1.25) + end.reserve
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(end) = &self.end else {
            return f.write_str("none");
        };
        let source = match end.source {
            LimitSource::Flag => "from --time-limit",
            LimitSource::Slurm => "until the end of the Slurm job",
        };
        write!(f, "{} {source}", human_duration(end.left.as_secs_f64()))
    }
}

/// Returns the remaining time of the Slurm job of this process, from `SLURM_JOB_END_TIME` (newer
/// Slurm) or `squeue`.
///
/// It is `None` outside of a job, for a job without a limit, or if neither source provides the
/// time.
pub(crate) fn slurm_time_left() -> Option<Duration> {
    time_left(&Environment::new(&env::process_variable), SystemTime::now(), Path::new("squeue"), SQUEUE_TIMEOUT)
}

fn time_left(environment: &Environment<'_>, now: SystemTime, squeue: &Path, timeout: Duration) -> Option<Duration> {
    let job = environment.text("SLURM_JOB_ID")?;
    if let Ok(Some(end)) = environment.number("SLURM_JOB_END_TIME") {
        return Some((UNIX_EPOCH + Duration::from_secs(end)).duration_since(now).unwrap_or_default());
    }
    // The job number of one task of an array is that of the whole array, for which squeue lists all
    // tasks.
    let job = match (environment.text("SLURM_ARRAY_JOB_ID"), environment.text("SLURM_ARRAY_TASK_ID")) {
        (Some(array), Some(task)) => format!("{array}_{task}"),
        _ => job,
    };
    let output = run_squeue(squeue, &job, timeout).ok()?;
    parse_slurm_duration(output.lines().next()?.trim())
}

/// Runs `squeue` for at most `timeout` and returns its output, the remaining time of the job.
fn run_squeue(squeue: &Path, job: &str, timeout: Duration) -> Result<String> {
    let mut command = Command::new(squeue);
    command.args(["--noheader", "--jobs", job, "--format", "%L"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() >= timeout {
            child.kill()?;
            child.wait()?;
            bail!("squeue did not finish in time");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut output = String::new();
    child.stdout.take().context("squeue has no output")?.read_to_string(&mut output)?;
    Ok(output)
}

/// Parses Slurm's `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS`. Returns `None` for `UNLIMITED` and other
/// words.
fn parse_slurm_duration(text: &str) -> Option<Duration> {
    let (days, clock) = match text.split_once('-') {
        Some((days, clock)) => (days.parse::<u64>().ok()?, clock),
        None => (0, text),
    };
    let parts: Vec<u64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let (hours, minutes, seconds) = match parts[..] {
        [hours, minutes, seconds] => (hours, minutes, seconds),
        [minutes, seconds] => (0, minutes, seconds),
        _ => return None,
    };
    let seconds = days.checked_mul(86_400)?.checked_add(hours.checked_mul(3_600)?)?.checked_add(minutes * 60 + seconds);
    seconds.map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::env::test_variables;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn earlier_limit_applies_and_leaves_time_for_a_step_and_a_checkpoint() {
        let now = Instant::now();
        let (step, save) = (seconds(8), seconds(40));
        let time_limit = TimeLimit::starting_at(now, Some(seconds(3_600)), Some(seconds(7_200)));
        // 1.25 x 48 s and 30 s.
        assert!(!time_limit.would_be_reached_at(now + seconds(3_509), step, save));
        assert!(time_limit.would_be_reached_at(now + seconds(3_510), step, save));
        assert!(time_limit.would_be_reached_at(now + seconds(4_000), Duration::ZERO, Duration::ZERO));
        assert_eq!(time_limit.to_string(), "1h 00m from --time-limit");
        let time_limit = TimeLimit::starting_at(now, Some(seconds(3_600)), Some(seconds(200)));
        // The reserve of a short limit is a twentieth.
        assert!(!time_limit.would_be_reached_at(now + seconds(129), step, save));
        assert!(time_limit.would_be_reached_at(now + seconds(130), step, save));
        assert_eq!(time_limit.to_string(), "3m 20s until the end of the Slurm job");
    }

    #[test]
    fn no_limit_is_never_reached() {
        let none = TimeLimit::new(None, None);
        assert!(!none.is_reached(seconds(1_000_000), seconds(1)));
        assert_eq!(none.to_string(), "none");
        assert!(!TimeLimit::new(Some(Duration::MAX), None).is_reached(seconds(1), seconds(1)));
        assert!(TimeLimit::new(None, Some(Duration::ZERO)).is_reached(Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn durations_of_slurm_are_parsed() {
        for (text, expected) in [
            ("1-02:03:04", Some(93_784)),
            ("3:59:50", Some(14_390)),
            ("12:05", Some(725)),
            ("0:00", Some(0)),
            ("UNLIMITED", None),
            ("INVALID", None),
            ("NOT_SET", None),
            ("", None),
            ("5", None),
            ("99999999999999999999-00:00:00", None),
        ] {
            assert_eq!(parse_slurm_duration(text), expected.map(seconds), "{text}");
        }
    }

    /// Creates a fake `squeue`. A shell writes the file: if this process had it open for writing
    /// while another test forks, the file could not be executed.
    fn fake_squeue(dir: &Path, script: &str) -> std::path::PathBuf {
        let path = dir.join("squeue");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod +x "$0""#;
        assert!(Command::new("sh").args(["-c", write]).arg(&path).arg(script).status().unwrap().success());
        path
    }

    #[test]
    fn remaining_time_of_the_job_is_read() {
        let dir = tempfile::tempdir().unwrap();
        // It prints the number of the job or task as minutes.
        let prints_job =
            fake_squeue(dir.path(), "[ \"$1 $2 $4 $5\" = '--noheader --jobs --format %L' ] && echo \"${3#*_}:30\"");
        let now = UNIX_EPOCH + seconds(1_000_000);
        let left = |pairs: &str, squeue: &Path| {
            time_left(&Environment::new(&test_variables(pairs)), now, squeue, Duration::from_secs(10))
        };
        assert_eq!(left("", &prints_job), None);
        assert_eq!(left("SLURM_JOB_ID=5 SLURM_JOB_END_TIME=1000600", &prints_job), Some(seconds(600)));
        assert_eq!(left("SLURM_JOB_ID=5 SLURM_JOB_END_TIME=5", &prints_job), Some(Duration::ZERO));
        assert_eq!(left("SLURM_JOB_ID=5", &prints_job), Some(seconds(330)));
        assert_eq!(left("SLURM_JOB_ID=5 SLURM_ARRAY_JOB_ID=5 SLURM_ARRAY_TASK_ID=7", &prints_job), Some(seconds(450)));
        assert_eq!(left("SLURM_JOB_ID=5", Path::new("/nowhere/squeue")), None);
        assert_eq!(left("SLURM_JOB_ID=5", &fake_squeue(dir.path(), "echo UNLIMITED")), None);
    }

    #[test]
    fn hanging_squeue_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let hangs = fake_squeue(dir.path(), "exec sleep 60");
        let (environment, started) = (test_variables("SLURM_JOB_ID=5"), Instant::now());
        let left = time_left(&Environment::new(&environment), SystemTime::now(), &hangs, Duration::from_millis(100));
        assert_eq!(left, None);
        assert!(started.elapsed() < seconds(20));
    }
}
