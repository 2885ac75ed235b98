//! Where the time of some steps goes: by part in the log, and lap by lap as a Chrome trace.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};
use torch_ext::profiler::{self, Section, SectionSpan};

/// Steps of a call of `train` that go before: the first ones fill caches and pools.
const AFTER: u64 = 3;

/// The trace's name in a run folder; chrome://tracing and ui.perfetto.dev open it.
pub(crate) const TRACE_FILE: &str = "profile.json";

/// Measures so many steps of a run, after its first ones.
#[derive(Debug)]
pub(crate) struct Profiler {
    steps: u64,
    /// Steps of this call so far.
    seen: u64,
    running: Option<ActiveProfile>,
}

#[derive(Debug)]
struct ActiveProfile {
    since: Instant,
    step: Instant,
    /// Number, beginning and seconds of each measured step.
    done: Vec<(u64, Instant, f64)>,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Profile {
    /// Seconds a step by part.
    pub(crate) lines: Vec<String>,
    /// The trace.
    pub(crate) trace: String,
}

impl Profiler {
    /// Of `steps` steps; of none, it does nothing.
    pub(crate) fn new(steps: u64) -> Self {
        Profiler { steps, seen: 0, running: None }
    }

    /// Before a step.
    pub(crate) fn begin_step(&mut self) {
        if let Some(running) = &mut self.running {
            profiler::resume();
            running.step = Instant::now();
        } else if self.steps > 0 && self.seen == AFTER {
            profiler::start_with_spans();
            let now = Instant::now();
            self.running = Some(ActiveProfile { since: now, step: now, done: Vec::new() });
        }
        self.seen += 1;
    }

    /// After the step numbered `step`; the profile after the last one, or where the run ends.
    ///
    /// # Errors
    /// When the GPU has failed.
    pub(crate) fn end_step(&mut self, step: u64, ends: bool) -> Result<Option<Profile>> {
        let Some(running) = &mut self.running else { return Ok(None) };
        profiler::synchronize()?;
        // Logging, validation and checkpoints are no part of a step.
        profiler::stop();
        running.done.push((step, running.step, running.step.elapsed().as_secs_f64()));
        let complete = running.done.len() as u64 == self.steps || ends;
        if !complete {
            return Ok(None);
        }
        let (sums, laps) = (profiler::take_totals(), profiler::take_spans());
        let profile = self
            .running
            .take()
            .map(|running| Profile { lines: table(&sums, running.done.len() as u64), trace: trace(&running, &laps) });
        self.steps = 0;
        Ok(profile)
    }
}

fn table(sums: &[(Section, f64)], steps: u64) -> Vec<String> {
    let all: f64 = sums.iter().map(|(_, seconds)| seconds).sum();
    let width = sums.iter().map(|(part, _)| part.name().len()).max().unwrap_or_default();
    let mut lines = vec![format!("profile     {steps} steps of {:.4} s by part, means", all / steps as f64)];
    lines.extend(sums.iter().map(|(part, seconds)| {
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ =
            write!(line, "            {part:<width$} {:8.4} s {:5.1}%", seconds / steps as f64, 100.0 * seconds / all);
        line
    }));
    lines
}

/// Complete events ("X") in microseconds: the steps on one row, their parts on another.
fn trace(running: &ActiveProfile, laps: &[SectionSpan]) -> String {
    let event = |name: &str, row: u32, begun: Instant, seconds: f64| {
        let since = begun.saturating_duration_since(running.since).as_secs_f64();
        json!({"name": name, "cat": "training", "ph": "X", "pid": 0, "tid": row, "ts": 1e6 * since, "dur": 1e6 * seconds})
    };
    let row =
        |row: u32, name: &str| json!({"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": {"name": name}});
    let mut events = vec![row(0, "steps"), row(1, "parts")];
    events
        .extend(running.done.iter().map(|(step, begun, seconds)| event(&format!("step {step}"), 0, *begun, *seconds)));
    events.extend(laps.iter().map(|lap| event(lap.section.name(), 1, lap.start, lap.seconds)));
    json!({"displayTimeUnit": "ms", "traceEvents": Value::Array(events)}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_means_over_the_steps() {
        let sums = [(Section::Body, 3.0), (Section::HeadAndLoss, 1.0)];
        let lines = table(&sums, 2);
        assert_eq!(lines[0], "profile     2 steps of 2.0000 s by part, means");
        assert_eq!(lines[1], "            body            1.5000 s  75.0%");
    }

    #[test]
    fn a_trace_has_steps_and_laps_in_microseconds() {
        let since = Instant::now();
        let later = since + std::time::Duration::from_millis(2);
        let running = ActiveProfile { since, step: since, done: vec![(7, since, 0.5)] };
        let laps = [SectionSpan { section: Section::Body, start: later, seconds: 0.25 }];
        let trace: Value = serde_json::from_str(&trace(&running, &laps)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!((&events[2]["name"], &events[2]["dur"]), (&json!("step 7"), &json!(500_000.0)));
        assert_eq!(
            (&events[3]["name"], &events[3]["ts"], &events[3]["ph"]),
            (&json!("body"), &json!(2_000.0), &json!("X"))
        );
    }

    #[test]
    fn without_steps_nothing_is_measured() {
        let mut profiler = Profiler::new(0);
        for step in 1..10 {
            profiler.begin_step();
            assert!(profiler.end_step(step, false).unwrap().is_none());
        }
    }
}
