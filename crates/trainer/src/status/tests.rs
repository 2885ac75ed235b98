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

/// 1 s a step, half of the session's time.
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

fn saved(step: u64) -> Option<CheckpointStatus> {
    Some(CheckpointStatus { step, path: PathBuf::from("there"), age_seconds: 30.0, verified: true, error: None })
}

fn seen(held: bool, end: Option<SessionOutcome>) -> RunObservation {
    let taken = Some(NOW - 1_000.0);
    RunObservation {
        held,
        taken,
        sessions: vec![session(0, 50, end)],
        lines: lines(50),
        checkpoint: saved(40),
        now: NOW,
    }
}

fn judge(seen: &RunObservation) -> Status {
    let mut config = Config::example();
    config.schedule.max_steps = 100;
    Status::judge(Path::new("runs/x"), &config, seen, &CostRates { watts: Some(90.0), price_per_hour: None })
}

#[test]
fn a_healthy_run_is_told_in_five_lines() {
    let status = judge(&seen(true, None));
    assert_eq!((status.activity, status.step, status.stalled), (Activity::Running, 50, false));
    // 50 steps at 1 s, of which half goes to training.
    assert_eq!(status.seconds_left, Some(100.0));
    let text = status.to_string();
    let expected = "\
run         runs/x: running, step 50 of 100 (50%), done in 1m 40s, at 2026-11-25 20:32 UTC
figures     loss 6.775, validation 6.500 at step 50 (the best), lr 1.00e-4, 524288 tokens/s, utilisation 40%
checkpoint  step 40, 30s ago, complete, every file verified
cost        1m 40s in 1 session, 0.06 CPU core hours, 0.00 kWh
health      good: loss falling (from 7.375), no bad steps, speed steady";
    assert_eq!(text, expected);
    assert_eq!(status.problems, [""; 0]);
}

#[test]
fn how_a_process_ended_is_known_from_its_word_and_the_lock() {
    let activity = |held, end| judge(&seen(held, end)).activity;
    assert_eq!(activity(false, Some(SessionOutcome::Stopped)), Activity::Stopped);
    assert_eq!(activity(false, Some(SessionOutcome::Failed)), Activity::Failed);
    assert_eq!(activity(false, None), Activity::Dead);
    let stopped = judge(&seen(false, Some(SessionOutcome::Stopped)));
    // What came after the checkpoint is to be done again.
    assert_eq!((stopped.step, stopped.done_at), (40, None));
    assert!(stopped.to_string().contains("needs 2m 00s more once resumed"), "{stopped}");
    let finished = judge(&RunObservation { checkpoint: saved(100), ..seen(false, None) });
    assert_eq!((finished.activity, finished.problems.len()), (Activity::Finished, 0));
}

#[test]
fn what_is_wrong_is_said() {
    let problem = |seen: &RunObservation| judge(seen).problems.join("; ");
    let mut silent = seen(true, None);
    silent.sessions[0].updated = NOW - 300.0;
    assert!(problem(&silent).contains("no sign for 5m 00s while training"));
    // A step takes longer than that: no reason for worry.
    for line in &mut silent.lines {
        line.tokens_per_s = line.tokens_per_s.map(|rate| rate / 100.0);
    }
    assert_eq!(problem(&silent), "");
    assert!(problem(&seen(false, None)).contains("gone without a word"));
    let mut failed = seen(false, Some(SessionOutcome::Failed));
    failed.sessions[0].error = Some("disk full".to_owned());
    assert!(problem(&failed).contains("ended with an error (disk full)"));
    let mut damaged = seen(true, None);
    damaged.checkpoint =
        Some(CheckpointStatus { verified: false, error: Some("torn".to_owned()), ..saved(40).unwrap() });
    assert!(problem(&damaged).contains("there is damaged (torn)"));
    let mut bad = seen(true, None);
    bad.lines[7].bad = true;
    assert!(problem(&bad).contains("bad steps, skipped or not finite: 1"));
}

#[test]
fn a_run_that_has_just_begun_says_that_it_is_too_early() {
    let mut early = seen(true, None);
    (early.lines, early.checkpoint, early.sessions[0].step) = (Vec::new(), None, 0);
    let status = judge(&early);
    assert_eq!((status.step, status.seconds_left), (0, None));
    let text = status.to_string();
    assert!(text.contains("too early") && text.contains("checkpoint  none yet") && text.lines().count() == 5, "{text}");
}

#[test]
fn a_run_that_is_resumed_is_starting_and_not_its_last_session() {
    for end in [Some(SessionOutcome::Stopped), None] {
        let mut resumed = seen(true, end);
        (resumed.sessions[0].updated, resumed.taken) = (NOW - 200_000.0, Some(NOW - 90.0));
        let status = judge(&resumed);
        assert_eq!((status.activity, status.step, status.stalled), (Activity::Running, 40, false));
        assert_eq!((status.phase.as_deref(), status.silent_seconds), (Some("starting"), Some(90.0)));
        assert_eq!(status.problems, [""; 0]);
        resumed.taken = Some(NOW - 7_200.0);
        assert!(judge(&resumed).problems[0].contains("no sign for 2h 00m while starting"));
    }
    // No step is done yet: who knows how long one takes.
    let mut first = seen(true, None);
    (first.lines, first.sessions[0].step, first.sessions[0].updated) = (Vec::new(), 0, NOW - 300.0);
    assert!(!judge(&first).stalled);
    // All steps are done, of 20 s each, and the last checkpoint is written.
    let mut last = seen(true, None);
    (last.lines, last.sessions[0].step, last.sessions[0].updated) = (lines(100), 100, NOW - 100.0);
    for line in &mut last.lines {
        line.tokens_per_s = line.tokens_per_s.map(|rate| rate / 20.0);
    }
    assert!(!judge(&last).stalled);
}

#[test]
fn a_folder_without_a_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error = Status::read(folder.path(), &CostRates::default()).unwrap_err().to_string();
    assert!(error.ends_with("is not a run folder: it has no config.toml"), "{error}");
}
