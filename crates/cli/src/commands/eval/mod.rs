//! The command `eval`: its arguments, and the order of measuring and printing.

mod data_args;
mod results;

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use evals::{Benchmark, PromptTokenizer, Scorer, Task, TaskReport, TaskSize};
use model::LanguageModel;

use crate::args::model::{ModelArgs, at_least_one};
use crate::commands::eval::data_args::{DataArg, DataArgs};
use crate::commands::eval::results::{EvalHardware, EvalResults, TaskMeasurement, details, summary};
use crate::output::atomic_dir::AtomicDir;
use crate::output::files::write_json;
use crate::output::progress::LogProgress;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TaskName {
    /// Perplexity on the validation split of prepared shards
    Val,
    /// Perplexity and accuracy of the last word of a passage, from OpenAI's lambada_test.jsonl
    Lambada,
    /// Perplexity per word and per byte, from pages in JSONL or the text of WikiText
    Wikitext,
    /// Accuracy on minimal pairs of sentences, from a directory of JSONL files
    Blimp,
    /// Correlation of sense cosines with human ratings, from SimLex-999 and other lists of word
    /// pairs
    Similarity,
    /// All tasks that have data
    All,
}

impl TaskName {
    /// The single task, or none for `all`.
    fn task(self) -> Option<Task> {
        match self {
            TaskName::Val => Some(Task::Val),
            TaskName::Lambada => Some(Task::Lambada),
            TaskName::Wikitext => Some(Task::Wikitext),
            TaskName::Blimp => Some(Task::Blimp),
            TaskName::Similarity => Some(Task::Similarity),
            TaskName::All => None,
        }
    }
}

/// Evaluate a model on benchmarks
///
/// lambada, wikitext and blimp give the numbers of lm-evaluation-harness. docs/evaluation.md
/// describes the tasks and the sources of their data. With --task all, --data is a directory with
/// one subdirectory per task, or TASK=PATH for each task, and the results are also written to
/// results.json and results.md in --output.
///
/// Example: backpack eval --model runs/quickstart-model --task all --data val=runs/quickstart-data --data blimp=eval-data/blimp --output runs/quickstart-eval
#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// Task to measure
    #[arg(long, value_enum)]
    task: TaskName,
    /// Data of the task: a directory written by prepare-data (val), or a file or directory of files
    /// (the others); may be repeated with --task all
    #[arg(long, value_name = "[TASK=]PATH", required = true)]
    data: Vec<DataArg>,
    /// New directory for results.json and results.md; required with --task all
    #[arg(long, value_name = "DIR", required_if_eq("task", "all"))]
    output: Option<PathBuf>,
    /// Tokens per sequence of the task val [default: the model's context]
    #[arg(long, value_name = "N")]
    sequence_length: Option<usize>,
    /// Batch size, in sequences of the model's context (shorter texts are batched up to the same
    /// number of tokens)
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one::<usize>)]
    batch: usize,
    /// Use only the first N sequences, passages or pages, or N pairs of each file; 0: all
    #[arg(long, value_name = "N", default_value_t = 0)]
    limit: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    /// Measures the tasks, prints the results and writes them to `--output`.
    pub(crate) fn run(self) -> Result<()> {
        let data = match self.task.task() {
            Some(task) => DataArgs::for_task(task, &self.data)?,
            None => DataArgs::for_all_tasks(&self.data)?,
        };
        let output = self.output.as_deref().map(AtomicDir::new).transpose()?;
        let model = self.model.load()?;
        let hardware =
            EvalHardware { device: trainer::device_type(model.device().is_cuda()), precision: self.model.precision() };
        eprintln!("evaluating {} on {hardware}", self.model.model.display());
        let results = self.measure(&model, hardware, data)?;
        let json = match (&results.measurements[..], self.task.task()) {
            ([only], Some(_)) => results.task_json(only)?,
            _ => results.json()?,
        };
        // Printed first, so that the result is not lost if the directory cannot be written.
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{json}")?;
        } else if self.task.task().is_none() {
            write!(out, "{}", results.markdown())?;
        } else {
            for TaskMeasurement { report, .. } in &results.measurements {
                writeln!(out, "{}", summary(report))?;
                write!(out, "{}", details(report).unwrap_or_default())?;
            }
        }
        if let Some(output) = &output {
            output.fill(|directory| {
                write_json(directory, "results.json", &json)?;
                Ok(fs::write(directory.join("results.md"), results.markdown())?)
            })?;
        }
        Ok(())
    }

    /// Reads all data before the first measurement, so that an error in a file is found at once.
    fn measure(&self, model: &LanguageModel, hardware: EvalHardware, data: DataArgs) -> Result<EvalResults> {
        let config = model.config();
        let context = config.n_positions as usize;
        let has_val = data.found.iter().any(|(task, _)| *task == Task::Val);
        ensure!(has_val || self.sequence_length.is_none(), "--sequence-length applies only to the task val");
        let sequence_length = self.sequence_length.unwrap_or(context);
        ensure!(
            (1..=context).contains(&sequence_length),
            "--sequence-length {sequence_length} must be between 1 and the model's context of {context}"
        );
        let size = TaskSize { limit: self.limit, sequence_length };
        let has_texts = data.found.iter().any(|(task, _)| *task != Task::Val);
        let tokenizer = has_texts.then(|| self.model.tokenizer(model)).transpose()?;
        let prompts = tokenizer.as_ref().map(|tokenizer| PromptTokenizer::new(config, tokenizer)).transpose();
        let prompts =
            prompts.context("cannot tokenize the texts for this model (choose another tokenizer with --tokenizer)")?;
        let mut benchmarks = Vec::new();
        for (task, path) in data.found {
            let benchmark = Benchmark::open(task, &path, size, config, prompts.as_ref())?;
            if let Some(warning) = benchmark.warning() {
                eprintln!("warning: {warning}");
            }
            benchmarks.push((task, path, benchmark));
        }
        let (mut measurements, log_summaries) = (Vec::new(), benchmarks.len() > 1);
        for (task, path, benchmark) in benchmarks {
            let report = self.measure_one(model, task, &benchmark)?;
            if log_summaries {
                eprintln!("{}: {}", task.name(), summary(&report));
            }
            measurements.push(TaskMeasurement { data: path, report });
        }
        let (path, skipped) = (self.model.model.clone(), data.skipped);
        Ok(EvalResults { model: path, hardware, limit: self.limit, measurements, skipped })
    }

    fn measure_one(&self, model: &LanguageModel, task: Task, benchmark: &Benchmark) -> Result<TaskReport> {
        let (mut log, start) = (LogProgress::new(), Instant::now());
        let mut progress = |done: u64, all: u64| {
            log.log(|| {
                let left = start.elapsed().as_secs_f64() * (all - done) as f64 / done.max(1) as f64;
                format!("{}: {:.0}%, ETA {left:.0} s", task.name(), 100.0 * done as f64 / all as f64)
            });
        };
        let batch_tokens = self.batch.saturating_mul(model.config().n_positions as usize);
        let report = benchmark.measure(&mut Scorer { model, batch_tokens, progress: &mut progress });
        report.with_context(|| format!("cannot measure {}", task.name()))
    }
}
