use std::path::PathBuf;

use anyhow::{Context, Result};
use charts::{Axis, AxisRange, Chart, Curve, LegendEntry, Panel, PanelRow, Style};
use clap::Args;
use evals::control::{SenseLogits, fact_edits, sense_logits};
use evals::{CandidateToken, TextAnalysis, Tokenizer};
use model::LanguageModel;
use serde_json::{Value, json};
use tch::Tensor;

use super::report::{ControlReport, ReportArgs, percent, room_for_each};
use super::word_lists;
use crate::args::model::{ModelArgs, at_least_one};
use crate::output::table::Table;

/// Let a word call up one word in place of another, in every context
///
/// What each sense of WORD says of OLD is projected out, and says as much of NEW. Reported for each prompt: how
/// probable both are as its next word, and what else is, before and after; prompts without the word stay as they are.
/// Example: backpack control edit --model runs/quickstart-model --word Captain --old Wentworth --new Harville
#[derive(Debug, Args)]
pub(super) struct Edit {
    #[command(flatten)]
    compute: ModelArgs,
    /// The word whose senses are edited; one token, as the others
    #[arg(long, value_name = "WORD")]
    word: String,
    /// The word that it calls up
    #[arg(long, value_name = "OLD")]
    old: String,
    /// The word that it is to call up
    #[arg(long, value_name = "NEW")]
    new: String,
    /// A text whose next word is looked at; may be repeated [default: two with the word, two without]
    #[arg(long = "prompt", value_name = "TEXT")]
    prompts: Vec<String>,
    /// Most probable next words to show
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one::<usize>)]
    top: usize,
    /// Write the edits, for --edit of any command
    #[arg(long, value_name = "FILE")]
    save_edit: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

/// A prompt's next word.
struct NextToken {
    old: CandidateToken,
    new: CandidateToken,
    top: Vec<CandidateToken>,
    /// Of all positions, `[T, V]`.
    logits: Tensor,
}

/// A prompt before and after.
struct EditComparison {
    prompt: String,
    has_word: bool,
    before: NextToken,
    after: NextToken,
    /// The largest difference of a logit, at any position.
    change: f64,
}

impl Edit {
    pub(super) fn run(self) -> Result<()> {
        let folder = self.report.folder()?;
        let mut model = super::load(&self.compute)?;
        let tokenizer = self.compute.tokenizer(&model)?;
        let id = |word: &str| word_lists::word(word, &tokenizer, &model);
        let (word, old, new) = (id(&self.word)?, id(&self.old)?, id(&self.new)?);
        let prompts: Vec<(String, Vec<i64>)> = self
            .prompts()
            .into_iter()
            .map(|prompt| Ok((prompt.clone(), tokenizer.encode(&prompt)?)))
            .collect::<Result<_>>()?;
        let look = |model: &LanguageModel| -> Result<(Vec<NextToken>, Vec<SenseLogits>)> {
            let next = |(prompt, ids): &(String, Vec<i64>)| {
                let read = || -> Result<NextToken> {
                    let (reading, last) = (TextAnalysis::new(model, ids)?, ids.len() - 1);
                    let (old, new) = (reading.candidate(last, old)?, reading.candidate(last, new)?);
                    Ok(NextToken { old, new, top: reading.next_tokens(last, self.top)?, logits: reading.logits })
                };
                read().with_context(|| format!("the prompt \"{prompt}\" is not usable"))
            };
            Ok((prompts.iter().map(next).collect::<Result<_>>()?, sense_logits(model, word, old, new)?))
        };
        let (before, senses_before) = look(&model)?;
        let edits = fact_edits(&model, word, old, new)?;
        let (after, senses_after) = model.with_edits(&edits, look)?;
        if let Some(path) = &self.save_edit {
            super::save_edits(&edits, path)?;
        }
        let compare = |(((prompt, ids), before), after): (((String, Vec<i64>), NextToken), NextToken)| {
            let change = (&before.logits - &after.logits).abs().max().double_value(&[]);
            EditComparison { prompt, has_word: ids.contains(&word), before, after, change }
        };
        let compared: Vec<EditComparison> = prompts.into_iter().zip(before).zip(after).map(compare).collect();
        let senses: Vec<(SenseLogits, SenseLogits)> = senses_before.into_iter().zip(senses_after).collect();
        let report = ControlReport {
            json: self.json(&compared, &senses, &tokenizer),
            tables: self.tables(&compared, &senses, &tokenizer),
            chart: self.chart(&compared),
            texts: Vec::new(),
        };
        self.report.write(folder, &report)
    }

    fn prompts(&self) -> Vec<String> {
        if !self.prompts.is_empty() {
            return self.prompts.clone();
        }
        let word = self.word.trim();
        let with = [format!("The {word} is best known for"), format!("Everyone has heard of the {word} and")];
        with.into_iter().chain(["The weather today is", "They went home and"].map(str::to_owned)).collect()
    }

