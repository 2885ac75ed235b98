//! When a run has to stop by itself: a limit of its own, or the end of its Slurm job.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use crate::distributed::env::{self, Environment};
use crate::time::human_duration;

/// A controller that is busy may answer late; a run does not wait for it.
const SQUEUE_TIMEOUT: Duration = Duration::from_secs(3);

/// Who set the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LimitSource {
    Flag,
    Slurm,
}

/// The moment by which a run has to have saved its last checkpoint and ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimeLimit {
    end: Option<LimitEnd>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LimitEnd {
    at: Instant,
    /// From the start of the run.
    left: Duration,
    /// For what comes after the checkpoint: the ranks meet, logs are flushed, the job's
    /// script asks for the next attempt.
    reserve: Duration,
    source: LimitSource,
}

impl TimeLimit {
    /// The earlier of `limit`, counted from now, and the end of the Slurm job, which is
    /// `slurm_left` away; none of both for a run that ends when it is done.
    pub fn new(limit: Option<Duration>, slurm_left: Option<Duration>) -> Self {
        Self::from(Instant::now(), limit, slurm_left)
    }

    fn from(now: Instant, limit: Option<Duration>, slurm_left: Option<Duration>) -> Self {
        let limits = [limit.map(|left| (left, LimitSource::Flag)), slurm_left.map(|left| (left, LimitSource::Slurm))];
        let earlier = limits.into_iter().flatten().min_by_key(|(left, _)| *left);
        let end = earlier.and_then(|(left, source)| {
            // 30 s are ample for the end of a job; of a short limit, a twentieth.
            let reserve = Duration::from_secs(30).min(left / 20);
            // A limit of more centuries than the clock has is none.
            Some(LimitEnd { at: now.checked_add(left)?, left, reserve, source })
        });
        TimeLimit { end }
    }

    /// Whether to stop now, between two steps: when one more step and then a checkpoint
    /// might not be done in time. Both are reckoned at 1.25 times the longest seen, since a
    /// shared disk or network is now and then slower than ever before; where a validation
    /// is due, it is part of the step.
    pub fn is_reached(&self, longest_step: Duration, longest_save: Duration) -> bool {
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
            LimitSource::Flag => "by --time-limit",
            LimitSource::Slurm => "left of the Slurm job",
        };
        write!(f, "{} {source}", human_duration(end.left.as_secs_f64()))
    }
}

/// A duration as a person writes it: `3h50m`, `90m`, `2d`, `45s`, or plain seconds, `5400`.
///
/// # Errors
/// When it is none, or nothing.
pub fn parse_duration(text: &str) -> Result<Duration> {
    let seconds = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().ok()
    } else {
        seconds_of_parts(text)
    };
    let seconds =
        seconds.with_context(|| format!("\"{text}\" is no duration: write 3h50m, 90m, 2d, 45s or plain seconds"))?;
    ensure!(seconds > 0, "a duration of nothing leaves no time for a step");
    Ok(Duration::from_secs(seconds))
}

/// Numbers with their units, each unit once, from days to seconds.
fn seconds_of_parts(text: &str) -> Option<u64> {
    let (mut rest, mut sum, mut found) = (text, 0u64, false);
    for (unit, seconds) in [('d', 86_400u64), ('h', 3_600), ('m', 60), ('s', 1)] {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        if let Some(after) = after.strip_prefix(unit) {
            sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(seconds)?)?;
            (rest, found) = (after, true);
        }
    }
    (found && rest.is_empty()).then_some(sum)
}

/// What remains of the Slurm job that this process is part of: by `SLURM_JOB_END_TIME`
/// (newer Slurm), else by asking `squeue`; none outside of a job, without a limit, or where
/// neither says.
pub fn slurm_time_left() -> Option<Duration> {
    time_left(&Environment::new(&env::own), SystemTime::now(), Path::new("squeue"), SQUEUE_TIMEOUT)
}

fn time_left(environment: &Environment<'_>, now: SystemTime, squeue: &Path, timeout: Duration) -> Option<Duration> {
    let job = environment.text("SLURM_JOB_ID")?;
    if let Ok(Some(end)) = environment.number("SLURM_JOB_END_TIME") {
        return Some((UNIX_EPOCH + Duration::from_secs(end)).duration_since(now).unwrap_or_default());
    }
    // One task of an array has the number of the whole array, which is many jobs to squeue.
    let job = match (environment.text("SLURM_ARRAY_JOB_ID"), environment.text("SLURM_ARRAY_TASK_ID")) {
        (Some(array), Some(task)) => format!("{array}_{task}"),
        _ => job,
    };
    let answer = ask(squeue, &job, timeout).ok()?;
    slurm_duration(answer.lines().next()?.trim())
}

