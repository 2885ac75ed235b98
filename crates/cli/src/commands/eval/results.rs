//! The results of `eval` as JSON and as Markdown.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use evals::{BlimpResult, SimilarityResult, Task, TaskReport};
use serde_json::{Map, Value, json};
use trainer::Precision;

use crate::output::format::percent;
use crate::output::table::Table;

/// The result of one task.
#[derive(Debug)]
pub(crate) struct TaskMeasurement {
    /// Path of the data.
    pub(crate) data: PathBuf,
    pub(crate) report: TaskReport,
}

/// The hardware and the precision of a measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EvalHardware {
    /// `cpu` or `cuda`.
    pub(crate) device: &'static str,
    /// The type of matrix products.
    pub(crate) precision: Precision,
}

impl fmt::Display for EvalHardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {}, precision {}", self.device, self.precision)
    }
}

/// The results of one call.
#[derive(Debug)]
pub(crate) struct EvalResults {
    pub(crate) model: PathBuf,
    pub(crate) hardware: EvalHardware,
    /// The value of `--limit`; 0 if all data was used.
    pub(crate) limit: u64,
    pub(crate) measurements: Vec<TaskMeasurement>,
    /// Tasks without data, with the reason.
    pub(crate) skipped: Vec<(Task, String)>,
}

impl EvalResults {
    /// One JSON object for a task: the report, the path of the data, device and precision, and the
    /// limit if there is one.
    pub(crate) fn task_json(&self, measurement: &TaskMeasurement) -> Result<Value> {
        let mut value = serde_json::to_value(&measurement.report)?;
        value["data"] = measurement.data.display().to_string().into();
        value["device"] = self.hardware.device.into();
        value["precision"] = json!(self.hardware.precision);
        if self.limit > 0 {
            value["limit"] = self.limit.into();
        }
        Ok(value)
    }

    /// One JSON object with the results by task.
    pub(crate) fn json(&self) -> Result<Value> {
        let mut results = Map::new();
        for measurement in &self.measurements {
            results.insert(measurement.report.task().name().to_owned(), self.task_json(measurement)?);
        }
        let skipped: Map<String, Value> =
            self.skipped.iter().map(|(task, why)| (task.name().to_owned(), why.as_str().into())).collect();
        let model = self.model.display().to_string();
        Ok(json!({ "task": "all", "model": model, "results": results, "skipped": skipped }))
    }

    /// A table with the columns of the paper, a summary per task, and the detail tables.
    pub(crate) fn markdown(&self) -> String {
        let mut cells = ["-"; 5].map(str::to_owned);
        for measurement in &self.measurements {
            match &measurement.report {
                TaskReport::Val(val) => cells[0] = format!("{:.2}", val.perplexity),
                TaskReport::Lambada(lambada) => {
                    cells[1] = format!("{:.2}", lambada.perplexity);
                    cells[2] = with_sign(lambada.accuracy);
                }
                TaskReport::Wikitext(wikitext) => cells[3] = format!("{:.2}", wikitext.word_perplexity),
                TaskReport::Blimp(blimp) => cells[4] = with_sign(blimp.accuracy),
                TaskReport::Similarity(_) => {}
            }
        }
        let mut text = format!("# {}\n\n", self.model.display());
        let columns = ["OpenWebText", "LAMBADA perplexity", "LAMBADA accuracy", "WikiText", "BLiMP"];
        let mut table = Table::new(&columns, 0);
        table.add_row(cells);
        text += &format!("{table}\n");
        text += &format!("Measured on {}.\n\n", self.hardware);
        if self.limit > 0 {
            text += &format!("**Limited**: only the first {} items of each task's data were used.\n\n", self.limit);
        }
        for TaskMeasurement { data, report } in &self.measurements {
            text += &format!("- {}: {} ({})\n", title(report.task()), summary(report), data.display());
        }
        for (task, why) in &self.skipped {
            text += &format!("- {}: skipped, {why}\n", title(*task));
        }
        for measurement in &self.measurements {
            if let Some(details) = details(&measurement.report) {
                text += &format!("\n## {}\n{details}", title(measurement.report.task()));
            }
        }
        text
    }
}

