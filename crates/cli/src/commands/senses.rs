//! The command `senses`.

use std::io::{self, Write};

use anyhow::Result;
use clap::Args;
use evals::{ScoredToken, SenseView, TextAnalysis, Tokenizer};
use model::LanguageModel;
use serde_json::{Value, json};
use tch::Kind;

use crate::args::model::{ModelArgs, at_least_one};
use crate::output::format::percent;

/// Show the senses of a word, or the contributions of senses to predictions
///
/// With WORD: the words whose logits each sense raises and lowers most; with --text, also the mean
/// weight of each sense in that text. With --compare: the cosines between the senses of two words.
/// With --text alone: for each position, the senses of the words so far that contribute most to
/// the logit of the predicted word. All contributions sum to the logit (with --precision bf16, up
/// to its rounding).
///
/// Example: backpack senses --model runs/quickstart-model time --top 5
#[derive(Debug, Args)]
pub(crate) struct SensesCommand {
    #[command(flatten)]
    model: ModelArgs,
    /// Word; must be a single token with a leading space
    #[arg(required_unless_present_any = ["token", "compare", "text"], conflicts_with_all = ["token", "compare"])]
    word: Option<String>,
    /// Token id in place of WORD; needs no tokenizer
    #[arg(long, value_name = "ID", conflicts_with = "compare")]
    token: Option<i64>,
    /// Compare the senses of two words
    #[arg(long, num_args = 2, value_names = ["WORD", "WORD"], conflicts_with = "text")]
    compare: Option<Vec<String>>,
    /// Text to analyze
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// With --text alone: explain the logit of this word at each position [default: the most
    /// probable word]
    #[arg(long, value_name = "WORD", requires = "text", conflicts_with_all = ["word", "token"])]
    next: Option<String>,
    /// Number of words or contributions to show
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one::<usize>)]
    top: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl SensesCommand {
    /// Computes the answer and prints it.
    pub(crate) fn run(self) -> Result<()> {
        let model = self.model.load_with_sense_table()?;
        let needs_tokenizer = self.word.is_some() || self.text.is_some() || self.compare.is_some();
        let tokenizer = if needs_tokenizer {
            Some(self.model.tokenizer(&model)?)
        } else {
            self.model.tokenizer_for_names(&model)?
        };
        let tokenizer = tokenizer.as_ref();
        let id_of = |word: &String| tokenizer.map_or(Ok(0), |tokenizer| tokenizer.word_id(word));
        let compared = self.compare.iter().flatten().map(id_of).collect::<Result<Vec<i64>>>()?;
        let word = self.word.as_ref().map(id_of).transpose()?.or(self.token);
        let next = self.next.as_ref().map(id_of).transpose()?;
        let ids = match (&self.text, tokenizer) {
            (Some(text), Some(tokenizer)) => Some(tokenizer.encode(text)?),
            _ => None,
        };
        let names = TokenNames(tokenizer);
        let analysis = ids.map(|ids| TextAnalysis::new(&model, &ids)).transpose()?;
        let mut out = io::stdout().lock();
        let answer = match (compared.as_slice(), word, &analysis) {
            ([first, second], _, _) => compare(&model, [*first, *second], &names)?,
            (_, Some(token), analysis) => describe_word(&model, token, analysis.as_ref(), self.top, &names)?,
            (_, None, Some(analysis)) => explain(analysis, next, self.top, &names)?,
            (_, None, None) => unreachable!("clap requires a word, two words or a text"),
        };
        if self.json {
            writeln!(out, "{answer}")?
        } else {
            print(&answer, &mut out)?
        }
        Ok(())
    }
}

/// Displays tokens.
struct TokenNames<'t>(Option<&'t Tokenizer>);

impl TokenNames<'_> {
    /// The text of a token with its spaces, or its id if there is no tokenizer.
    fn name(&self, id: i64) -> String {
        self.0.map_or_else(|| id.to_string(), |tokenizer| tokenizer.token_text(id))
    }

    /// Tokens with their logits.
    fn scored(&self, words: &[ScoredToken]) -> Vec<Value> {
        words.iter().map(|w| json!({ "token": w.id, "word": self.name(w.id), "logit": w.logit })).collect()
    }
}

/// The senses of a word, and their mean weights in the text.
fn describe_word(
    model: &LanguageModel,
    token: i64,
    text: Option<&TextAnalysis<'_>>,
    top: usize,
    names: &TokenNames<'_>,
) -> Result<Value> {
    let views = evals::sense_views(model, token, top)?;
    let usage = match text {
        Some(analysis) => Some(analysis.usage(token).ok_or_else(|| {
            anyhow::anyhow!(
                "the text does not contain \"{}\" with a leading space: give a text that uses the word",
                names.name(token).trim()
            )
        })?),
        None => None,
    };
    let sense = |view: &SenseView| {
        let mut row = json!({
            "sense": view.sense,
            "norm": view.norm,
            "raises": names.scored(&view.raises),
            "lowers": names.scored(&view.lowers),
        });
        if let Some(usage) = &usage {
            row["weight"] = usage[view.sense as usize].into();
        }
        row
    };
    Ok(json!({ "token": token, "word": names.name(token), "senses": views.iter().map(sense).collect::<Vec<_>>() }))
}

