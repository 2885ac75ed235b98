//! The method `edit`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use charts::{Axis, AxisRange, Chart, Curve, LegendEntry, Panel, PanelRow, Style};
use clap::Args;
use evals::control::{SenseLogits, fact_edits, sense_logits};
use evals::{CandidateToken, TextAnalysis, Tokenizer};
use model::LanguageModel;
use serde_json::{Value, json};
use tch::Tensor;

use super::report::{ControlReport, ReportArgs, max_label_characters, save_edits};
use super::word_lists;
use crate::args::model::{ModelArgs, at_least_one};
use crate::output::format::percent;
use crate::output::table::Table;

/// Edit a fact: make WORD predict NEW instead of OLD in every context
///
/// Removes the component in the direction of OLD's embedding from every sense of WORD, and adds
/// the same amount in the direction of NEW's. Reports for each prompt the probabilities of OLD and
/// NEW as the next word, and the most probable next words, before and after the edit. Prompts
/// without WORD do not change.
///
/// Example: backpack control edit --model runs/quickstart-model --word Great --old Britain --new Mexico
#[derive(Debug, Args)]
pub(super) struct Edit {
    #[command(flatten)]
    model: ModelArgs,
    /// Word whose senses are edited. WORD, OLD and NEW must each be a single token with a leading
    /// space
    #[arg(long, value_name = "WORD")]
    word: String,
    /// Word that WORD predicts now
    #[arg(long, value_name = "OLD")]
    old: String,
    /// Word that WORD should predict
    #[arg(long, value_name = "NEW")]
    new: String,
    /// Prompt whose next word is reported; may be repeated [default: two with WORD and two without]
    #[arg(long = "prompt", value_name = "TEXT")]
    prompts: Vec<String>,
    /// Number of most probable next words to show
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one::<usize>)]
    top: usize,
    /// Write the sense edits, for --edit of other commands
    #[arg(long, value_name = "FILE")]
    save_edit: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

/// The prediction of a prompt's next word.
struct NextToken {
    old: CandidateToken,
    new: CandidateToken,
    top: Vec<CandidateToken>,
    /// Logits of all positions, `[T, V]`.
    logits: Tensor,
}

/// The prediction for a prompt before and after the edit.
struct EditComparison {
    prompt: String,
    has_word: bool,
    before: NextToken,
    after: NextToken,
    /// The largest absolute change of a logit at any position.
    largest_change: f64,
}

impl Edit {
    /// Applies the edit and writes the report.
    pub(super) fn run(self) -> Result<()> {
        let output_dir = self.report.output_dir()?;
        let mut model = self.model.load_backpack()?;
        let tokenizer = self.model.tokenizer(&model)?;
        let id = |word: &str| word_lists::word_id(word, &tokenizer, &model);
        let (word, old, new) = (id(&self.word)?, id(&self.old)?, id(&self.new)?);
        let prompts: Vec<(String, Vec<i64>)> = self
            .prompts()
            .into_iter()
            .map(|prompt| Ok((prompt.clone(), tokenizer.encode(&prompt)?)))
            .collect::<Result<_>>()?;
        let measure = |model: &LanguageModel| -> Result<(Vec<NextToken>, Vec<SenseLogits>)> {
            let next = |(prompt, ids): &(String, Vec<i64>)| {
                let read = || -> Result<NextToken> {
                    let (analysis, last) = (TextAnalysis::new(model, ids)?, ids.len() - 1);
                    let (old, new) = (analysis.candidate(last, old)?, analysis.candidate(last, new)?);
                    Ok(NextToken { old, new, top: analysis.next_tokens(last, self.top)?, logits: analysis.logits })
                };
                read().with_context(|| format!("cannot evaluate the prompt \"{prompt}\""))
            };
            Ok((prompts.iter().map(next).collect::<Result<_>>()?, sense_logits(model, word, old, new)?))
        };
        let (before, senses_before) = measure(&model)?;
        let edits = fact_edits(&model, word, old, new)?;
        let (after, senses_after) = model.with_edits(&edits, measure)?;
        if let Some(path) = &self.save_edit {
            save_edits(&edits, path)?;
        }
        let compare = |(((prompt, ids), before), after): (((String, Vec<i64>), NextToken), NextToken)| {
            let largest_change = (&before.logits - &after.logits).abs().max().double_value(&[]);
            EditComparison { prompt, has_word: ids.contains(&word), before, after, largest_change }
        };
        let compared: Vec<EditComparison> = prompts.into_iter().zip(before).zip(after).map(compare).collect();
        let senses: Vec<(SenseLogits, SenseLogits)> = senses_before.into_iter().zip(senses_after).collect();
        let report = ControlReport {
            json: self.json(&compared, &senses, &tokenizer),
            tables: self.tables(&compared, &senses, &tokenizer),
            chart: self.chart(&compared),
            texts: Vec::new(),
        };
        self.report.write(output_dir, &report)
    }

