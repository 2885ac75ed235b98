//! The step profiler: time per section in the log, and every section in a Chrome trace.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::Result;
use serde_json::{Value, json};
use torch_ext::profiler::{self, Section, SectionSpan};

/// Steps before the profiled ones, which fill caches and memory pools.
const SKIPPED_STEPS: u64 = 3;

/// File name of the trace in a run directory. chrome://tracing and ui.perfetto.dev can display it.
pub(crate) const TRACE_FILE: &str = "profile.json";

/// A profiler of some steps of a run, after its first ones.
#[derive(Debug)]
pub(crate) struct Profiler {
    /// Number of steps to profile.
    steps: u64,
    /// Steps of this session so far.
    session_steps: u64,
    active: Option<ActiveProfile>,
}

/// The profile of the steps so far.
#[derive(Debug)]
struct ActiveProfile {
    start: Instant,
    step_start: Instant,
    /// Number, start and seconds of each profiled step.
    steps: Vec<(u64, Instant, f64)>,
}

/// The result of profiling.
#[derive(Debug)]
pub(crate) struct Profile {
    /// Lines for the log: mean seconds per step of each section.
    pub(crate) lines: Vec<String>,
    /// Chrome trace as JSON text.
    pub(crate) trace: String,
}

impl Profiler {
    /// Creates a profiler of `steps` steps. With 0 it does nothing.
    pub(crate) fn new(steps: u64) -> Self {
        Profiler { steps, session_steps: 0, active: None }
    }

    /// Starts the measurement of a step, if it is to be profiled.
    pub(crate) fn begin_step(&mut self) {
        if let Some(active) = &mut self.active {
            profiler::resume();
            active.step_start = Instant::now();
        } else if self.steps > 0 && self.session_steps == SKIPPED_STEPS {
            profiler::start_with_spans();
            let now = Instant::now();
            self.active = Some(ActiveProfile { start: now, step_start: now, steps: Vec::new() });
        }
        self.session_steps += 1;
    }

    /// Ends the measurement of step `step`. Returns the profile after the last profiled step, or if
    /// the run ends with this step.
    ///
    /// # Errors
    /// Returns an error if the GPU reports a failure.
    pub(crate) fn end_step(&mut self, step: u64, run_ends: bool) -> Result<Option<Profile>> {
        let Some(active) = &mut self.active else { return Ok(None) };
        profiler::synchronize()?;
        // Logging, validation and checkpoints are not part of a step.
        profiler::stop();
        active.steps.push((step, active.step_start, active.step_start.elapsed().as_secs_f64()));
        let complete = active.steps.len() as u64 == self.steps || run_ends;
        if !complete {
            return Ok(None);
        }
        let (sums, spans) = (profiler::take_totals(), profiler::take_spans());
        let profile = self
            .active
            .take()
            .map(|active| Profile { lines: table(&sums, active.steps.len() as u64), trace: trace(&active, &spans) });
        self.steps = 0;
        Ok(profile)
    }
}

/// Formats the mean seconds per step of each section, and its share of the total.
fn table(sums: &[(Section, f64)], steps: u64) -> Vec<String> {
    let total: f64 = sums.iter().map(|(_, seconds)| seconds).sum();
    let width = sums.iter().map(|(part, _)| part.name().len()).max().unwrap_or_default();
    let mut lines = vec![format!("profile     {steps} steps of {:.4} s, mean time per section", total / steps as f64)];
    lines.extend(sums.iter().map(|(part, seconds)| {
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _ = write!(
            line,
            "            {part:<width$} {:8.4} s {:5.1}%",
            seconds / steps as f64,
            100.0 * seconds / total
        );
        line
    }));
    lines
}

/// Returns a Chrome trace with complete events ("X") in microseconds: one row for the steps, one
/// for their sections.
fn trace(active: &ActiveProfile, spans: &[SectionSpan]) -> String {
    let event = |name: &str, row: u32, start: Instant, seconds: f64| {
        let offset = start.saturating_duration_since(active.start).as_secs_f64();
        json!({"name": name, "cat": "training", "ph": "X", "pid": 0, "tid": row, "ts": 1e6 * offset, "dur": 1e6 * seconds})
    };
    let row =
        |row: u32, name: &str| json!({"name": "thread_name", "ph": "M", "pid": 0, "tid": row, "args": {"name": name}});
    let mut events = vec![row(0, "steps"), row(1, "sections")];
    events
        .extend(active.steps.iter().map(|(step, start, seconds)| event(&format!("step {step}"), 0, *start, *seconds)));
    events.extend(spans.iter().map(|span| event(span.section.name(), 1, span.start, span.seconds)));
    json!({"displayTimeUnit": "ms", "traceEvents": Value::Array(events)}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_averaged_over_steps() {
        let sums = [(Section::Body, 3.0), (Section::HeadAndLoss, 1.0)];
        let lines = table(&sums, 2);
        assert_eq!(lines[0], "profile     2 steps of 2.0000 s, mean time per section");
        assert_eq!(lines[1], "            body            1.5000 s  75.0%");
    }

    #[test]
    fn trace_contains_steps_and_sections_in_microseconds() {
        let start = Instant::now();
        let later = start + std::time::Duration::from_millis(2);
        let active = ActiveProfile { start, step_start: start, steps: vec![(7, start, 0.5)] };
        let spans = [SectionSpan { section: Section::Body, start: later, seconds: 0.25 }];
        let trace: Value = serde_json::from_str(&trace(&active, &spans)).unwrap();
        let events = trace["traceEvents"].as_array().unwrap();
        assert_eq!((&events[2]["name"], &events[2]["dur"]), (&json!("step 7"), &json!(500_000.0)));
        assert_eq!(
            (&events[3]["name"], &events[3]["ts"], &events[3]["ph"]),
            (&json!("body"), &json!(2_000.0), &json!("X"))
        );
    }

    #[test]
    fn zero_steps_measure_nothing() {
        let mut profiler = Profiler::new(0);
        for step in 1..10 {
            profiler.begin_step();
            assert!(profiler.end_step(step, false).unwrap().is_none());
        }
    }
}
