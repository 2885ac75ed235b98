//! The method `topic`.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use charts::{Axis, AxisRange, Chart, Curve, LegendEntry, Panel, PanelRow, Style};
use clap::Args;
use evals::Tokenizer;
use evals::control::{
    TextRequest, TopicMultipliers, TopicScores, generate_text, mean_probabilities, perplexity, score_topics,
    topic_words,
};
use model::{LanguageModel, Sampling, derive_seed};
use serde_json::{Value, json};

use super::report::{ControlReport, ReportArgs};
use super::word_lists;
use crate::args::model::{ModelArgs, at_least_one};
use crate::args::sampling::SamplingArgs;
use crate::output::format::percent;
use crate::output::progress::LogProgress;
use crate::output::table::Table;

/// Generate texts about a topic, at several strengths
///
/// Senses that predict the topic's words get a larger weight. The weight grows with the position in
/// the text. It returns to its unsteered value once the words that the sense predicts have appeared.
/// Strength 0 is the unsteered model.
///
/// Reports for each strength the share of on-topic texts (those with more topic words than the
/// average unsteered text), the topic words per 100 tokens, the share of distinct tokens, and the
/// perplexity of the texts under the unsteered model. Text i uses the same random numbers at every
/// strength, so that the texts can be compared.
///
/// Example: backpack control topic --model runs/quickstart-model --topic war --topic family --texts 20
#[derive(Debug, Args)]
pub(super) struct Topic {
    #[command(flatten)]
    model: ModelArgs,
    /// Built-in topic: family, law, money, music, sport or war; may be repeated
    #[arg(long = "topic", value_name = "NAME", required_unless_present_any = ["words", "about"])]
    topics: Vec<String>,
    /// Topic as a file of words, one per line; may be repeated
    #[arg(long, value_name = "FILE")]
    words: Vec<PathBuf>,
    /// Topic as a text: uses the words that the model predicts more often in this text than in its
    /// own texts; may be repeated
    #[arg(long, value_name = "TEXT")]
    about: Vec<String>,
    /// Beginning of every text [default: <|endoftext|>, so that a new text begins]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Number of texts per topic and strength; 500 in the paper
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one::<u64>)]
    texts: u64,
    /// Tokens per text [default: 100 as in the paper, or what fits into the context]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Strengths to use, from 1 to 3
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', default_values_t = [1, 2, 3], value_parser = clap::value_parser!(u8).range(1..=3))]
    strengths: Vec<u8>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Number of topic words that are selected for `--about`.
const ABOUT_WORDS: usize = 40;
/// Number of pairs of word and sense in the report.
const REPORTED_PAIRS: usize = 10;

/// A topic and the results of its texts.
struct SteeredTexts {
    name: String,
    ids: Vec<i64>,
    /// Words that have several tokens, of which only the first is used.
    first_token_only: Vec<String>,
    results: Vec<TopicResult>,
}

/// The results of the texts of one strength.
struct TopicResult {
    strength: u8,
    /// Share of texts with more topic words than the average text of strength 0.
    on_topic: f64,
    /// Words of each topic per 100 tokens.
    rates: Vec<f64>,
    /// Share of distinct tokens of a text.
    distinct: f64,
    /// Perplexity under the unsteered model.
    perplexity: f64,
}