    fn json(&self, compared: &[EditComparison], senses: &[(SenseLogits, SenseLogits)], tokenizer: &Tokenizer) -> Value {
        let next = |next: &NextToken| {
            let top = |c: &CandidateToken| json!({ "token": c.id, "word": word_lists::name(tokenizer, c.id), "probability": c.probability });
            json!({ "old": next.old.probability, "new": next.new.probability,
                    "top": next.top.iter().map(top).collect::<Vec<_>>() })
        };
        let prompt = |c: &EditComparison| {
            json!({ "prompt": c.prompt, "has_word": c.has_word, "largest_change": c.change,
                    "before": next(&c.before), "after": next(&c.after) })
        };
        let shift = |s: &SenseLogits| json!({ "old": s.old, "new": s.new });
        let sense = |(i, (before, after)): (usize, &(SenseLogits, SenseLogits))| json!({ "sense": i, "before": shift(before), "after": shift(after) });
        json!({
            "recipe": "edit",
            "word": self.word.trim(),
            "old": self.old.trim(),
            "new": self.new.trim(),
            "prompts": compared.iter().map(prompt).collect::<Vec<_>>(),
            "senses": senses.iter().enumerate().map(sense).collect::<Vec<_>>(),
        })
    }

    fn tables(
        &self,
        compared: &[EditComparison],
        senses: &[(SenseLogits, SenseLogits)],
        tokenizer: &Tokenizer,
    ) -> String {
        let (word, old, new) = (self.word.trim(), self.old.trim(), self.new.trim());
        let arrow = |before: String, after: String| format!("{before} -> {after}");
        let columns = ["prompt", &format!("p({old}), %"), &format!("p({new}), %"), "largest change of a logit"];
        let mut probabilities = Table::of_figures(&columns);
        let mut words = Table::of_words(&["prompt", "before", "after"]);
        let list = |next: &NextToken| {
            let word =
                |c: &CandidateToken| format!("{} {}", word_lists::name(tokenizer, c.id).trim(), percent(c.probability));
            next.top.iter().map(word).collect::<Vec<_>>().join(", ")
        };
        for EditComparison { prompt, before, after, change, .. } in compared {
            let share = |c: &CandidateToken| format!("{:.3}", 100.0 * c.probability);
            probabilities.row([
                prompt.clone(),
                arrow(share(&before.old), share(&after.old)),
                arrow(share(&before.new), share(&after.new)),
                format!("{change:.3}"),
            ]);
            words.row([prompt.clone(), list(before), list(after)]);
        }
        let mut by_sense = Table::of_figures(&["sense", &format!("C . E[{old}]"), &format!("C . E[{new}]")]);
        for (sense, (before, after)) in senses.iter().enumerate() {
            let cell =
                |value: fn(&SenseLogits) -> f64| arrow(format!("{:.2}", value(before)), format!("{:.2}", value(after)));
            by_sense.row([sense.to_string(), cell(|s| s.old), cell(|s| s.new)]);
        }
        format!(
            "{word} calls up {new} where it called up {old}.\n\n{probabilities}\n\
             The most probable next words, in percent.\n\n{words}\n\
             What each sense of {word} adds to the logits at a weight of 1.\n\n{by_sense}"
        )
    }

    /// The probabilities as bars, a group for each prompt.
    fn chart(&self, compared: &[EditComparison]) -> Chart {
        type Value = fn(&EditComparison) -> f64;
        let (old, new) = (self.old.trim(), self.new.trim());
        let bars: [(String, usize, Value); 4] = [
            (format!("{old} before"), 5, |c| c.before.old.probability),
            (format!("{old} after"), 0, |c| c.after.old.probability),
            (format!("{new} before"), 4, |c| c.before.new.probability),
            (format!("{new} after"), 1, |c| c.after.new.probability),
        ];
        let (mut legend, mut curves) = (Vec::new(), Vec::new());
        for (index, (name, color, value)) in bars.into_iter().enumerate() {
            let style = Style::Bars { color, index, count: 4 };
            let points = compared.iter().enumerate().map(|(i, c)| (i as f64, 100.0 * value(c))).collect();
            legend.push(LegendEntry { name, style });
            curves.push(Curve { points, style });
        }
        let names: Vec<String> =
            compared.iter().map(|c| charts::shorten(&c.prompt, room_for_each(compared.len()))).collect();
        let panel = Panel {
            title: "probability of the next word (%)".to_owned(),
            x: Axis::from_names("", &names),
            curves,
            range: AxisRange::FromZero,
        };
        Chart { legend, rows: vec![PanelRow { height: 400, panels: vec![panel] }] }
    }
}