/// The heading of a task. The validation split is assumed to be that of OpenWebText.
fn title(task: Task) -> &'static str {
    match task {
        Task::Val => "OpenWebText",
        Task::Lambada => "LAMBADA",
        Task::Wikitext => "WikiText",
        Task::Blimp => "BLiMP",
        Task::Similarity => "Word similarity",
    }
}

/// The result in one line.
pub(crate) fn summary(report: &TaskReport) -> String {
    match report {
        TaskReport::Val(val) => {
            format!("loss {:.4}, perplexity {:.3} over {} tokens", val.loss, val.perplexity, val.tokens)
        }
        TaskReport::Lambada(lambada) => format!(
            "perplexity {:.3}, last word correct in {} of {} passages",
            lambada.perplexity,
            with_sign(lambada.accuracy),
            lambada.passages
        ),
        TaskReport::Wikitext(wikitext) => format!(
            "word perplexity {:.3}, byte perplexity {:.4}, bits per byte {:.4} over {} pages",
            wikitext.word_perplexity, wikitext.byte_perplexity, wikitext.bits_per_byte, wikitext.pages
        ),
        TaskReport::Blimp(blimp) => format!(
            "accuracy {}, the mean of {} paradigms, {} pairs",
            with_sign(blimp.accuracy),
            blimp.paradigms.len(),
            blimp.pairs
        ),
        TaskReport::Similarity(similarity) => {
            let (pairs, kept) = similarity.lists.values().fold((0, 0), |(a, b), list| (a + list.pairs, b + list.kept));
            format!("{kept} of {pairs} pairs compared (those whose words are one token each)")
        }
    }
}

/// The detail tables of a task, if it has any.
pub(crate) fn details(report: &TaskReport) -> Option<String> {
    match report {
        TaskReport::Blimp(blimp) => Some(paradigms(blimp)),
        TaskReport::Similarity(similarity) => Some(correlations(similarity)),
        TaskReport::Val(_) | TaskReport::Lambada(_) | TaskReport::Wikitext(_) => None,
    }
}

/// Accuracy by paradigm.
fn paradigms(blimp: &BlimpResult) -> String {
    let mut table = Table::new(&["paradigm", "accuracy"], 1);
    for (name, accuracy) in &blimp.paradigms {
        table.add_row([name.clone(), with_sign(*accuracy)]);
    }
    format!("\n{table}")
}

/// Correlations by list; in a second table the correlations of each sense.
fn correlations(similarity: &SimilarityResult) -> String {
    let number = |correlation: Option<f64>| correlation.map_or("-".to_owned(), |number| format!("{number:.3}"));
    let columns = ["list", "pairs", "kept", "embedding", "min matched", "max matched", "min of all", "max of all"];
    let mut table = Table::new(&columns, 1);
    for (name, list) in &similarity.lists {
        let senses = list.senses.as_ref();
        let variants = [
            list.embedding,
            senses.and_then(|senses| senses.min_matched),
            senses.and_then(|senses| senses.max_matched),
            senses.and_then(|senses| senses.min_all),
            senses.and_then(|senses| senses.max_all),
        ];
        let counts = [name.clone(), list.pairs.to_string(), list.kept.to_string()];
        table.add_row(counts.into_iter().chain(variants.map(number)));
    }
    let num_senses = similarity.lists.values().filter_map(|list| list.senses.as_ref()).map(|s| s.by_sense.len()).max();
    let Some(num_senses) = num_senses else { return format!("\n{table}") };
    let senses: Vec<String> = (0..num_senses).map(|sense| sense.to_string()).collect();
    let mut sense_table =
        Table::new(&["sense"].into_iter().chain(senses.iter().map(String::as_str)).collect::<Vec<_>>(), 1);
    for (name, list) in &similarity.lists {
        let by_sense = list.senses.iter().flat_map(|senses| &senses.by_sense).map(|&correlation| number(correlation));
        sense_table.add_row([name.clone()].into_iter().chain(by_sense));
    }
    format!("\n{table}\n{sense_table}")
}

/// A fraction in percent with two decimals and the sign.
fn with_sign(fraction: f64) -> String {
    percent(fraction, 2) + "%"
}