impl Topic {
    /// Generates the texts and writes the report.
    pub(super) fn run(mut self) -> Result<()> {
        self.strengths.sort_unstable();
        self.strengths.dedup();
        self.sampling(0).validate()?;
        let output_dir = self.report.output_dir()?;
        let word_lists = self.word_lists()?;
        let model = self.model.load_backpack()?;
        let tokenizer = self.model.tokenizer(&model)?;
        let prompt = self.prompt_ids(&model, &tokenizer)?;
        let tokens = self.text_tokens(&model, &prompt)?;
        let mut steered = Vec::new();
        for (name, words) in word_lists {
            let (ids, first_token_only) = word_lists::first_tokens(&words, &tokenizer, &model)?;
            steered.push(SteeredTexts { name, ids, first_token_only, results: Vec::new() });
        }

        let unsteered = self.generate(&model, &prompt, tokens, None, "strength 0")?;
        if !self.about.is_empty() {
            let baseline = mean_probabilities(&model, &unsteered)?;
            for text in &self.about {
                steered.push(topic_of_text(&model, &tokenizer, text, &baseline)?);
            }
        }
        let mut names = HashSet::new();
        if let Some(topic) = steered.iter().find(|topic| !names.insert(topic.name.as_str())) {
            bail!("two topics have the name \"{}\": remove one of them, or rename its file of words", topic.name);
        }
        let mut texts = Vec::new();
        let mut record = |topic: Option<&str>, strength: u8, all: &[Vec<i64>]| -> Result<()> {
            for (number, ids) in all.iter().enumerate() {
                let text = tokenizer.decode(ids)?;
                texts.push(json!({ "topic": topic, "strength": strength, "number": number, "text": text }));
            }
            Ok(())
        };
        record(None, 0, &unsteered)?;
        let unsteered_perplexity = perplexity(&model, &prompt, &unsteered)?;

        let mut progress = LogProgress::new();
        let num_tokens = model.config().tokenizer_vocab_size();
        let topics: Vec<Vec<i64>> = steered.iter().map(|topic| topic.ids.clone()).collect();
        let scores = score_topics(&model, &topics, &mut |done| {
            progress.log(|| format!("scored the senses of {done} of {num_tokens} words"));
        })?;
        for (own, (topic, scores)) in steered.iter_mut().zip(&scores).enumerate() {
            let mean = mean_count(&unsteered, &topic.ids);
            topic.results.push(TopicResult::measure(0, &unsteered, &topics, own, mean, unsteered_perplexity));
            for &strength in &self.strengths {
                let multipliers = scores.multipliers(&model, usize::from(strength))?;
                let stage = format!("{}, strength {strength}", topic.name);
                let generated = self.generate(&model, &prompt, tokens, Some(&multipliers), &stage)?;
                record(Some(&topic.name), strength, &generated)?;
                let perplexity = perplexity(&model, &prompt, &generated)?;
                topic.results.push(TopicResult::measure(strength, &generated, &topics, own, mean, perplexity));
            }
        }
        let json = self.json(&steered, &scores, &tokenizer, tokens)?;
        let report = ControlReport { json, tables: tables(&steered), chart: chart(&steered), texts };
        self.report.write(output_dir, &report)
    }

    /// Name and words of the topics of `--topic` and `--words`.
    fn word_lists(&self) -> Result<Vec<(String, Vec<String>)>> {
        let built_in = self.topics.iter().map(|name| Ok((name.clone(), word_lists::topic(name)?)));
        let own = self.words.iter().map(|path| {
            let stem = path.file_stem().unwrap_or(path.as_os_str());
            Ok((stem.to_string_lossy().into_owned(), word_lists::read_lines(Some(path), "")?))
        });
        built_in.chain(own).collect()
    }

    /// The sampling method of text `number`.
    fn sampling(&self, number: u64) -> Sampling {
        self.sampling.with_seed(derive_seed(self.sampling.seed, &[number]))
    }

    /// The tokens of the prompt.
    fn prompt_ids(&self, model: &LanguageModel, tokenizer: &Tokenizer) -> Result<Vec<i64>> {
        match &self.prompt {
            Some(text) => {
                let ids = tokenizer.encode(text)?;
                model.check_ids(&ids).context("cannot use --prompt")?;
                Ok(ids)
            }
            None => {
                let end = model.config().end_of_text;
                Ok(vec![end.context("config.json of the model has no end-of-text token: give a --prompt")?])
            }
        }
    }

    /// The number of tokens per text.
    fn text_tokens(&self, model: &LanguageModel, prompt: &[i64]) -> Result<usize> {
        let context = model.config().n_positions as usize;
        let room = context - prompt.len();
        let tokens = self.tokens.unwrap_or(room.min(100));
        ensure!(
            (1..=room).contains(&tokens),
            "--tokens is {tokens}, but the model's context of {context} has room for 1 to {room} tokens after the prompt of {}",
            prompt.len()
        );
        Ok(tokens)
    }

