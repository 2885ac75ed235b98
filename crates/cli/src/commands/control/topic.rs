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

use super::report::{ControlReport, ReportArgs, percent};
use super::word_lists;
use crate::args::model::{ModelArgs, at_least_one};
use crate::args::sampling::SamplingArgs;
use crate::output::progress::LogProgress;
use crate::output::table::Table;

/// Generate texts on a topic, at several strengths
///
/// The senses that speak of the topic's words count more, the more so near the end of the text, and no more once what
/// they say has been said. Reported for each strength, 0 being the model as it is: the share of texts in which the
/// topic's words are more frequent than in the mean text of strength 0, how frequent they are, how many of a text's
/// tokens are different ones, and the perplexity of the texts under the model as it is. Text i draws alike at every
/// strength.
/// Example: backpack control topic --model runs/quickstart-model --topic war --topic family --texts 20
#[derive(Debug, Args)]
pub(super) struct Topic {
    #[command(flatten)]
    compute: ModelArgs,
    /// A topic that the project has words for: family, law, money, music, sport, war; may be repeated
    #[arg(long = "topic", value_name = "NAME", required_unless_present_any = ["words", "about"])]
    topics: Vec<String>,
    /// A topic as a file of words, one a line; may be repeated
    #[arg(long, value_name = "FILE")]
    words: Vec<PathBuf>,
    /// A topic as a text: its words are those that the model expects more in it than in its own texts; may be repeated
    #[arg(long, value_name = "TEXT")]
    about: Vec<String>,
    /// What the texts begin with [default: the end of a text before]
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Texts of each topic and strength; the paper has 500
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = at_least_one::<u64>)]
    texts: u64,
    /// Tokens of a text, as in the paper [default: 100, or what the context has room for]
    #[arg(long, value_name = "N")]
    tokens: Option<usize>,
    /// Strengths, from 1 to 3
    #[arg(long, value_name = "1,2,3", value_delimiter = ',', default_values_t = [1, 2, 3], value_parser = clap::value_parser!(u8).range(1..=3))]
    strengths: Vec<u8>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Words of a topic that a text tells of.
const WORDS_ABOUT: usize = 40;
/// Pairs of word and sense that are shown.
const PAIRS_SHOWN: usize = 10;

/// One topic and what came of it.
struct SteeredTexts {
    name: String,
    ids: Vec<i64>,
    /// Words that are several tokens, of which the first stands for them.
    cut: Vec<String>,
    outcomes: Vec<TopicResult>,
}

/// The texts of one strength.
struct TopicResult {
    strength: u8,
    /// Share of texts with more of the topic's words than the mean text of strength 0.
    success: f64,
    /// The words of each topic in 100 tokens.
    rates: Vec<f64>,
    /// Share of a text's tokens that are different ones.
    distinct: f64,
    perplexity: f64,
}

impl Topic {
    pub(super) fn run(mut self) -> Result<()> {
        self.strengths.sort_unstable();
        self.strengths.dedup();
        self.sampling(0).validate()?;
        let folder = self.report.folder()?;
        let listed = self.listed()?;
        let model = super::load(&self.compute)?;
        let tokenizer = self.compute.tokenizer(&model)?;
        let prompt = self.prompt_ids(&model, &tokenizer)?;
        let tokens = self.tokens_of(&model, &prompt)?;
        let mut steered = Vec::new();
        for (name, words) in listed {
            let (ids, cut) = word_lists::first_tokens(&words, &tokenizer, &model)?;
            steered.push(SteeredTexts { name, ids, cut, outcomes: Vec::new() });
        }

        let plain = self.write(&model, &prompt, tokens, None, "strength 0")?;
        if !self.about.is_empty() {
            let usual = mean_probabilities(&model, &plain)?;
            for text in &self.about {
                steered.push(about(&model, &tokenizer, text, &usual)?);
            }
        }
        let mut names = HashSet::new();
        if let Some(topic) = steered.iter().find(|topic| !names.insert(topic.name.as_str())) {
            bail!("two topics are called \"{}\": ask for one of them, or rename its file of words", topic.name);
        }
        let mut texts = Vec::new();
        let mut keep = |topic: Option<&str>, strength: u8, all: &[Vec<i64>]| -> Result<()> {
            for (number, ids) in all.iter().enumerate() {
                let text = tokenizer.decode(ids)?;
                texts.push(json!({ "topic": topic, "strength": strength, "number": number, "text": text }));
            }
            Ok(())
        };
        keep(None, 0, &plain)?;
        let plain_perplexity = perplexity(&model, &prompt, &plain)?;

        let mut progress = LogProgress::new();
        let all = model.config().num_tokens();
        let topics: Vec<Vec<i64>> = steered.iter().map(|topic| topic.ids.clone()).collect();
        let scores = score_topics(&model, &topics, &mut |done| {
            progress.say(|| format!("scored the senses of {done} of {all} words"));
        })?;
        for (own, (topic, scores)) in steered.iter_mut().zip(&scores).enumerate() {
            let usual = mean_count(&plain, &topic.ids);
            topic.outcomes.push(TopicResult::of(0, &plain, &topics, own, usual, plain_perplexity));
            for &strength in &self.strengths {
                let multipliers = scores.multipliers(&model, usize::from(strength))?;
                let what = format!("{}, strength {strength}", topic.name);
                let written = self.write(&model, &prompt, tokens, Some(&multipliers), &what)?;
                keep(Some(&topic.name), strength, &written)?;
                let perplexity = perplexity(&model, &prompt, &written)?;
                topic.outcomes.push(TopicResult::of(strength, &written, &topics, own, usual, perplexity));
            }
        }
        let json = self.json(&steered, &scores, &tokenizer, tokens)?;
        let report = ControlReport { json, tables: tables(&steered), chart: chart(&steered), texts };
        self.report.write(folder, &report)
    }

