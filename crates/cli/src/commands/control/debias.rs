//! The method `debias`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use charts::{Axis, AxisRange, Chart, Curve, LegendEntry, Panel, PanelRow, Style};
use clap::Args;
use evals::Tokenizer;
use evals::control::{
    DebiasFit, GenderLogRatio, SenseTrial, bias, debias_edits, find_factor, gender_log_ratio, project_out,
};
use model::LanguageModel;
use serde_json::{Value, json};

use super::report::{ControlReport, ReportArgs, save_edits};
use super::word_lists;
use crate::args::model::ModelArgs;
use crate::output::progress::LogProgress;
use crate::output::table::Table;

/// Reduce gender bias in next-word predictions after occupation nouns
///
/// On training prompts, selects the sense of the occupations that causes most of the bias, and a
/// factor for it. On test prompts, reports the bias of the original model, with the factor, with
/// the sense removed, and with the direction E[she] - E[he] projected out of the embeddings of the
/// occupations. The bias is the mean of max(p(he) / p(she), p(she) / p(he)).
///
/// Example: backpack control debias --model runs/quickstart-model --save-edit runs/debias.json
#[derive(Debug, Args)]
pub(super) struct Debias {
    #[command(flatten)]
    model: ModelArgs,
    /// File of occupations, one per line [default: a built-in list of 57]
    #[arg(long, value_name = "FILE")]
    occupations: Option<PathBuf>,
    /// File of training prompts, one per line, with {} in place of the occupation [default: a
    /// built-in list of 8]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// File of test prompts, in the same format [default: another built-in list of 8]
    #[arg(long, value_name = "FILE")]
    test_prompts: Option<PathBuf>,
    /// Write the selected factor as sense edits, for --edit of other commands
    #[arg(long, value_name = "FILE")]
    save_edit: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Number of intervals of a curve over the factor.
const CURVE_INTERVALS: u32 = 50;

/// The occupations of the list.
struct Occupations {
    /// Occupations of one token, with their ids.
    words: Vec<(String, i64)>,
    /// Occupations of several tokens.
    skipped: Vec<String>,
}

/// The selected sense and factor, and the log ratios by occupation and prompt.
struct DebiasResult {
    fit: DebiasFit,
    /// Log ratios on the training prompts.
    training: Vec<Vec<GenderLogRatio>>,
    /// Log ratios on the test prompts.
    test: Vec<Vec<GenderLogRatio>>,
    /// Log ratios on the test prompts after the projection.
    projected: Vec<Vec<GenderLogRatio>>,
}

/// The biases on a set of prompts.
struct Biases {
    original: f64,
    /// The bias with the selected factor.
    fitted: f64,
    /// The bias with the sense removed (factor 0).
    removed: f64,
    /// The bias of the model with projected embeddings; `None` for the training prompts.
    projected: Option<f64>,
}

impl Debias {
    /// Fits the factor and writes the report.
    pub(super) fn run(self) -> Result<()> {
        let output_dir = self.report.output_dir()?;
        let listed = word_lists::read_lines(self.occupations.as_deref(), word_lists::OCCUPATIONS)?;
        let training_prompts = templates(self.prompts.as_deref(), word_lists::TRAINING_PROMPTS)?;
        let test_prompts = templates(self.test_prompts.as_deref(), word_lists::TEST_PROMPTS)?;
        let model = self.model.load_backpack()?;
        let tokenizer = self.model.tokenizer(&model)?;
        let pair = [word_lists::word_id("he", &tokenizer, &model)?, word_lists::word_id("she", &tokenizer, &model)?];
        let occupations = Occupations::new(listed, &tokenizer, &model)?;

        let measure = |model: &LanguageModel, templates: &[String], stage: &str| {
            let mut progress = LogProgress::new();
            let measure_word = |(number, (word, id)): (usize, &(String, i64))| {
                progress.log(|| format!("{stage}: {number} of {} occupations", occupations.words.len()));
                let prompt = |template: &String| {
                    let text = template.replace("{}", word);
                    gender_log_ratio(model, &tokenizer.encode(&text)?, *id, pair)
                        .with_context(|| format!("cannot evaluate the prompt \"{text}\""))
                };
                templates.iter().map(prompt).collect()
            };
            occupations.words.iter().enumerate().map(measure_word).collect::<Result<Vec<Vec<GenderLogRatio>>>>()
        };
        let ids: Vec<i64> = occupations.words.iter().map(|(_, id)| *id).collect();
        let training = measure(&model, &training_prompts, "training prompts")?;
        let test = measure(&model, &test_prompts, "test prompts")?;
        let baseline = project_out(&model, &ids, pair)?;
        let projected = measure(&baseline, &test_prompts, "test prompts after projection")?;
        let fit = find_factor(&training.concat())?;
        if let Some(path) = &self.save_edit {
            save_edits(&debias_edits(&ids, fit.sense, fit.factor), path)?;
        }
        let result = DebiasResult { fit, training, test, projected };
        let report = ControlReport {
            json: result.json(&occupations),
            tables: result.tables(&occupations),
            chart: result.chart(),
            texts: Vec::new(),
        };
        self.report.write(output_dir, &report)
    }
}

/// Reads the prompts, which contain ` {}` in place of the occupation.
///
/// # Errors
/// If the file cannot be read or has no lines, or if a prompt has no `{}` or no space before it.
/// The error names the file or the prompt.
fn templates(file: Option<&Path>, built_in: &str) -> Result<Vec<String>> {
    let templates = word_lists::read_lines(file, built_in)?;
    for template in &templates {
        ensure!(
            template.contains("{}"),
            "the prompt \"{template}\" has no {{}}: write {{}} in place of the occupation, as in \"My {{}} said that\""
        );
        ensure!(
            template.split("{}").count() == template.split(" {}").count(),
            "the prompt \"{template}\" has no space before its {{}}: an occupation is one token with a leading space"
        );
    }
    Ok(templates)
}

impl Occupations {
    /// Looks up the tokens of the words.
    ///
    /// # Errors
    /// If none of the words is one token.
    fn new(listed: Vec<String>, tokenizer: &Tokenizer, model: &LanguageModel) -> Result<Self> {
        let (mut words, mut skipped) = (Vec::new(), Vec::new());
        for word in listed {
            match tokenizer.word_id(&word) {
                Ok(id) => {
                    word_lists::check_token(&word, id, model)?;
                    words.push((word, id));
                }
                Err(_) => skipped.push(word),
            }
        }
        ensure!(
            !words.is_empty(),
            "none of the {} occupations is one token with a leading space: give other words",
            skipped.len()
        );
        Ok(Occupations { words, skipped })
    }
}

impl DebiasResult {
    fn biases(&self, prompts: &[GenderLogRatio], projected: Option<&[GenderLogRatio]>) -> Biases {
        let (sense, factor) = (self.fit.sense, self.fit.factor);
        let at = |factor| bias(prompts.iter().map(|ratio| ratio.scaled(sense, factor)));
        let projected = projected.map(|prompts| bias(prompts.iter().map(|ratio| ratio.log_ratio)));
        Biases { original: at(1.0), fitted: at(factor), removed: at(0.0), projected }
    }

