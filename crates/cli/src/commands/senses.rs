use std::io::{self, Write};

use anyhow::Result;
use clap::Args;
use evals::{ScoredToken, SenseView, TextAnalysis, Tokenizer};
use model::LanguageModel;
use serde_json::{Value, json};
use tch::Kind;

use crate::args::model::{ModelArgs, at_least_one};

/// Look into a word's senses, or at what made a text's predictions
///
/// For WORD: what each of its senses raises and lowers, and with --text how that text uses it. With --compare: how
/// alike the senses of two words are. With --text alone: which senses of which earlier words made the prediction at
/// each position; they sum to the logit.
/// Example: backpack senses --model runs/quickstart-model time --top 5
#[derive(Debug, Args)]
pub(crate) struct SensesCommand {
    #[command(flatten)]
    compute: ModelArgs,
    /// A word that is one token with a space before it
    #[arg(required_unless_present_any = ["token", "compare", "text"], conflicts_with_all = ["token", "compare"])]
    word: Option<String>,
    /// A token's id instead of a word; needs no tokenizer
    #[arg(long, value_name = "ID", conflicts_with = "compare")]
    token: Option<i64>,
    /// Two words to compare
    #[arg(long, num_args = 2, value_names = ["WORD", "WORD"], conflicts_with = "text")]
    compare: Option<Vec<String>>,
    /// A text to look into
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// With --text alone: explain this word at each position [default: the most probable]
    #[arg(long, value_name = "WORD", requires = "text", conflicts_with_all = ["word", "token"])]
    next: Option<String>,
    /// Words or contributions to show
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = at_least_one::<usize>)]
    top: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl SensesCommand {
    pub(crate) fn run(self) -> Result<()> {
        let model = self.compute.load_with_sense_table()?;
        let needs_tokenizer = self.word.is_some() || self.text.is_some() || self.compare.is_some();
        let tokenizer = if needs_tokenizer {
            Some(self.compute.tokenizer(&model)?)
        } else {
            self.compute.tokenizer_for_names(&model)?
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
        let reading = ids.map(|ids| TextAnalysis::new(&model, &ids)).transpose()?;
        let mut out = io::stdout().lock();
        let answer = match (compared.as_slice(), word, &reading) {
            ([first, second], _, _) => compare(&model, [*first, *second], &names)?,
            (_, Some(token), reading) => of_word(&model, token, reading.as_ref(), self.top, &names)?,
            (_, None, Some(reading)) => explain(reading, next, self.top, &names)?,
            (_, None, None) => unreachable!("clap asks for a word, two or a text"),
        };
        if self.json {
            writeln!(out, "{answer}")?
        } else {
            print(&answer, &mut out)?
        }
        Ok(())
    }
}

/// What ids are called.
struct TokenNames<'t>(Option<&'t Tokenizer>);

impl TokenNames<'_> {
    /// A token's text, spaces and all; its id where there is no tokenizer.
    fn of(&self, id: i64) -> String {
        self.0.and_then(|tokenizer| tokenizer.decode(&[id]).ok()).unwrap_or_else(|| id.to_string())
    }

    fn scored(&self, words: &[ScoredToken]) -> Vec<Value> {
        words.iter().map(|w| json!({ "token": w.id, "word": self.of(w.id), "logit": w.logit })).collect()
    }
}

fn of_word(
    model: &LanguageModel,
    token: i64,
    text: Option<&TextAnalysis<'_>>,
    top: usize,
    names: &TokenNames<'_>,
) -> Result<Value> {
    let views = evals::sense_views(model, token, top)?;
    let usage = match text {
        Some(reading) => Some(reading.usage(token).ok_or_else(|| {
            anyhow::anyhow!(
                "the text has no \"{}\" with a space before it: give a text that uses the word",
                names.of(token).trim()
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
    Ok(json!({ "token": token, "word": names.of(token), "senses": views.iter().map(sense).collect::<Vec<_>>() }))
}

fn compare(model: &LanguageModel, tokens: [i64; 2], names: &TokenNames<'_>) -> Result<Value> {
    let cosines = evals::sense_cosines(model, tokens[0], tokens[1])?;
    let words = tokens.map(|token| names.of(token));
    Ok(json!({ "tokens": tokens, "words": words, "cosines": cosines }))
}

/// Each position with the word it predicts and the largest contributions to that word's logit; `others` is the sum
/// of the rest.
fn explain(reading: &TextAnalysis<'_>, next: Option<i64>, top: usize, names: &TokenNames<'_>) -> Result<Value> {
    let position = |position: usize| -> Result<Value> {
        let predicted = match next {
            Some(id) => reading.candidate(position, id)?,
            None => reading.next_tokens(position, 1)?[0],
        };
        let parts = reading.contributions(position, predicted.id)?;
        let num_senses = parts.size()[1];
        let flat = parts.flatten(0, 1);
        let (_, order) = flat.abs().topk(top.min(flat.numel()) as i64, 0, true, true);
        let order: Vec<i64> = Vec::try_from(order)?;
        let mut others = flat.sum(Kind::Double).double_value(&[]);
        let contributions: Vec<Value> = order
            .iter()
            .map(|&place| {
                let (from, sense) = (place / num_senses, place % num_senses);
                let contribution = flat.double_value(&[place]);
                others -= contribution;
                let weight = reading.weights.double_value(&[sense, position as i64, from]);
                let token = reading.ids[from as usize];
                json!({ "position": from, "token": token, "word": names.of(token), "sense": sense,
                        "weight": weight, "contribution": contribution })
            })
            .collect();
        Ok(json!({
            "position": position,
            "token": reading.ids[position],
            "word": names.of(reading.ids[position]),
            "next": { "token": predicted.id, "word": names.of(predicted.id), "logit": predicted.logit,
                      "probability": predicted.probability },
            "contributions": contributions,
            "rest": others,
        }))
    };
    Ok(json!({ "positions": (0..reading.ids.len()).map(position).collect::<Result<Vec<_>>>()? }))
}

/// The answer as a person reads it.
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
                "{:>3} {}  ->  {} ({:.1}%), logit {:.2} =",
                number(&position["position"]),
                text(&position["word"]),
                text(&next["word"]),
                100.0 * number(&next["probability"]),
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
            writeln!(out, "      {:+.2}  all others", number(&position["rest"]))?;
        }
        return Ok(());
    }
    if let Some(rows) = answer["cosines"].as_array() {
        let pair = list(&answer["words"]);
        writeln!(out, "cosines of the senses of {} (rows) and {} (columns)", text(&pair[0]), text(&pair[1]))?;
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