    /// The prompts of the flags, or four default prompts.
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
            let top = |c: &CandidateToken| json!({ "token": c.id, "word": tokenizer.token_text(c.id), "probability": c.probability });
            json!({ "old": next.old.probability, "new": next.new.probability,
                    "top": next.top.iter().map(top).collect::<Vec<_>>() })
        };
        let prompt = |c: &EditComparison| {
            json!({ "prompt": c.prompt, "has_word": c.has_word, "largest_change": c.largest_change,
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
        let columns = ["prompt", &format!("p({old}), %"), &format!("p({new}), %"), "largest logit change"];
        let mut probabilities = Table::new(&columns, 1);
        let mut words = Table::new(&["prompt", "before", "after"], 3);
        let list = |next: &NextToken| {
            let word =
                |c: &CandidateToken| format!("{} {}", tokenizer.token_text(c.id).trim(), percent(c.probability, 1));
            next.top.iter().map(word).collect::<Vec<_>>().join(", ")
        };
        for EditComparison { prompt, before, after, largest_change, .. } in compared {
            let probability = |c: &CandidateToken| percent(c.probability, 3);
            probabilities.add_row([
                prompt.clone(),
                arrow(probability(&before.old), probability(&after.old)),
                arrow(probability(&before.new), probability(&after.new)),
                format!("{largest_change:.3}"),
            ]);
            words.add_row([prompt.clone(), list(before), list(after)]);
        }
        let mut by_sense = Table::new(&["sense", &format!("C . E[{old}]"), &format!("C . E[{new}]")], 1);
        for (sense, (before, after)) in senses.iter().enumerate() {
            let cell =
                |value: fn(&SenseLogits) -> f64| arrow(format!("{:.2}", value(before)), format!("{:.2}", value(after)));
            by_sense.add_row([sense.to_string(), cell(|s| s.old), cell(|s| s.new)]);
        }
        format!(
            "{word} predicts {new} instead of {old}.\n\n{probabilities}\n\
             The most probable next words (%).\n\n{words}\n\
             Contribution of each sense of {word} to the logits, at weight 1.\n\n{by_sense}"
        )
    }

    /// The probabilities as bars, one group per prompt.
    fn chart(&self, compared: &[EditComparison]) -> Chart {
        type Probability = fn(&EditComparison) -> f64;
        let (old, new) = (self.old.trim(), self.new.trim());
        let bars: [(String, usize, Probability); 4] = [
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
            compared.iter().map(|c| charts::shorten(&c.prompt, max_label_characters(compared.len()))).collect();
        let panel = Panel {
            title: "probability of the next word (%)".to_owned(),
            x: Axis::from_names("", &names),
            curves,
            range: AxisRange::FromZero,
        };
        Chart { legend, rows: vec![PanelRow { height: 400, panels: vec![panel] }] }
    }
}
