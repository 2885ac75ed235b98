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

use super::report::{ControlReport, ReportArgs};
use super::word_lists;
use crate::args::model::ModelArgs;
use crate::output::progress::LogProgress;
use crate::output::table::Table;

/// Make the next word after an occupation lean less to "he" or "she"
///
/// Finds the sense of occupations that carries most of the bias, and the factor for it, on training prompts; reports
/// the bias, the mean of the larger of p(he)/p(she) and p(she)/p(he), on other prompts, beside the sense removed and
/// the direction E[she] - E[he] projected out of the occupations' embeddings.
/// Example: backpack control debias --model runs/quickstart-model --save-edit runs/debias.json
#[derive(Debug, Args)]
pub(super) struct Debias {
    #[command(flatten)]
    compute: ModelArgs,
    /// Occupations, one a line [default: 57 of the project's]
    #[arg(long, value_name = "FILE")]
    occupations: Option<PathBuf>,
    /// Training prompts, one a line, with {} for the occupation [default: 8 of the project's]
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Prompts to report on, the same way [default: 8 others of the project's]
    #[arg(long, value_name = "FILE")]
    test_prompts: Option<PathBuf>,
    /// Write the found factor as edits of senses, for --edit of any command
    #[arg(long, value_name = "FILE")]
    save_edit: Option<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

/// Points of a curve over the factor.
const CURVE_POINTS: u32 = 50;

/// The words that are one token, and how many were not.
struct Occupations {
    words: Vec<(String, i64)>,
    skipped: Vec<String>,
}

/// What became of the bias.
struct DebiasResult {
    found: DebiasFit,
    /// Of each occupation, those of its prompts.
    training: Vec<Vec<GenderLogRatio>>,
    test: Vec<Vec<GenderLogRatio>>,
    /// The test prompts' under the baseline.
    projected: Vec<Vec<GenderLogRatio>>,
}

/// Biases of some prompts.
struct Biases {
    plain: f64,
    found: f64,
    removed: f64,
    projected: Option<f64>,
}

impl Debias {
    pub(super) fn run(self) -> Result<()> {
        let folder = self.report.folder()?;
        let listed = word_lists::lines_of(self.occupations.as_deref(), word_lists::OCCUPATIONS)?;
        let for_training = templates(self.prompts.as_deref(), word_lists::TRAINING_PROMPTS)?;
        let for_test = templates(self.test_prompts.as_deref(), word_lists::TEST_PROMPTS)?;
        let model = super::load(&self.compute)?;
        let tokenizer = self.compute.tokenizer(&model)?;
        let pair = [word_lists::word("he", &tokenizer, &model)?, word_lists::word("she", &tokenizer, &model)?];
        let occupations = Occupations::of(listed, &tokenizer, &model)?;

        let read = |model: &LanguageModel, templates: &[String], what: &str| {
            let mut progress = LogProgress::new();
            let of_word = |(number, (word, id)): (usize, &(String, i64))| {
                progress.say(|| format!("{what}: {number} of {} occupations", occupations.words.len()));
                let prompt = |template: &String| {
                    let text = template.replace("{}", word);
                    gender_log_ratio(model, &tokenizer.encode(&text)?, *id, pair)
                        .with_context(|| format!("prompt \"{text}\""))
                };
                templates.iter().map(prompt).collect()
            };
            occupations.words.iter().enumerate().map(of_word).collect::<Result<Vec<Vec<GenderLogRatio>>>>()
        };
        let ids: Vec<i64> = occupations.words.iter().map(|(_, id)| *id).collect();
        let training = read(&model, &for_training, "training prompts")?;
        let test = read(&model, &for_test, "test prompts")?;
        let baseline = project_out(&model, &ids, pair)?;
        let projected = read(&baseline, &for_test, "test prompts after projection")?;
        let found = find_factor(&training.concat())?;
        if let Some(path) = &self.save_edit {
            super::save_edits(&debias_edits(&ids, found.sense, found.factor), path)?;
        }
        let outcome = DebiasResult { found, training, test, projected };
        let report = ControlReport {
            json: outcome.json(&occupations),
            tables: outcome.tables(&occupations),
            chart: outcome.chart(),
            texts: Vec::new(),
        };
        self.report.write(folder, &report)
    }
}

/// Prompts with a place for the occupation.
///
/// # Errors
/// Naming the one that has none, or none that a word of one token could stand at.
fn templates(file: Option<&Path>, shipped: &str) -> Result<Vec<String>> {
    let templates = word_lists::lines_of(file, shipped)?;
    for template in &templates {
        ensure!(
            template.contains("{}"),
            "the prompt \"{template}\" has no {{}}: write {{}} where the occupation stands, as in \"My {{}} said that\""
        );
        ensure!(
            template.split("{}").count() == template.split(" {}").count(),
            "the prompt \"{template}\" has no space before its {{}}: an occupation is one token with the space before it"
        );
    }
    Ok(templates)
}

impl Occupations {
    fn of(listed: Vec<String>, tokenizer: &Tokenizer, model: &LanguageModel) -> Result<Self> {
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
            "none of the {} occupations is one token, as senses belong to tokens: give others",
            skipped.len()
        );
        Ok(Occupations { words, skipped })
    }
}

impl DebiasResult {
    fn biases(&self, prompts: &[GenderLogRatio], projected: Option<&[GenderLogRatio]>) -> Biases {
        let (sense, factor) = (self.found.sense, self.found.factor);
        let at = |factor| bias(prompts.iter().map(|leaning| leaning.scaled(sense, factor)));
        let projected = projected.map(|prompts| bias(prompts.iter().map(|leaning| leaning.log_ratio)));
        Biases { plain: at(1.0), found: at(factor), removed: at(0.0), projected }
    }

