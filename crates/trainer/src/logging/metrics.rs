//! `metrics.jsonl`: the primary record of a run, one JSON object per line.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use data_prep::fs::{Durability, write_atomic};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::stats::is_zero;

/// The `[logging]` section.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoggingConfig {
    /// Steps between metrics lines. The last step always has one.
    pub every_steps: u64,
    /// Whether to write TensorBoard events too.
    pub tensorboard: bool,
}

impl Default for LoggingConfig {
    fn default() -> Self {
        LoggingConfig { every_steps: 1, tensorboard: true }
    }
}

impl LoggingConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// A value is out of range; the message names its key.
    pub(crate) fn validate(&self) -> Result<()> {
        ensure!(self.every_steps > 0, "logging.every_steps is 0: it must be at least 1");
        Ok(())
    }
}

/// A line of `metrics.jsonl`: of a training step or of a validation.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MetricsRecord {
    /// Steps done.
    pub step: u64,
    /// Tokens trained on.
    pub tokens: u64,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub training: Option<TrainingMetrics>,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationMetrics>,
}

/// The metrics of a training step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct TrainingMetrics {
    /// Mean loss of the batch before the update; `None` (null) if it is not finite.
    pub loss: Option<f64>,
    /// Learning rate of the step.
    pub lr: f64,
    /// Global gradient norm before clipping; `None` (null) if it is not finite.
    pub grad_norm: Option<f64>,
    /// Tokens per second since the previous line, without validation and checkpoints.
    pub tokens_per_s: f64,
    /// Model FLOPs utilization: training FLOP/s as a fraction of the measured matrix-product peak.
    pub mfu: f64,
    /// Steps of the run skipped so far; absent if 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Skipped steps that only searched for the fp16 loss scale; absent if 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub scale_search_skips: u64,
    /// Loss spikes of the run so far; absent if 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub spikes: u64,
    /// The next step's loss scale; absent unless the precision is fp16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f64>,
}

/// The metrics of a validation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct ValidationMetrics {
    pub val_loss: f64,
    pub val_ppl: f64,
}

/// Appends lines to `metrics.jsonl`.
#[derive(Debug)]
pub(crate) struct MetricsWriter {
    path: PathBuf,
    file: File,
    /// Bytes of complete lines in the file.
    length: u64,
    /// Lines that are not written yet, because an earlier write failed.
    pending: String,
}

/// The name of the file in a run directory.
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";

impl MetricsWriter {
    /// Opens the file for a run that has done `step` steps. Lines of later steps and incomplete lines
    /// are deleted.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub(crate) fn open(run_dir: &Path, step: u64) -> Result<Self> {
        let path = run_dir.join(METRICS_FILE);
        let open = || -> Result<File> {
            let text = match fs::read(&path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
                Err(e) => return Err(e.into()),
            };
            let kept: String = text
                .split_inclusive('\n')
                .filter(|line| line.ends_with('\n'))
                .filter(|line| serde_json::from_str::<MetricsRecord>(line).is_ok_and(|record| record.step <= step))
                .collect();
            if kept != text {
                write_atomic(&path, &kept, Durability::Buffered)?;
            }
            Ok(OpenOptions::new().create(true).append(true).open(&path)?)
        };
        let opened = open().and_then(|file| Ok((file.metadata()?.len(), file)));
        let (length, file) = opened.with_context(|| format!("{} cannot be written", path.display()))?;
        Ok(MetricsWriter { path, file, length, pending: String::new() })
    }

    /// Appends a line, after the lines whose write failed before.
    ///
    /// # Errors
    /// The file cannot be written. It then still ends with a complete line, and the remaining lines
    /// are kept for the next call.
    pub(crate) fn write(&mut self, record: &MetricsRecord) -> Result<()> {
        self.pending += &(serde_json::to_string(record)? + "\n");
        self.flush()
    }

    /// Writes the lines whose write failed before.
    ///
    /// # Errors
    /// The file cannot be written; the lines are kept for the next call.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let written = self.file.write_all(self.pending.as_bytes());
        if written.is_ok() {
            self.length += self.pending.len() as u64;
            self.pending.clear();
        } else {
            // If this fails too, the next session deletes the incomplete line.
            let _ = self.file.set_len(self.length);
        }
        written
            .with_context(|| format!("{} cannot be written: free some space, or check its disk", self.path.display()))
    }
}

/// A line of `metrics.jsonl` as `status` and `plot` read it. Unknown keys are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct MetricLine {
    /// Steps done.
    pub step: u64,
    pub loss: Option<f64>,
    pub lr: Option<f64>,
    pub grad_norm: Option<f64>,
    pub tokens_per_s: Option<f64>,
    pub mfu: Option<f64>,
    pub val_loss: Option<f64>,
    /// Whether the loss or the gradient norm is not finite (`null` in JSON). With fp16 only the loss
    /// counts, because the search for the loss scale overflows gradients.
    pub bad: bool,
    /// Steps of the run skipped so far, except by that search.
    pub skipped: u64,
    /// Loss spikes of the run so far.
    pub spikes: u64,
}