    /// Generates the texts of one strength; returns their tokens without the prompt.
    fn generate(
        &self,
        model: &LanguageModel,
        prompt: &[i64],
        tokens: usize,
        multipliers: Option<&TopicMultipliers>,
        stage: &str,
    ) -> Result<Vec<Vec<i64>>> {
        let mut progress = LogProgress::new();
        let text = |number| {
            progress.log(|| format!("{stage}: {number} of {} texts", self.texts));
            generate_text(model, TextRequest { prompt, tokens, sampling: self.sampling(number) }, multipliers)
        };
        (0..self.texts).map(text).collect()
    }

    fn json(
        &self,
        steered: &[SteeredTexts],
        scores: &[TopicScores],
        tokenizer: &Tokenizer,
        tokens: usize,
    ) -> Result<Value> {
        let topic = |(own, (topic, scores)): (usize, (&SteeredTexts, &TopicScores))| -> Result<Value> {
            let pairs = scores.highest(REPORTED_PAIRS)?;
            let pair = |&(id, sense): &(i64, i64)| json!({ "token": id, "word": tokenizer.token_text(id), "sense": sense, "score": scores.score(id, sense) });
            let result = |r: &TopicResult| {
                let all = steered.iter().zip(&r.rates).map(|(topic, rate)| (topic.name.clone(), json!(rate)));
                json!({ "strength": r.strength, "success": r.on_topic, "words_per_100_tokens": r.rates[own],
                        "words_of_all_topics": all.collect::<serde_json::Map<_, _>>(),
                        "distinct": r.distinct, "perplexity": r.perplexity })
            };
            Ok(json!({
                "topic": topic.name,
                "words": topic.ids.iter().map(|&id| tokenizer.token_text(id)).collect::<Vec<_>>(),
                "first_token_only": topic.first_token_only,
                "thresholds": scores.thresholds(),
                "highest": pairs.iter().map(pair).collect::<Vec<_>>(),
                "strengths": topic.results.iter().map(result).collect::<Vec<_>>(),
            }))
        };
        let topics = steered.iter().zip(scores).enumerate().map(topic).collect::<Result<Vec<_>>>()?;
        Ok(json!({ "recipe": "topic", "prompt": self.prompt, "texts": self.texts, "tokens": tokens,
                   "seed": self.sampling.seed, "topics": topics }))
    }
}

/// Selects the topic words of a text: those that the model predicts more often in it than in its
/// own texts, whose mean probabilities are `baseline`.
fn topic_of_text(model: &LanguageModel, tokenizer: &Tokenizer, text: &str, baseline: &[f64]) -> Result<SteeredTexts> {
    let is_word = |id: i64| {
        let name = tokenizer.token_text(id);
        let word = name.trim();
        // Only words of letters, and only their tokens with a leading space.
        word.chars().count() > 2
            && word.chars().all(char::is_alphabetic)
            && tokenizer.word_id(word).is_ok_and(|own| own == id)
    };
    let ids = topic_words(model, &tokenizer.encode(text)?, baseline, ABOUT_WORDS, is_word)
        .with_context(|| format!("cannot select topic words for --about \"{text}\""))?;
    Ok(SteeredTexts { name: format!("about: {text}"), ids, first_token_only: Vec::new(), results: Vec::new() })
}

fn count(text: &[i64], topic: &[i64]) -> f64 {
    text.iter().filter(|id| topic.contains(id)).count() as f64
}

fn mean_count(texts: &[Vec<i64>], topic: &[i64]) -> f64 {
    texts.iter().map(|text| count(text, topic)).sum::<f64>() / texts.len() as f64
}

impl SteeredTexts {
    /// The name for tables and legends, shortened. JSON has the full name.
    fn short_name(&self) -> String {
        charts::shorten(&self.name, charts::MAX_NAME_CHARS)
    }
}