    /// The topics that have a list of words: name and words.
    fn listed(&self) -> Result<Vec<(String, Vec<String>)>> {
        let shipped = self.topics.iter().map(|name| Ok((name.clone(), word_lists::topic(name)?)));
        let own = self.words.iter().map(|path| {
            let stem = path.file_stem().unwrap_or(path.as_os_str());
            Ok((stem.to_string_lossy().into_owned(), word_lists::lines_of(Some(path), "")?))
        });
        shipped.chain(own).collect()
    }

    fn sampling(&self, number: u64) -> Sampling {
        self.sampling.with_seed(derive_seed(self.sampling.seed, &[number]))
    }

    fn prompt_ids(&self, model: &LanguageModel, tokenizer: &Tokenizer) -> Result<Vec<i64>> {
        match &self.prompt {
            Some(text) => {
                let ids = tokenizer.encode(text)?;
                model.check_ids(&ids).context("--prompt is not usable")?;
                Ok(ids)
            }
            None => {
                let end = model.config().end_of_text;
                Ok(vec![end.context("the model's config.json names no end of text to begin after: give a --prompt")?])
            }
        }
    }

    fn tokens_of(&self, model: &LanguageModel, prompt: &[i64]) -> Result<usize> {
        let context = model.config().n_positions as usize;
        let room = context - prompt.len();
        let tokens = self.tokens.unwrap_or(room.min(100));
        ensure!(
            (1..=room).contains(&tokens),
            "--tokens is {tokens}: after a prompt of {} the model's context of {context} has room for 1 to {room}",
            prompt.len()
        );
        Ok(tokens)
    }

    /// The texts of one strength, without the prompt.
    fn write(
        &self,
        model: &LanguageModel,
        prompt: &[i64],
        tokens: usize,
        multipliers: Option<&TopicMultipliers>,
        what: &str,
    ) -> Result<Vec<Vec<i64>>> {
        let mut progress = LogProgress::new();
        let text = |number| {
            progress.say(|| format!("{what}: {number} of {} texts", self.texts));
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
            let pairs = scores.highest(PAIRS_SHOWN)?;
            let pair = |&(id, sense): &(i64, i64)| json!({ "token": id, "word": word_lists::name(tokenizer, id), "sense": sense, "score": scores.score(id, sense) });
            let outcome = |o: &TopicResult| {
                let all = steered.iter().zip(&o.rates).map(|(topic, rate)| (topic.name.clone(), json!(rate)));
                json!({ "strength": o.strength, "success": o.success, "words_per_100_tokens": o.rates[own],
                        "words_of_all_topics": all.collect::<serde_json::Map<_, _>>(),
                        "distinct": o.distinct, "perplexity": o.perplexity })
            };
            Ok(json!({
                "topic": topic.name,
                "words": topic.ids.iter().map(|&id| word_lists::name(tokenizer, id)).collect::<Vec<_>>(),
                "first_token_only": topic.cut,
                "thresholds": scores.thresholds(),
                "highest": pairs.iter().map(pair).collect::<Vec<_>>(),
                "strengths": topic.outcomes.iter().map(outcome).collect::<Vec<_>>(),
            }))
        };
        let topics = steered.iter().zip(scores).enumerate().map(topic).collect::<Result<Vec<_>>>()?;
        Ok(json!({ "recipe": "topic", "prompt": self.prompt, "texts": self.texts, "tokens": tokens,
                   "seed": self.sampling.seed, "topics": topics }))
    }
}