    fn training_biases(&self) -> Biases {
        self.biases(&self.training.concat(), None)
    }

    fn test_biases(&self) -> Biases {
        self.biases(&self.test.concat(), Some(&self.projected.concat()))
    }

    /// Of an occupation's test prompts: the geometric mean of p(he) / p(she), and the biases.
    fn of_occupation(&self, number: usize) -> (f64, Biases) {
        let (test, projected) = (&self.test[number], &self.projected[number]);
        let ratio = test.iter().map(|leaning| leaning.log_ratio).sum::<f64>() / test.len() as f64;
        (ratio.exp(), self.biases(test, Some(projected)))
    }

    fn json(&self, occupations: &Occupations) -> Value {
        let biases =
            |b: &Biases| json!({ "plain": b.plain, "found": b.found, "removed": b.removed, "projected": b.projected });
        let occupation = |(number, (word, _)): (usize, &(String, i64))| {
            let (ratio, b) = self.of_occupation(number);
            json!({ "occupation": word, "he_by_she": ratio, "bias": biases(&b) })
        };
        let trial = |t: &SenseTrial| json!({ "sense": t.sense, "removed": t.removed, "best_factor": t.best_factor, "lowest": t.lowest });
        json!({
            "recipe": "debias",
            "sense": self.found.sense,
            "factor": self.found.factor,
            "training": biases(&self.training_biases()),
            "test": biases(&self.test_biases()),
            "senses": self.found.trials.iter().map(trial).collect::<Vec<_>>(),
            "occupations": occupations.words.iter().enumerate().map(occupation).collect::<Vec<_>>(),
            "skipped": occupations.skipped,
        })
    }

