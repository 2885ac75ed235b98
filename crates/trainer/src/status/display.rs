//! The text of `backpack status`.

use std::fmt;

use crate::status::health::Trend;
use crate::status::{Activity, Status};
use crate::time::{format_utc, human_duration};

/// Formats five lines: progress and end time, figures, checkpoint, cost, health.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = 100.0 * self.step as f64 / self.max_steps.max(1) as f64;
        let activity = match self.activity {
            Activity::Running => "running",
            Activity::Stopped => "stopped",
            Activity::Finished => "finished",
            Activity::Failed => "failed",
            Activity::Dead => "dead (the process ended without recording an exit)",
        };
        write!(
            f,
            "run         {}: {activity}, step {} of {} ({percent:.0}%)",
            self.run_dir.display(),
            self.step,
            self.max_steps
        )?;
        match (self.activity, self.seconds_left, self.done_at) {
            (Activity::Finished, ..) => writeln!(f)?,
            (_, Some(left), Some(at)) => writeln!(f, ", done in {}, at {}", human_duration(left), format_utc(at))?,
            (_, Some(left), None) => writeln!(f, ", needs {} more once resumed", human_duration(left))?,
            (_, None, _) => writeln!(f, ", remaining time not known yet")?,
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
            figures.push(format!("utilization {:.0}%", 100.0 * mfu));
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
            return write!(f, "health      WARNING: {}", self.problems.join("; "));
        }
        let trend = match (health.trend, health.loss_before) {
            (Trend::Falling, Some(before)) => format!("loss falling (from {before:.3})"),
            (Trend::Flat, _) => "loss flat".to_owned(),
            _ => "too few steps for a trend of the loss".to_owned(),
        };
        let spikes = if health.spikes == 0 { String::new() } else { format!(", loss spikes: {}", health.spikes) };
        write!(f, "health      good: {trend}, no bad steps{spikes}, speed steady")
    }
}