/// The topic that a text is about, of what the model expects in it more than in its own texts, `usual`.
fn about(model: &LanguageModel, tokenizer: &Tokenizer, text: &str, usual: &[f64]) -> Result<SteeredTexts> {
    let is_word = |id: i64| {
        let name = word_lists::name(tokenizer, id);
        let word = name.trim();
        // Of letters alone, and the token that the word is inside a text.
        word.chars().count() > 2
            && word.chars().all(char::is_alphabetic)
            && tokenizer.word_id(word).is_ok_and(|own| own == id)
    };
    let ids = topic_words(model, &tokenizer.encode(text)?, usual, WORDS_ABOUT, is_word)
        .with_context(|| format!("no topic can be made of --about \"{text}\""))?;
    Ok(SteeredTexts { name: format!("about: {text}"), ids, cut: Vec::new(), outcomes: Vec::new() })
}

fn count(text: &[i64], topic: &[i64]) -> f64 {
    text.iter().filter(|id| topic.contains(id)).count() as f64
}

fn mean_count(texts: &[Vec<i64>], topic: &[i64]) -> f64 {
    texts.iter().map(|text| count(text, topic)).sum::<f64>() / texts.len() as f64
}

impl SteeredTexts {
    /// For tables and legends; what is data has the whole of it.
    fn short_name(&self) -> String {
        charts::shorten(&self.name, charts::MAX_NAME_CHARS)
    }
}

impl TopicResult {
    /// Of texts on the topic `own` of all `topics`; `usual` is the mean count of its words in texts of strength 0.
    fn of(strength: u8, texts: &[Vec<i64>], topics: &[Vec<i64>], own: usize, usual: f64, perplexity: f64) -> Self {
        let more = texts.iter().filter(|text| count(text, &topics[own]) > usual).count();
        let tokens: usize = texts.iter().map(Vec::len).sum();
        let distinct: usize = texts.iter().map(|text| text.iter().collect::<HashSet<_>>().len()).sum();
        let rate = |topic: &Vec<i64>| 100.0 * mean_count(texts, topic) * texts.len() as f64 / tokens as f64;
        TopicResult {
            strength,
            success: more as f64 / texts.len() as f64,
            rates: topics.iter().map(rate).collect(),
            distinct: distinct as f64 / tokens as f64,
            perplexity,
        }
    }
}

fn tables(steered: &[SteeredTexts]) -> String {
    let columns = [
        "topic",
        "strength",
        "texts with more of it (%)",
        "its words in 100 tokens",
        "distinct tokens (%)",
        "perplexity",
    ];
    let mut table = Table::of_figures(&columns);
    for (own, topic) in steered.iter().enumerate() {
        for o in &topic.outcomes {
            let (rate, perplexity) = (format!("{:.2}", o.rates[own]), format!("{:.1}", o.perplexity));
            let strength = o.strength.to_string();
            table.row([topic.short_name(), strength, percent(o.success), rate, percent(o.distinct), perplexity]);
        }
    }
    let mut text = table.to_string();
    if steered.len() > 1 {
        text += &format!("\nThe words of each topic in 100 tokens.\n\n{}", words_of_all(steered));
    }
    for topic in steered.iter().filter(|topic| !topic.cut.is_empty()) {
        text += &format!(
            "\n{}: of {} only the first token counts, since they are several.\n",
            topic.name,
            topic.cut.join(", ")
        );
    }
    text
}

/// Whether a topic's texts are on it alone.
fn words_of_all(steered: &[SteeredTexts]) -> Table {
    let names: Vec<String> = steered.iter().map(SteeredTexts::short_name).collect();
    let names = names.iter().map(String::as_str);
    let mut table = Table::of_figures(&["texts on", "strength"].into_iter().chain(names).collect::<Vec<_>>());
    for topic in steered {
        for o in &topic.outcomes {
            let rates = o.rates.iter().map(|rate| format!("{rate:.2}"));
            table.row([topic.short_name(), o.strength.to_string()].into_iter().chain(rates));
        }
    }
    table
}

fn chart(steered: &[SteeredTexts]) -> Chart {
    let legend =
        |(i, topic): (usize, &SteeredTexts)| LegendEntry { name: topic.short_name(), style: Style::Markers(i) };
    let panel = |title: &str, value: fn(&TopicResult, usize) -> f64| {
        let curve = |(i, topic): (usize, &SteeredTexts)| Curve {
            points: topic.outcomes.iter().map(|o| (f64::from(o.strength), value(o, i))).collect(),
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
        panel("texts with more of it (%)", |o, _| 100.0 * o.success),
        panel("its words in 100 tokens", |o, own| o.rates[own]),
    ];
    let below = vec![
        panel("distinct tokens (%)", |o, _| 100.0 * o.distinct),
        panel("perplexity under the model as it is", |o, _| o.perplexity),
    ];
    let rows = [panels, below].map(|panels| PanelRow { height: 300, panels }).to_vec();
    Chart { legend: steered.iter().enumerate().map(legend).collect(), rows }
}
