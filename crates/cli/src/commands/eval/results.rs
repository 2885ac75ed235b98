//! Measurements as JSON and as Markdown.

use std::path::PathBuf;

use anyhow::Result;
use evals::{BlimpResult, SimilarityResult, Task, TaskReport};
use serde_json::{Map, Value, json};

/// What was measured of one task.
#[derive(Debug)]
pub(crate) struct TaskMeasurement {
    /// Where its data lies.
    pub(crate) data: PathBuf,
    pub(crate) report: TaskReport,
}

/// All that a call measured.
#[derive(Debug)]
pub(crate) struct EvalResults {
    pub(crate) model: PathBuf,
    /// How much of each task's data was taken; 0 for all.
    pub(crate) limit: u64,
    pub(crate) measured: Vec<TaskMeasurement>,
    /// Tasks without data, and why they have none.
    pub(crate) skipped: Vec<(Task, String)>,
}

impl TaskMeasurement {
    /// One object: the report, and what it is of.
    ///
    /// # Errors
    /// When the report is no JSON.
    pub(crate) fn json(&self, limit: u64) -> Result<Value> {
        let mut value = serde_json::to_value(&self.report)?;
        value["data"] = self.data.display().to_string().into();
        if limit > 0 {
            value["limit"] = limit.into();
        }
        Ok(value)
    }
}

impl EvalResults {
    /// One object, with each task's by its name.
    ///
    /// # Errors
    /// When a report is no JSON.
    pub(crate) fn json(&self) -> Result<Value> {
        let mut results = Map::new();
        for measured in &self.measured {
            results.insert(measured.report.task().name().to_owned(), measured.json(self.limit)?);
        }
        let skipped: Map<String, Value> =
            self.skipped.iter().map(|(task, why)| (task.name().to_owned(), why.as_str().into())).collect();
        let model = self.model.display().to_string();
        Ok(json!({ "task": "all", "model": model, "results": results, "skipped": skipped }))
    }

    /// A table with the columns of the paper's, what each number is of, and the details of the tasks that have any.
    pub(crate) fn markdown(&self) -> String {
        let mut cells = ["-"; 5].map(str::to_owned);
        for measured in &self.measured {
            match &measured.report {
                TaskReport::Val(val) => cells[0] = format!("{:.2}", val.perplexity),
                TaskReport::Lambada(lambada) => {
                    cells[1] = format!("{:.2}", lambada.perplexity);
                    cells[2] = percent(lambada.accuracy);
                }
                TaskReport::Wikitext(wikitext) => cells[3] = format!("{:.2}", wikitext.word_perplexity),
                TaskReport::Blimp(blimp) => cells[4] = percent(blimp.accuracy),
                TaskReport::Similarity(_) => {}
            }
        }
        let mut text = format!("# {}\n\n", self.model.display());
        text += "| OpenWebText | LAMBADA perplexity | LAMBADA accuracy | WikiText | BLiMP |\n";
        text += &format!("|---|---|---|---|---|\n| {} |\n\n", cells.join(" | "));
        if self.limit > 0 {
            text += &format!("**A quick look**, at the first {} of each task's data alone.\n\n", self.limit);
        }
        for TaskMeasurement { data, report } in &self.measured {
            text += &format!("- {}: {} ({})\n", title(report.task()), summary(report), data.display());
        }
        for (task, why) in &self.skipped {
            text += &format!("- {}: left out, {why}\n", title(*task));
        }
        for measured in &self.measured {
            if let Some(details) = details(&measured.report) {
                text += &format!("\n## {}\n{details}", title(measured.report.task()));
            }
        }
        text
    }
}

/// The column of a task; the validation split is meant to be OpenWebText's.
fn title(task: Task) -> &'static str {
    match task {
        Task::Val => "OpenWebText",
        Task::Lambada => "LAMBADA",
        Task::Wikitext => "WikiText",
        Task::Blimp => "BLiMP",
        Task::Similarity => "Word similarity",
    }
}

/// What was found, in one line.
pub(crate) fn summary(report: &TaskReport) -> String {
    match report {
        TaskReport::Val(val) => {
            format!("loss {:.4}, perplexity {:.3} over {} tokens", val.loss, val.perplexity, val.tokens)
        }
        TaskReport::Lambada(lambada) => format!(
            "perplexity {:.3}, last word right in {} of {} passages",
            lambada.perplexity,
            percent(lambada.accuracy),
            lambada.passages
        ),
        TaskReport::Wikitext(wikitext) => format!(
            "word perplexity {:.3}, byte perplexity {:.4}, bits per byte {:.4} over {} pages",
            wikitext.word_perplexity, wikitext.byte_perplexity, wikitext.bits_per_byte, wikitext.pages
        ),
        TaskReport::Blimp(blimp) => format!(
            "{} right, the mean of {} paradigms, {} pairs",
            percent(blimp.accuracy),
            blimp.paradigms.len(),
            blimp.pairs
        ),
        TaskReport::Similarity(similarity) => {
            let (pairs, kept) = similarity.lists.values().fold((0, 0), |(a, b), list| (a + list.pairs, b + list.kept));
            format!("{kept} of {pairs} pairs are of words of one token each and were compared")
        }
    }
}

/// Tables behind a task's one number.
pub(crate) fn details(report: &TaskReport) -> Option<String> {
    match report {
        TaskReport::Blimp(blimp) => Some(paradigms(blimp)),
        TaskReport::Similarity(similarity) => Some(correlations(similarity)),
        TaskReport::Val(_) | TaskReport::Lambada(_) | TaskReport::Wikitext(_) => None,
    }
}

fn paradigms(blimp: &BlimpResult) -> String {
    let rows = blimp.paradigms.iter().map(|(name, accuracy)| format!("| {name} | {} |\n", percent(*accuracy)));
    format!("\n| paradigm | accuracy |\n|---|---|\n{}", rows.collect::<String>())
}

/// Correlations by list; the senses' by themselves, a column each.
fn correlations(similarity: &SimilarityResult) -> String {
    let number = |correlation: Option<f64>| correlation.map_or("-".to_owned(), |number| format!("{number:.3}"));
    let mut text =
        "\n| list | pairs | kept | embedding | min matched | max matched | min of all | max of all |\n".to_owned();
    text += "|---|---|---|---|---|---|---|---|\n";
    for (name, list) in &similarity.lists {
        let senses = list.senses.as_ref();
        let variants = [
            list.embedding,
            senses.and_then(|senses| senses.min_matched),
            senses.and_then(|senses| senses.max_matched),
            senses.and_then(|senses| senses.min_all),
            senses.and_then(|senses| senses.max_all),
        ];
        text += &format!("| {name} | {} | {} | {} |\n", list.pairs, list.kept, variants.map(number).join(" | "));
    }
    let num_senses = similarity.lists.values().filter_map(|list| list.senses.as_ref()).map(|s| s.by_sense.len()).max();
    let Some(num_senses) = num_senses else { return text };
    let heads: Vec<String> = (0..num_senses).map(|sense| sense.to_string()).collect();
    text += &format!("\n| sense | {} |\n|---|{}\n", heads.join(" | "), "---|".repeat(num_senses));
    for (name, list) in &similarity.lists {
        let by_sense = list.senses.iter().flat_map(|senses| &senses.by_sense).map(|&correlation| number(correlation));
        text += &format!("| {name} | {} |\n", by_sense.collect::<Vec<_>>().join(" | "));
    }
    text
}

fn percent(share: f64) -> String {
    format!("{:.2}%", 100.0 * share)
}
