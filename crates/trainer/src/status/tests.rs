//! Tests of the status of running, finished, stalled and failed runs.

use super::*;

const NOW: f64 = 1_795_638_660.0;

fn session(first_step: u64, step: u64, end: Option<SessionOutcome>) -> Session {
    Session {
        started: NOW - 100.0,
        updated: NOW - 2.0,
        seconds: 100.0,
        first_step,
        step,
        phase: "training".to_owned(),
        processes: 1,
        threads: 2,
        device: "cpu".to_owned(),
        host: "here".to_owned(),
        end,
        error: None,
    }
}

/// Returns the lines of `steps` steps of 1 s each, which is half of the session's time.
fn lines(steps: u64) -> Vec<MetricLine> {
    let rate = Config::example().batch.tokens_per_step as f64;
    let line = |step: u64| MetricLine {
        step,
        loss: Some(9.0 - 0.05 * step as f64),
        lr: Some(1e-4),
        grad_norm: Some(0.5),
        tokens_per_s: Some(rate),
        mfu: Some(0.4),
        ..MetricLine::default()
    };
    let mut lines: Vec<MetricLine> = (1..=steps).map(line).collect();
    lines.push(MetricLine { step: steps, val_loss: Some(6.5), ..MetricLine::default() });
    lines
}

fn checkpoint_at(step: u64) -> Option<CheckpointStatus> {
    Some(CheckpointStatus { step, path: PathBuf::from("step-40"), age_seconds: 30.0, verified: true, error: None })
}

fn observation(lock_held: bool, end: Option<SessionOutcome>) -> RunObservation {
    let locked_at = Some(NOW - 1_000.0);
    RunObservation {
        lock_held,
        locked_at,
        sessions: vec![session(0, 50, end)],
        lines: lines(50),
        checkpoint: checkpoint_at(40),
        now: NOW,
    }
}

fn compute_status(observed: &RunObservation) -> Status {
    let mut config = Config::example();
    config.schedule.max_steps = 100;
    Status::from_observation(
        Path::new("runs/x"),
        &config,
        observed,
        &CostRates { watts: Some(90.0), price_per_hour: None },
    )
}

#[test]
fn healthy_run_is_described_in_five_lines() {
    let status = compute_status(&observation(true, None));
    assert_eq!((status.activity, status.step, status.stalled), (Activity::Running, 50, false));
    // 50 steps of 1 s; training takes half of the time.
    assert_eq!(status.seconds_left, Some(100.0));
    let text = status.to_string();
    let expected = "\
run         runs/x: running, step 50 of 100 (50%), done in 1m 40s, at 2026-11-25 20:32 UTC
figures     loss 6.775, validation 6.500 at step 50 (the best), lr 1.00e-4, 524288 tokens/s, utilization 40%
checkpoint  step 40, 30s ago, complete, every file verified
cost        1m 40s in 1 session, 0.06 CPU core hours, 0.00 kWh
health      good: loss falling (from 7.375), no bad steps, speed steady";
    assert_eq!(text, expected);
    assert_eq!(status.problems, [""; 0]);
}

#[test]
fn activity_follows_from_the_lock_and_the_recorded_outcome() {
    let activity = |lock_held, end| compute_status(&observation(lock_held, end)).activity;
    assert_eq!(activity(false, Some(SessionOutcome::Stopped)), Activity::Stopped);
    assert_eq!(activity(false, Some(SessionOutcome::Failed)), Activity::Failed);
    assert_eq!(activity(false, None), Activity::Dead);
    let stopped = compute_status(&observation(false, Some(SessionOutcome::Stopped)));
    // The steps after the checkpoint must be repeated.
    assert_eq!((stopped.step, stopped.done_at), (40, None));
    assert!(stopped.to_string().contains("needs 2m 00s more once resumed"), "{stopped}");
    let finished = compute_status(&RunObservation { checkpoint: checkpoint_at(100), ..observation(false, None) });
    assert_eq!((finished.activity, finished.problems.len()), (Activity::Finished, 0));
}

#[test]
fn problems_are_reported() {
    let problem = |observed: &RunObservation| compute_status(observed).problems.join("; ");
    let mut silent = observation(true, None);
    silent.sessions[0].updated = NOW - 300.0;
    assert!(problem(&silent).contains("no heartbeat for 5m 00s while training"));
    // With a longer time per step the same silence is not a problem.
    for line in &mut silent.lines {
        line.tokens_per_s = line.tokens_per_s.map(|rate| rate / 100.0);
    }
    assert_eq!(problem(&silent), "");
    assert!(problem(&observation(false, None)).contains("ended without recording an exit"));
    let mut failed = observation(false, Some(SessionOutcome::Failed));
    failed.sessions[0].error = Some("disk full".to_owned());
    assert!(problem(&failed).contains("ended with an error (disk full)"));
    let mut damaged = observation(true, None);
    damaged.checkpoint =
        Some(CheckpointStatus { verified: false, error: Some("torn".to_owned()), ..checkpoint_at(40).unwrap() });
    assert!(problem(&damaged).contains("step-40 is damaged (torn)"));
    let mut bad = observation(true, None);
    bad.lines[7].bad = true;
    assert!(problem(&bad).contains("bad steps (skipped or not finite): 1"));
}

#[test]
fn remaining_time_of_a_new_run_is_not_known() {
    let mut early = observation(true, None);
    (early.lines, early.checkpoint, early.sessions[0].step) = (Vec::new(), None, 0);
    let status = compute_status(&early);
    assert_eq!((status.step, status.seconds_left), (0, None));
    let text = status.to_string();
    assert!(
        text.contains("remaining time not known yet")
            && text.contains("checkpoint  none yet")
            && text.lines().count() == 5,
        "{text}"
    );
}

#[test]
fn resumed_run_is_starting() {
    for end in [Some(SessionOutcome::Stopped), None] {
        let mut resumed = observation(true, end);
        (resumed.sessions[0].updated, resumed.locked_at) = (NOW - 200_000.0, Some(NOW - 90.0));
        let status = compute_status(&resumed);
        assert_eq!((status.activity, status.step, status.stalled), (Activity::Running, 40, false));
        assert_eq!((status.phase.as_deref(), status.silent_seconds), (Some("starting"), Some(90.0)));
        assert_eq!(status.problems, [""; 0]);
        resumed.locked_at = Some(NOW - 7_200.0);
        assert!(compute_status(&resumed).problems[0].contains("no heartbeat for 2h 00m while starting"));
    }
    // No step is done yet, so the time of a step is unknown.
    let mut first = observation(true, None);
    (first.lines, first.sessions[0].step, first.sessions[0].updated) = (Vec::new(), 0, NOW - 300.0);
    assert!(!compute_status(&first).stalled);
    // All steps of 20 s each are done, and the last checkpoint is being written.
    let mut last = observation(true, None);
    (last.lines, last.sessions[0].step, last.sessions[0].updated) = (lines(100), 100, NOW - 100.0);
    for line in &mut last.lines {
        line.tokens_per_s = line.tokens_per_s.map(|rate| rate / 20.0);
    }
    assert!(!compute_status(&last).stalled);
}

#[test]
fn directory_without_a_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = Status::read(dir.path(), &CostRates::default()).unwrap_err().to_string();
    assert!(error.ends_with("is not a run directory: it has no config.toml"), "{error}");
}