    fn tables(&self, occupations: &Occupations) -> String {
        let number = |x: f64| format!("{x:.3}");
        let DebiasFit { sense, factor, .. } = self.found;
        let found = format!("factor {factor:.3}");
        let cells = |b: &Biases| {
            [number(b.plain), number(b.found), number(b.removed), b.projected.map_or_else(String::new, number)]
        };
        let row = |table: &mut Table, name: &str, figures: Vec<String>| {
            table.row([name.to_owned()].into_iter().chain(figures));
        };

        let mut whole = Table::of_figures(&["bias", "as it is", &found, "removed", "projected"]);
        row(&mut whole, "training prompts", cells(&self.training_biases()).into());
        row(&mut whole, "test prompts", cells(&self.test_biases()).into());
        let mut senses = Table::of_figures(&["sense", "removed", "lowest", "at factor"]);
        for t in &self.found.trials {
            row(&mut senses, &t.sense.to_string(), vec![number(t.removed), number(t.lowest), number(t.best_factor)]);
        }
        let mut words = Table::of_figures(&["occupation", "he/she", "as it is", &found, "removed", "projected"]);
        let mut all: Vec<_> =
            occupations.words.iter().enumerate().map(|(i, (word, _))| (word, self.of_occupation(i))).collect();
        all.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
        for (word, (ratio, biases)) in all {
            row(&mut words, word, [number(ratio)].into_iter().chain(cells(&biases)).collect());
        }
        let mut text = format!(
            "Sense {sense} of {} occupations, multiplied by {factor:.3}.\n\n{whole}\n\
             The bias of the training prompts by each sense alone.\n\n{senses}\n\
             By occupation, on the test prompts.\n\n{words}",
            occupations.words.len()
        );
        if !occupations.skipped.is_empty() {
            let (count, list) = (occupations.skipped.len(), occupations.skipped.join(", "));
            text += &format!("\nSkipped, since they are not one token: {count} ({list}).\n");
        }
        text
    }

    /// The bias over the factor, and what each sense can do.
    fn chart(&self) -> Chart {
        let (sense, factor) = (self.found.sense, self.found.factor);
        let curve = |prompts: &[Vec<GenderLogRatio>], style| {
            let prompts = prompts.concat();
            let at = |factor: f64| (factor, bias(prompts.iter().map(|leaning| leaning.scaled(sense, factor))));
            Curve { points: (0..=CURVE_POINTS).map(|i| at(f64::from(i) / f64::from(CURVE_POINTS))).collect(), style }
        };
        let test = self.test_biases();
        let projected = test.projected.map(|bias| Curve { points: vec![(0.0, bias)], style: Style::HorizontalLine(0) });
        let curves = [
            curve(&self.training, Style::Faint(0)),
            curve(&self.test, Style::Line(1)),
            Curve { points: vec![(factor, test.found)], style: Style::Markers(1) },
        ];
        let ticks = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0].map(|x| (x, format!("{x}"))).to_vec();
        let by_factor = Panel {
            title: format!("bias by the factor of sense {sense}"),
            x: Axis { label: "factor".to_owned(), min: 0.0, max: 1.0, ticks },
            curves: projected.into_iter().chain(curves).collect(),
            range: AxisRange::Fit,
        };
        let bars = Style::Bars { color: 2, index: 0, count: 1 };
        let trials = &self.found.trials;
        let names: Vec<String> = trials.iter().map(|trial| trial.sense.to_string()).collect();
        let by_sense = Panel {
            title: "lowest bias of the training prompts by each sense alone".to_owned(),
            x: Axis::from_names("sense", &names),
            curves: vec![
                Curve { points: trials.iter().map(|t| (t.sense as f64, t.lowest)).collect(), style: bars },
                Curve { points: vec![(0.0, self.training_biases().plain)], style: Style::HorizontalLine(1) },
            ],
            range: AxisRange::FromZero,
        };
        let entry = |name: &str, style| LegendEntry { name: name.to_owned(), style };
        let legend = vec![
            entry("training prompts", Style::Faint(0)),
            entry("test prompts", Style::Line(1)),
            entry("test prompts at the found factor", Style::Markers(1)),
            entry("test prompts after projection", Style::HorizontalLine(0)),
            entry("training prompts as the model is", Style::HorizontalLine(1)),
        ];
        Chart { legend, rows: vec![PanelRow { height: 380, panels: vec![by_factor, by_sense] }] }
    }
}