/// The cosines between the senses of two tokens.
fn compare(model: &LanguageModel, tokens: [i64; 2], names: &TokenNames<'_>) -> Result<Value> {
    let cosines = evals::sense_cosines(model, tokens[0], tokens[1])?;
    let words = tokens.map(|token| names.name(token));
    Ok(json!({ "tokens": tokens, "words": words, "cosines": cosines }))
}

/// For each position the predicted word and the largest contributions to its logit; `rest` is the
/// sum of the other contributions.
fn explain(analysis: &TextAnalysis<'_>, next: Option<i64>, top: usize, names: &TokenNames<'_>) -> Result<Value> {
    let position = |position: usize| -> Result<Value> {
        let predicted = match next {
            Some(id) => analysis.candidate(position, id)?,
            None => analysis.next_tokens(position, 1)?[0],
        };
        let parts = analysis.contributions(position, predicted.id)?;
        let num_senses = parts.size()[1];
        let flat = parts.flatten(0, 1);
        let (_, order) = flat.abs().topk(top.min(flat.numel()) as i64, 0, true, true);
        let order: Vec<i64> = Vec::try_from(order)?;
        let mut rest = flat.sum(Kind::Double).double_value(&[]);
        let contributions: Vec<Value> = order
            .iter()
            .map(|&index| {
                let (from, sense) = (index / num_senses, index % num_senses);
                let contribution = flat.double_value(&[index]);
                rest -= contribution;
                let weight = analysis.weights.double_value(&[sense, position as i64, from]);
                let token = analysis.ids[from as usize];
                json!({ "position": from, "token": token, "word": names.name(token), "sense": sense,
                        "weight": weight, "contribution": contribution })
            })
            .collect();
        Ok(json!({
            "position": position,
            "token": analysis.ids[position],
            "word": names.name(analysis.ids[position]),
            "next": { "token": predicted.id, "word": names.name(predicted.id), "logit": predicted.logit,
                      "probability": predicted.probability },
            "contributions": contributions,
            "rest": rest,
        }))
    };
    Ok(json!({ "positions": (0..analysis.ids.len()).map(position).collect::<Result<Vec<_>>>()? }))
}

/// Prints the answer as text.
fn print(answer: &Value, out: &mut impl Write) -> io::Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().trim().to_owned();
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let words = |value: &Value| list(value).iter().map(|w| text(&w["word"])).collect::<Vec<_>>().join(", ");
    if let Some(positions) = answer["positions"].as_array() {
        for position in positions {
            let next = &position["next"];
            writeln!(
                out,
                "{:>3} {}  ->  {} ({}%), logit {:.2} =",
                number(&position["position"]),
                text(&position["word"]),
                text(&next["word"]),
                percent(number(&next["probability"]), 1),
                number(&next["logit"])
            )?;
            for part in list(&position["contributions"]) {
                writeln!(
                    out,
                    "      {:+.2}  sense {} of {} at {}, weight {:.3}",
                    number(&part["contribution"]),
                    part["sense"],
                    text(&part["word"]),
                    part["position"],
                    number(&part["weight"])
                )?;
            }
            writeln!(out, "      {:+.2}  rest", number(&position["rest"]))?;
        }
        return Ok(());
    }
    if let Some(rows) = answer["cosines"].as_array() {
        let pair = list(&answer["words"]);
        writeln!(out, "cosines between the senses of {} (rows) and {} (columns)", text(&pair[0]), text(&pair[1]))?;
        let columns: Vec<String> = (0..rows.len()).map(|column| format!("{column:>6}")).collect();
        writeln!(out, "     {}", columns.join(""))?;
        for (row, cosines) in rows.iter().enumerate() {
            let cosines: Vec<String> = list(cosines).iter().map(|c| format!("{:>6.2}", number(c))).collect();
            writeln!(out, "{row:>5}{}", cosines.join(""))?;
        }
        return Ok(());
    }
    writeln!(out, "{} (token {})", text(&answer["word"]), answer["token"])?;
    for sense in list(&answer["senses"]) {
        let weight = sense["weight"].as_f64().map(|w| format!(", weight {w:.3} in the text")).unwrap_or_default();
        writeln!(out, "sense {:>2}, norm {:.2}{weight}", number(&sense["sense"]), number(&sense["norm"]))?;
        writeln!(out, "    raises  {}", words(&sense["raises"]))?;
        writeln!(out, "    lowers  {}", words(&sense["lowers"]))?;
    }
    Ok(())
}