impl TopicResult {
    /// Measures texts about the topic number `own` of `topics`. `unsteered_mean` is the mean count
    /// of its words in texts of strength 0.
    fn measure(
        strength: u8,
        texts: &[Vec<i64>],
        topics: &[Vec<i64>],
        own: usize,
        unsteered_mean: f64,
        perplexity: f64,
    ) -> Self {
        let on_topic = texts.iter().filter(|text| count(text, &topics[own]) > unsteered_mean).count();
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let distinct: usize = texts.iter().map(|text| text.iter().collect::<HashSet<_>>().len()).sum();
        let rate = |topic: &Vec<i64>| 100.0 * mean_count(texts, topic) * texts.len() as f64 / tokens as f64;
        TopicResult {
            strength,
            on_topic: on_topic as f64 / texts.len() as f64,
            rates: topics.iter().map(rate).collect(),
            distinct: distinct as f64 / tokens as f64,
            perplexity,
        }
    }
}

/// The tables of the report.
fn tables(steered: &[SteeredTexts]) -> String {
    let columns =
        ["topic", "strength", "on-topic texts (%)", "topic words per 100 tokens", "distinct tokens (%)", "perplexity"];
    let mut table = Table::new(&columns, 1);
    for (own, topic) in steered.iter().enumerate() {
        for result in &topic.results {
            table.add_row([
                topic.short_name(),
                result.strength.to_string(),
                percent(result.on_topic, 1),
                format!("{:.2}", result.rates[own]),
                percent(result.distinct, 1),
                format!("{:.1}", result.perplexity),
            ]);
        }
    }
    let mut text = table.to_string();
    if steered.len() > 1 {
        text += &format!("\nWords of each topic per 100 tokens.\n\n{}", cross_topic_table(steered));
    }
    for topic in steered.iter().filter(|topic| !topic.first_token_only.is_empty()) {
        text += &format!(
            "\n{}: these words have several tokens, of which only the first is counted: {}.\n",
            topic.name,
            topic.first_token_only.join(", ")
        );
    }
    text
}

/// The words of every topic in the texts about every topic.
fn cross_topic_table(steered: &[SteeredTexts]) -> Table {
    let names: Vec<String> = steered.iter().map(SteeredTexts::short_name).collect();
    let names = names.iter().map(String::as_str);
    let mut table = Table::new(&["texts on", "strength"].into_iter().chain(names).collect::<Vec<_>>(), 1);
    for topic in steered {
        for result in &topic.results {
            let rates = result.rates.iter().map(|rate| format!("{rate:.2}"));
            table.add_row([topic.short_name(), result.strength.to_string()].into_iter().chain(rates));
        }
    }
    table
}

/// The four quantities as functions of the strength.
fn chart(steered: &[SteeredTexts]) -> Chart {
    let legend =
        |(i, topic): (usize, &SteeredTexts)| LegendEntry { name: topic.short_name(), style: Style::Markers(i) };
    let panel = |title: &str, value: fn(&TopicResult, usize) -> f64| {
        let curve = |(i, topic): (usize, &SteeredTexts)| Curve {
            points: topic.results.iter().map(|r| (f64::from(r.strength), value(r, i))).collect(),
            style: Style::Markers(i),
        };
        Panel {
            title: title.to_owned(),
            x: Axis::from_names("strength", &["0", "1", "2", "3"].map(str::to_owned)),
            curves: steered.iter().enumerate().map(curve).collect(),
            range: AxisRange::FromZero,
        }
    };
    let panels = vec![
        panel("on-topic texts (%)", |r, _| 100.0 * r.on_topic),
        panel("topic words per 100 tokens", |r, own| r.rates[own]),
    ];
    let below = vec![
        panel("distinct tokens (%)", |r, _| 100.0 * r.distinct),
        panel("perplexity (unsteered model)", |r, _| r.perplexity),
    ];
    let rows = [panels, below].map(|panels| PanelRow { height: 300, panels }).to_vec();
    Chart { legend: steered.iter().enumerate().map(legend).collect(), rows }
}