/// The time left as `squeue` prints it, in at most `timeout`.
fn ask(squeue: &Path, job: &str, timeout: Duration) -> Result<String> {
    let mut command = Command::new(squeue);
    command.args(["--noheader", "--jobs", job, "--format", "%L"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed() >= timeout {
            child.kill()?;
            child.wait()?;
            bail!("squeue does not answer");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut answer = String::new();
    child.stdout.take().context("squeue has no output")?.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Slurm's `D-HH:MM:SS`, `HH:MM:SS` or `MM:SS`; none for `UNLIMITED` and other words.
fn slurm_duration(text: &str) -> Option<Duration> {
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
    use crate::distributed::env::given;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn durations_are_read_as_written() {
        for (text, expected) in [
            ("3h50m", 13_800),
            ("90m", 5_400),
            ("45s", 45),
            ("5400", 5_400),
            ("2d", 172_800),
            ("1d2h3m4s", 93_784),
            ("1h30s", 3_630),
        ] {
            assert_eq!(parse_duration(text).unwrap(), seconds(expected), "{text}");
        }
        for text in [
            "",
            "h",
            "3h50",
            "50m3h",
            "1h1h",
            "-5",
            "1.5h",
            "3 h",
            "soon",
            "99999999999999999999",
            "999999999999999999d",
        ] {
            let error = parse_duration(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("\"{text}\" is no duration: write 3h50m")), "{error}");
        }
        for text in ["0", "0h0m"] {
            assert!(parse_duration(text).unwrap_err().to_string().contains("no time for a step"));
        }
    }

    #[test]
    fn the_earlier_limit_holds_and_leaves_time_for_a_step_and_a_checkpoint() {
        let now = Instant::now();
        let (step, save) = (seconds(8), seconds(40));
        let time_limit = TimeLimit::from(now, Some(seconds(3_600)), Some(seconds(7_200)));
        // 1.25 x 48 s and 30 s.
        assert!(!time_limit.would_be_reached_at(now + seconds(3_509), step, save));
        assert!(time_limit.would_be_reached_at(now + seconds(3_510), step, save));
        assert!(time_limit.would_be_reached_at(now + seconds(4_000), Duration::ZERO, Duration::ZERO));
        assert_eq!(time_limit.to_string(), "1h 00m by --time-limit");
        let time_limit = TimeLimit::from(now, Some(seconds(3_600)), Some(seconds(200)));
        // A twentieth of so short a time.
        assert!(!time_limit.would_be_reached_at(now + seconds(129), step, save));
        assert!(time_limit.would_be_reached_at(now + seconds(130), step, save));
        assert_eq!(time_limit.to_string(), "3m 20s left of the Slurm job");
    }

    #[test]
    fn without_a_limit_nothing_is_ever_reached() {
        let none = TimeLimit::new(None, None);
        assert!(!none.is_reached(seconds(1_000_000), seconds(1)));
        assert_eq!(none.to_string(), "none");
        assert!(!TimeLimit::new(Some(Duration::MAX), None).is_reached(seconds(1), seconds(1)));
        assert!(TimeLimit::new(None, Some(Duration::ZERO)).is_reached(Duration::ZERO, Duration::ZERO));
    }

    #[test]
    fn slurms_durations_are_read() {
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
            assert_eq!(slurm_duration(text), expected.map(seconds), "{text}");
        }
    }

    /// A stand-in for squeue. A shell writes it: a file that this process has open for
    /// writing while another test forks could not be run.
    fn squeue(folder: &Path, script: &str) -> std::path::PathBuf {
        let path = folder.join("squeue");
        let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod +x "$0""#;
        assert!(Command::new("sh").args(["-c", write]).arg(&path).arg(script).status().unwrap().success());
        path
    }

    #[test]
    fn the_end_of_the_job_is_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        // What it was asked is its answer, as minutes of the job's number.
        let answers =
            squeue(folder.path(), "[ \"$1 $2 $4 $5\" = '--noheader --jobs --format %L' ] && echo \"${3#*_}:30\"");
        let now = UNIX_EPOCH + seconds(1_000_000);
        let left = |pairs: &str, squeue: &Path| {
            time_left(&Environment::new(&given(pairs)), now, squeue, Duration::from_secs(10))
        };
        assert_eq!(left("", &answers), None);
        assert_eq!(left("SLURM_JOB_ID=5 SLURM_JOB_END_TIME=1000600", &answers), Some(seconds(600)));
        assert_eq!(left("SLURM_JOB_ID=5 SLURM_JOB_END_TIME=5", &answers), Some(Duration::ZERO));
        assert_eq!(left("SLURM_JOB_ID=5", &answers), Some(seconds(330)));
        assert_eq!(left("SLURM_JOB_ID=5 SLURM_ARRAY_JOB_ID=5 SLURM_ARRAY_TASK_ID=7", &answers), Some(seconds(450)));
        assert_eq!(left("SLURM_JOB_ID=5", Path::new("/nowhere/squeue")), None);
        assert_eq!(left("SLURM_JOB_ID=5", &squeue(folder.path(), "echo UNLIMITED")), None);
    }

    #[test]
    fn a_squeue_that_hangs_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let hangs = squeue(folder.path(), "exec sleep 60");
        let (environment, started) = (given("SLURM_JOB_ID=5"), Instant::now());
        let left = time_left(&Environment::new(&environment), SystemTime::now(), &hangs, Duration::from_millis(100));
        assert_eq!(left, None);
        assert!(started.elapsed() < seconds(20));
    }
}