    fn training_biases(&self) -> Biases {
        self.biases(&self.training.concat(), None)
    }

    fn test_biases(&self) -> Biases {
        self.biases(&self.test.concat(), Some(&self.projected.concat()))
    }

    /// For the test prompts of one occupation: the geometric mean of p(he) / p(she), and the
    /// biases.
    fn occupation_biases(&self, number: usize) -> (f64, Biases) {
        let (test, projected) = (&self.test[number], &self.projected[number]);
        let ratio = test.iter().map(|ratio| ratio.log_ratio).sum::<f64>() / test.len() as f64;
        (ratio.exp(), self.biases(test, Some(projected)))
    }

    fn json(&self, occupations: &Occupations) -> Value {
        let biases = |b: &Biases| json!({ "plain": b.original, "found": b.fitted, "removed": b.removed, "projected": b.projected });
        let occupation = |(number, (word, _)): (usize, &(String, i64))| {
            let (ratio, b) = self.occupation_biases(number);
            json!({ "occupation": word, "he_by_she": ratio, "bias": biases(&b) })
        };
        let trial = |t: &SenseTrial| json!({ "sense": t.sense, "removed": t.removed, "best_factor": t.best_factor, "lowest": t.lowest });
        json!({
            "recipe": "debias",
            "sense": self.fit.sense,
            "factor": self.fit.factor,
            "training": biases(&self.training_biases()),
            "test": biases(&self.test_biases()),
            "senses": self.fit.trials.iter().map(trial).collect::<Vec<_>>(),
            "occupations": occupations.words.iter().enumerate().map(occupation).collect::<Vec<_>>(),
            "skipped": occupations.skipped,
        })
    }

