//! What a model can be measured on.

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
use model::{ForwardOptions, ModelConfig};
use serde::Serialize;

use crate::scoring::requests::PromptTokenizer;
use crate::scoring::{NO_NUMBERS, Scorer};
use crate::tasks::blimp::{Blimp, MinimalPairs};
use crate::tasks::lambada::{Lambada, Passages};
use crate::tasks::similarity::{Similarity, WordLists};
use crate::tasks::validation::{RankShard, Sequences, validate};
use crate::tasks::wikitext::{Pages, Wikitext};

/// The measurements there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// Perplexity over the validation split of prepared shards.
    Val,
    /// LAMBADA.
    Lambada,
    /// WikiText.
    Wikitext,
    /// BLiMP.
    Blimp,
    /// Word similarity.
    Similarity,
}

impl Task {
    /// All of them, in the order of the paper's table.
    pub const ALL: [Task; 5] = [Task::Val, Task::Lambada, Task::Wikitext, Task::Blimp, Task::Similarity];

    /// What it is called on disk and in JSON.
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

/// How much of a task's data is measured on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskSize {
    /// The first so many sequences, passages, pages, or pairs of each file; 0 for all.
    pub limit: u64,
    /// Tokens of a sequence of [`Task::Val`].
    pub sequence_length: usize,
}

/// A task's data, read and checked.
#[derive(Debug)]
pub struct Benchmark {
    data: TaskData,
    warning: Option<String>,
}

#[derive(Debug)]
enum TaskData {
    Val { split: TokenSplit, extent: TaskSize },
    Lambada(Passages),
    Wikitext(Pages),
    Blimp(MinimalPairs),
    Similarity(WordLists),
}

/// Mean cross-entropy over a validation split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Val {
    /// In nats per token.
    pub loss: f64,
    /// Its exponential.
    pub perplexity: f64,
    /// Tokens that were predicted.
    pub tokens: u64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "task", rename_all = "lowercase")]
pub enum TaskReport {
    /// Of [`Task::Val`].
    Val(Val),
    /// Of [`Task::Lambada`].
    Lambada(Lambada),
    /// Of [`Task::Wikitext`].
    Wikitext(Wikitext),
    /// Of [`Task::Blimp`].
    Blimp(Blimp),
    /// Of [`Task::Similarity`].
    Similarity(Similarity),
}

impl TaskReport {
    /// What it is of.
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
    /// Reads a task's data for a model. All but [`Task::Val`] need a framing.
    ///
    /// # Errors
    /// Naming the file, and the line where it has one, that is not the task's, or not this model's.
    pub fn open(
        task: Task,
        path: &Path,
        extent: TaskSize,
        config: &ModelConfig,
        framing: Option<&PromptTokenizer>,
    ) -> Result<Self> {
        let most = if extent.limit == 0 { usize::MAX } else { usize::try_from(extent.limit)? };
        let framing = || framing.context("texts need a tokenizer");
        let data = match task {
            Task::Val => {
                TaskData::Val { split: TokenSplit::open(path, Split::Val, config.vocab_size as usize)?, extent }
            }
            Task::Lambada => TaskData::Lambada(Passages::open(path, most, framing()?)?),
            Task::Wikitext => TaskData::Wikitext(Pages::open(path, most, framing()?)?),
            Task::Blimp => TaskData::Blimp(MinimalPairs::open(path, most, framing()?)?),
            Task::Similarity => TaskData::Similarity(WordLists::open(path, most, framing()?.tokenizer())?),
        };
        let warning = match &data {
            TaskData::Val { split, .. } if !split.has_manifest() => {
                Some(format!("{} has no manifest.json: nothing about the data could be checked", path.display()))
            }
            TaskData::Lambada(passages) => passages.warning(),
            TaskData::Wikitext(pages) => pages.warning(),
            _ => None,
        };
        Ok(Benchmark { data, warning })
    }

    /// What a user should know of the data before the result.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Measures the model of `scorer`, for which the data was opened.
    ///
    /// # Errors
    /// When a shard holds a foreign id, libtorch refuses, or the model's answers are no numbers.
    pub fn measure(&self, scorer: &mut Scorer) -> Result<TaskReport> {
        Ok(match &self.data {
            TaskData::Val { split, extent } => TaskReport::Val(measure_val(split, *extent, scorer)?),
            TaskData::Lambada(passages) => TaskReport::Lambada(passages.measure(scorer)?),
            TaskData::Wikitext(pages) => TaskReport::Wikitext(pages.measure(scorer)?),
            TaskData::Blimp(pairs) => TaskReport::Blimp(pairs.measure(scorer)?),
            TaskData::Similarity(lists) => TaskReport::Similarity(lists.measure(scorer)?),
        })
    }
}

fn measure_val(split: &TokenSplit, extent: TaskSize, scorer: &mut Scorer) -> Result<Val> {
    let length = extent.sequence_length;
    let batch = (scorer.batch_tokens / length).max(1) as u64;
    let sequences = Sequences { length, most: extent.limit, batch, share: RankShard::WHOLE };
    let tokens = length as u64;
    let validated = validate(scorer.model, split, sequences, ForwardOptions::evaluation(), &mut |done, all| {
        (scorer.progress)(done * tokens, all * tokens);
        Ok(true)
    })?;
    let Some(validated) = validated else { unreachable!("progress never ends it") };
    let loss = validated.loss();
    ensure!(loss.is_finite(), NO_NUMBERS);
    Ok(Val { loss, perplexity: loss.exp(), tokens: validated.tokens })
}
