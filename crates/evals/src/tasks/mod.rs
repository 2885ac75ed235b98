//! The evaluation tasks: reading their data and measuring a model on it.

pub(crate) mod blimp;
pub(crate) mod detokenize;
pub(crate) mod lambada;
pub(crate) mod similarity;
pub(crate) mod spearman;
pub(crate) mod validation;
pub(crate) mod wikitext;
pub(crate) mod word_pairs;

use std::path::Path;

use anyhow::{Context, Result, ensure};
use data_prep::{Split, TokenSplit};
use model::ModelConfig;
use serde::Serialize;

use crate::scoring::requests::PromptTokenizer;
use crate::scoring::{NOT_FINITE, Scorer};
use crate::tasks::blimp::{BlimpResult, MinimalPairs};
use crate::tasks::lambada::{LambadaResult, Passages};
use crate::tasks::similarity::{SimilarityResult, WordLists};
use crate::tasks::validation::{RankShard, ValidationOptions, validate};
use crate::tasks::wikitext::{Pages, WikitextResult};

/// The name of an evaluation task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Perplexity over the validation split of prepared shards.
    Val,
    /// Last-word prediction on LAMBADA.
    Lambada,
    /// Perplexity of WikiText.
    Wikitext,
    /// Grammatical judgments on BLiMP.
    Blimp,
    /// Agreement of vectors with human ratings of word similarity.
    Similarity,
}

impl Task {
    /// All tasks, in the order of the paper's table.
    pub const ALL: [Task; 5] = [Task::Val, Task::Lambada, Task::Wikitext, Task::Blimp, Task::Similarity];

    /// Returns the name of the task in paths and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Task::Val => "val",
            Task::Lambada => "lambada",
            Task::Wikitext => "wikitext",
            Task::Blimp => "blimp",
            Task::Similarity => "similarity",
        }
    }
}

/// How much of a task's data is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskSize {
    /// The number of sequences, passages, pages, or pairs per file, from the start; 0 means all.
    pub limit: u64,
    /// Tokens per sequence of [`Task::Val`].
    pub sequence_length: usize,
}

/// The data of a task, read and checked.
#[derive(Debug)]
pub struct Benchmark {
    data: TaskData,
    warning: Option<String>,
}

#[derive(Debug)]
enum TaskData {
    Val { split: TokenSplit, size: TaskSize },
    Lambada(Passages),
    Wikitext(Pages),
    Blimp(MinimalPairs),
    Similarity(WordLists),
}

/// The result of [`Task::Val`]: the mean loss over a validation split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValResult {
    /// The mean cross-entropy, in nats per token.
    pub loss: f64,
    /// The exponential of `loss`.
    pub perplexity: f64,
    /// The number of predicted tokens.
    pub tokens: u64,
}

/// The result of a task. It serializes with the name of the task under `task`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "task", rename_all = "lowercase")]
pub enum TaskReport {
    /// The result of [`Task::Val`].
    Val(ValResult),
    /// The result of [`Task::Lambada`].
    Lambada(LambadaResult),
    /// The result of [`Task::Wikitext`].
    Wikitext(WikitextResult),
    /// The result of [`Task::Blimp`].
    Blimp(BlimpResult),
    /// The result of [`Task::Similarity`].
    Similarity(SimilarityResult),
}

impl TaskReport {
    /// Returns the task that was measured.
    pub fn task(&self) -> Task {
        match self {
            TaskReport::Val(_) => Task::Val,
            TaskReport::Lambada(_) => Task::Lambada,
            TaskReport::Wikitext(_) => Task::Wikitext,
            TaskReport::Blimp(_) => Task::Blimp,
            TaskReport::Similarity(_) => Task::Similarity,
        }
    }
}

impl Benchmark {
    /// Reads the data of a task for a model. Every task except [`Task::Val`] needs a tokenizer.
    ///
    /// # Errors
    /// The data is not that of the task, or does not fit the model; the error names the file and
    /// the line.
    pub fn open(
        task: Task,
        path: &Path,
        size: TaskSize,
        config: &ModelConfig,
        prompt_tokenizer: Option<&PromptTokenizer>,
    ) -> Result<Self> {
        let limit = if size.limit == 0 { usize::MAX } else { usize::try_from(size.limit)? };
        let prompt_tokenizer = || prompt_tokenizer.context("the task needs a tokenizer");
        let data = match task {
            Task::Val => TaskData::Val { split: TokenSplit::open(path, Split::Val, config.vocab_size as usize)?, size },
            Task::Lambada => TaskData::Lambada(Passages::open(path, limit, prompt_tokenizer()?)?),
            Task::Wikitext => TaskData::Wikitext(Pages::open(path, limit, prompt_tokenizer()?)?),
            Task::Blimp => TaskData::Blimp(MinimalPairs::open(path, limit, prompt_tokenizer()?)?),
            Task::Similarity => TaskData::Similarity(WordLists::open(path, limit, prompt_tokenizer()?.tokenizer())?),
        };
        let warning = match &data {
            TaskData::Val { split, .. } if !split.has_manifest() => {
                Some(format!("{} has no manifest.json: the data is not checked", path.display()))
            }
            TaskData::Lambada(passages) => passages.warning(),
            TaskData::Wikitext(pages) => pages.warning(),
            _ => None,
        };
        Ok(Benchmark { data, warning })
    }

    /// Returns a warning about the data, to be shown before the result.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Measures the model of `scorer`. The data must have been opened for this model.
    ///
    /// # Errors
    /// A token shard contains an id outside the vocabulary, or the model's outputs are not finite.
    pub fn measure(&self, scorer: &mut Scorer) -> Result<TaskReport> {
        Ok(match &self.data {
            TaskData::Val { split, size } => TaskReport::Val(measure_val(split, *size, scorer)?),
            TaskData::Lambada(passages) => TaskReport::Lambada(passages.measure(scorer)?),
            TaskData::Wikitext(pages) => TaskReport::Wikitext(pages.measure(scorer)?),
            TaskData::Blimp(pairs) => TaskReport::Blimp(pairs.measure(scorer)?),
            TaskData::Similarity(lists) => TaskReport::Similarity(lists.measure(scorer)?),
        })
    }
}

fn measure_val(split: &TokenSplit, size: TaskSize, scorer: &mut Scorer) -> Result<ValResult> {
    let options = ValidationOptions {
        sequence_length: size.sequence_length,
        max_sequences: size.limit,
        batch_size: (scorer.batch_tokens / size.sequence_length).max(1) as u64,
        shard: RankShard::WHOLE,
    };
    let tokens = size.sequence_length as u64;
    let result = validate(scorer.model, split, options, scorer.model.evaluation_options(), &mut |done, total| {
        (scorer.progress)(done * tokens, total * tokens);
        Ok(true)
    })?;
    let Some(result) = result else { unreachable!("the progress callback never stops the validation") };
    let loss = result.loss();
    ensure!(loss.is_finite(), NOT_FINITE);
    Ok(ValResult { loss, perplexity: loss.exp(), tokens: result.tokens })
}
