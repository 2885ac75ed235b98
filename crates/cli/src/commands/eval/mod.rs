pub(crate) mod data_args;
pub(crate) mod results;

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
use crate::commands::eval::results::{EvalResults, TaskMeasurement, details, summary};
use crate::commands::export::hugging_face::write_json;
use crate::output::atomic_dir::AtomicDir;
use crate::output::progress::LogProgress;

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TaskName {
    /// Perplexity over the validation split of prepared shards.
    Val,
    /// Perplexity and accuracy of a passage's last word: OpenAI's lambada_test.jsonl.
    Lambada,
    /// Perplexity by word and byte: pages in jsonl, or WikiText's own text.
    Wikitext,
    /// Accuracy on minimal pairs of sentences: a folder of jsonl files.
    Blimp,
    /// Correlation of senses' cosines with people's ratings: SimLex-999 and other lists of word pairs.
    Similarity,
    /// Each of them that there is data for.
    All,
}

impl TaskName {
    /// None for all.
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

/// Measure a model
///
/// lambada, wikitext and blimp give the numbers of lm-evaluation-harness. docs/evaluation.md says what each
/// task is and where its public files come from. With --task all, --data is a folder that holds
/// folders of the tasks' names, or TASK=PATH, several times; results.json and results.md go to --output.
/// Example: backpack eval --model runs/quickstart-model --task all --data val=runs/quickstart-data --data blimp=data/blimp --output runs/quickstart-eval
#[derive(Debug, Args)]
pub(crate) struct Eval {
    #[command(flatten)]
    compute: ModelArgs,
    /// What to measure
    #[arg(long, value_enum)]
    task: TaskName,
    /// What to measure it on: a folder that prepare-data wrote (val), a file or a folder of files (the others)
    #[arg(long, value_name = "[TASK=]PATH", required = true)]
    data: Vec<DataArg>,
    /// A new folder for results.json and results.md; --task all needs one
    #[arg(long, value_name = "DIR", required_if_eq("task", "all"))]
    output: Option<PathBuf>,
    /// Tokens of a sequence of val [default: the model's context]
    #[arg(long, value_name = "N")]
    sequence_length: Option<usize>,
    /// Sequences of the model's context computed at once, or as many tokens of shorter ones
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one::<usize>)]
    batch: usize,
    /// A quick look: only the first N sequences, passages or pages, or pairs of each file; 0 for all
    #[arg(long, value_name = "N", default_value_t = 0, alias = "max-sequences")]
    limit: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(crate) fn run(self) -> Result<()> {
        let sources = match self.task.task() {
            Some(task) => DataArgs::of_one(task, &self.data)?,
            None => DataArgs::of_all(&self.data)?,
        };
        let output = self.output.as_deref().map(AtomicDir::at).transpose()?;
        let model = self.compute.load()?;
        let results = self.measure(&model, sources)?;
        let json = match (&results.measured[..], self.task.task()) {
            ([only], Some(_)) => only.json(self.limit)?,
            _ => results.json()?,
        };
        // Shown first: a disk that refuses the folder does not take the result with it.
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{json}")?;
        } else if self.task.task().is_none() {
            write!(out, "{}", results.markdown())?;
        } else {
            for TaskMeasurement { report, .. } in &results.measured {
                writeln!(out, "{}", summary(report))?;
                write!(out, "{}", details(report).unwrap_or_default())?;
            }
        }
        if let Some(output) = &output {
            output.fill(|folder| {
                write_json(folder, "results.json", &json)?;
                Ok(fs::write(folder.join("results.md"), results.markdown())?)
            })?;
        }
        Ok(())
    }

    /// Reads all data before anything is measured, so that a mistake in a file costs no time.
    fn measure(&self, model: &LanguageModel, sources: DataArgs) -> Result<EvalResults> {
        let config = model.config();
        let context = config.n_positions as usize;
        let has_val = sources.found.iter().any(|(task, _)| *task == Task::Val);
        ensure!(
            has_val || self.sequence_length.is_none(),
            "--sequence-length is of the task val, which is not measured"
        );
        let sequence_length = self.sequence_length.unwrap_or(context);
        ensure!(
            (1..=context).contains(&sequence_length),
            "--sequence-length {sequence_length} must be between 1 and the model's context of {context}"
        );
        let extent = TaskSize { limit: self.limit, sequence_length };
        let has_texts = sources.found.iter().any(|(task, _)| *task != Task::Val);
        let tokenizer = has_texts.then(|| self.compute.tokenizer(model)).transpose()?;
        let framing = tokenizer.as_ref().map(|tokenizer| PromptTokenizer::new(config, tokenizer)).transpose();
        let framing = framing.context("the texts cannot be tokenised for this model (--tokenizer names another)")?;
        let mut benchmarks = Vec::new();
        for (task, path) in sources.found {
            let benchmark = Benchmark::open(task, &path, extent, config, framing.as_ref())?;
            if let Some(warning) = benchmark.warning() {
                eprintln!("warning: {warning}");
            }
            benchmarks.push((task, path, benchmark));
        }
        let (mut measured, several) = (Vec::new(), benchmarks.len() > 1);
        for (task, data, benchmark) in benchmarks {
            let report = self.measure_one(model, task, &benchmark)?;
            if several {
                eprintln!("{}: {}", task.name(), summary(&report));
            }
            measured.push(TaskMeasurement { data, report });
        }
        Ok(EvalResults { model: self.compute.model.clone(), limit: self.limit, measured, skipped: sources.skipped })
    }

    fn measure_one(&self, model: &LanguageModel, task: Task, benchmark: &Benchmark) -> Result<TaskReport> {
        let (mut plain, start) = (LogProgress::new(), Instant::now());
        let mut progress = |done: u64, all: u64| {
            plain.say(|| {
                let left = start.elapsed().as_secs_f64() * (all - done) as f64 / done.max(1) as f64;
                format!("{}: {:.0}%, ETA {left:.0} s", task.name(), 100.0 * done as f64 / all as f64)
            });
        };
        let batch_tokens = self.batch.saturating_mul(model.config().n_positions as usize);
        let report = benchmark.measure(&mut Scorer { model, batch_tokens, progress: &mut progress });
        report.with_context(|| format!("{} cannot be measured", task.name()))
    }
}