/// Reads the metrics of a run. Incomplete lines are skipped.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn read(run_dir: &Path) -> Result<Vec<MetricLine>> {
    let path = run_dir.join(METRICS_FILE);
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{} cannot be read: is {} a run directory?", path.display(), run_dir.display()))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<MetricLine> {
    let json: Value = serde_json::from_str(line).ok()?;
    let number = |key: &str| json.get(key).and_then(Value::as_f64).filter(|value| value.is_finite());
    let count = |key: &str| json.get(key).and_then(Value::as_u64).unwrap_or(0);
    let is_null = |key: &str| json.get(key).is_some_and(Value::is_null);
    Some(MetricLine {
        step: json.get("step")?.as_u64()?,
        loss: number("loss"),
        lr: number("lr"),
        grad_norm: number("grad_norm"),
        tokens_per_s: number("tokens_per_s"),
        mfu: number("mfu"),
        val_loss: number("val_loss"),
        bad: is_null("loss") || (is_null("grad_norm") && json.get("loss_scale").is_none()),
        skipped: count("skipped").saturating_sub(count("scale_search_skips")),
        spikes: count("spikes"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training(step: u64) -> MetricsRecord {
        let training = TrainingMetrics {
            loss: Some(3.5),
            lr: 1e-4,
            grad_norm: Some(0.5),
            tokens_per_s: 100.0,
            mfu: 0.25,
            skipped: 0,
            scale_search_skips: 0,
            spikes: 0,
            loss_scale: None,
        };
        MetricsRecord { step, tokens: step * 10, training: Some(training), validation: None }
    }

    #[test]
    fn lines_have_the_documented_keys() {
        let line = serde_json::to_string(&training(1)).unwrap();
        assert_eq!(
            line,
            r#"{"step":1,"tokens":10,"loss":3.5,"lr":0.0001,"grad_norm":0.5,"tokens_per_s":100.0,"mfu":0.25}"#
        );
        let validation = ValidationMetrics { val_loss: 2.0, val_ppl: 7.5 };
        let record = MetricsRecord { step: 1, tokens: 10, training: None, validation: Some(validation) };
        assert_eq!(serde_json::to_string(&record).unwrap(), r#"{"step":1,"tokens":10,"val_loss":2.0,"val_ppl":7.5}"#);
        assert_eq!(serde_json::from_str::<MetricsRecord>(&line).unwrap(), training(1));
        assert_eq!(serde_json::from_str::<MetricsRecord>(&serde_json::to_string(&record).unwrap()).unwrap(), record);
    }

    #[test]
    fn lines_whose_write_failed_are_written_later() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = MetricsWriter::open(dir.path(), 0).unwrap();
        metrics.write(&training(1)).unwrap();
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let disk = std::mem::replace(&mut metrics.file, full);
        for step in [2, 3] {
            let error = format!("{:#}", metrics.write(&training(step)).unwrap_err());
            assert!(error.contains("metrics.jsonl cannot be written: free some space"), "{error}");
        }
        metrics.file = disk;
        metrics.write(&training(4)).unwrap();
        let steps: Vec<u64> = read(dir.path()).unwrap().iter().map(|line| line.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[test]
    fn resuming_deletes_later_and_incomplete_lines() {
        let dir = tempfile::tempdir().unwrap();
        let mut metrics = MetricsWriter::open(dir.path(), 0).unwrap();
        for step in 1..=5 {
            metrics.write(&training(step)).unwrap();
        }
        metrics.file.write_all(b"{\"step\":6,\"tok").unwrap();
        let mut metrics = MetricsWriter::open(dir.path(), 3).unwrap();
        metrics.write(&training(4)).unwrap();
        let steps: Vec<u64> = read(dir.path()).unwrap().iter().map(|r| r.step).collect();
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[test]
    fn readers_accept_missing_and_unknown_keys() {
        let line = parse(r#"{"step":7,"loss":null,"grad_norm":2.5,"more":"x"}"#).unwrap();
        assert_eq!(line, MetricLine { step: 7, grad_norm: Some(2.5), bad: true, ..MetricLine::default() });
        let counts = parse(r#"{"step":7,"loss":3.0,"skipped":2,"spikes":1}"#).unwrap();
        assert_eq!((counts.bad, counts.skipped, counts.spikes), (false, 2, 1));
        let search = r#"{"step":7,"loss":3.0,"grad_norm":null,"skipped":3,"scale_search_skips":2,"loss_scale":64.0}"#;
        let search = parse(search).unwrap();
        assert_eq!((search.bad, search.skipped), (false, 1));
        assert_eq!(parse(r#"{"step":7,"val_loss":3.0}"#).unwrap().val_loss, Some(3.0));
        assert_eq!((parse(r#"{"step":7,"lo"#), parse(r#"{"loss":1.0}"#), parse("3")), (None, None, None));
    }
}