    fn tables(&self, occupations: &Occupations) -> String {
        let number = |x: f64| format!("{x:.3}");
        let DebiasFit { sense, factor, .. } = self.fit;
        let fitted = format!("factor {factor:.3}");
        let cells = |b: &Biases| {
            [number(b.original), number(b.fitted), number(b.removed), b.projected.map_or_else(String::new, number)]
        };
        let add_row = |table: &mut Table, name: &str, numbers: Vec<String>| {
            table.add_row([name.to_owned()].into_iter().chain(numbers));
        };

        let mut overall = Table::new(&["bias", "original", &fitted, "removed", "projected"], 1);
        add_row(&mut overall, "training prompts", cells(&self.training_biases()).into());
        add_row(&mut overall, "test prompts", cells(&self.test_biases()).into());
        let mut senses = Table::new(&["sense", "removed", "lowest", "at factor"], 1);
        for t in &self.fit.trials {
            add_row(
                &mut senses,
                &t.sense.to_string(),
                vec![number(t.removed), number(t.lowest), number(t.best_factor)],
            );
        }
        let mut words = Table::new(&["occupation", "he/she", "original", &fitted, "removed", "projected"], 1);
        let mut all: Vec<_> =
            occupations.words.iter().enumerate().map(|(i, (word, _))| (word, self.occupation_biases(i))).collect();
        all.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        for (word, (ratio, biases)) in all {
            add_row(&mut words, word, [number(ratio)].into_iter().chain(cells(&biases)).collect());
        }
        let mut text = format!(
            "Sense {sense} of {} occupations, multiplied by {factor:.3}.\n\n{overall}\n\
             Bias on the training prompts when only one sense is changed.\n\n{senses}\n\
             Bias on the test prompts by occupation.\n\n{words}",
            occupations.words.len()
        );
        if !occupations.skipped.is_empty() {
            let (count, list) = (occupations.skipped.len(), occupations.skipped.join(", "));
            text += &format!("\nSkipped, because they are not one token: {count} ({list}).\n");
        }
        text
    }

    /// The bias as a function of the factor, and the lowest bias of each sense.
    fn chart(&self) -> Chart {
        let (sense, factor) = (self.fit.sense, self.fit.factor);
        let curve = |prompts: &[Vec<GenderLogRatio>], style| {
            let prompts = prompts.concat();
            let at = |factor: f64| (factor, bias(prompts.iter().map(|ratio| ratio.scaled(sense, factor))));
            Curve {
                points: (0..=CURVE_INTERVALS).map(|i| at(f64::from(i) / f64::from(CURVE_INTERVALS))).collect(),
                style,
            }
        };
        let test = self.test_biases();
        let projected = test.projected.map(|bias| Curve { points: vec![(0.0, bias)], style: Style::HorizontalLine(0) });
        let curves = [
            curve(&self.training, Style::Faint(0)),
            curve(&self.test, Style::Line(1)),
            Curve { points: vec![(factor, test.fitted)], style: Style::Markers(1) },
        ];
        let ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0].map(|x| (x, format!("{x}"))).to_vec();
        let by_factor = Panel {
            title: format!("bias by factor of sense {sense}"),
            x: Axis { label: "factor".to_owned(), min: 0.0, max: 1.0, ticks },
            curves: projected.into_iter().chain(curves).collect(),
            range: AxisRange::Fit,
        };
        let bars = Style::Bars { color: 2, index: 0, count: 1 };
        let trials = &self.fit.trials;
        let names: Vec<String> = trials.iter().map(|trial| trial.sense.to_string()).collect();
        let by_sense = Panel {
            title: "lowest training bias when one sense is changed".to_owned(),
            x: Axis::from_names("sense", &names),
            curves: vec![
                Curve { points: trials.iter().map(|t| (t.sense as f64, t.lowest)).collect(), style: bars },
                Curve { points: vec![(0.0, self.training_biases().original)], style: Style::HorizontalLine(1) },
            ],
            range: AxisRange::FromZero,
        };
        let entry = |name: &str, style| LegendEntry { name: name.to_owned(), style };
        let legend = vec![
            entry("training prompts", Style::Faint(0)),
            entry("test prompts", Style::Line(1)),
            entry("test prompts at the selected factor", Style::Markers(1)),
            entry("test prompts after projection", Style::HorizontalLine(0)),
            entry("training prompts, original model", Style::HorizontalLine(1)),
        ];
        Chart { legend, rows: vec![PanelRow { height: 380, panels: vec![by_factor, by_sense] }] }
    }
}
