//! The JSON format of sense edits, which `--edit` reads and the control recipes write:
//!
//! ```json
//! {"edits": [{"word": "bank", "sense": 3, "op": "scale", "factor": 0.5}]}
//! ```
//!
//! A plain list of edits, such as `{token, sense, factor}`, is accepted too.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use model::{SenseChoice, SenseEdit, SenseOp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::tokenizer::Tokenizer;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EditRow {
    token: Option<i64>,
    word: Option<String>,
    sense: SenseField,
    op: Option<EditOp>,
    factor: Option<f64>,
    vector: Option<Vec<f32>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"sense\" must be an integer or \"all\"")]
enum SenseField {
    One(i64),
    All(All),
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum All {
    All,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum EditOp {
    Scale,
    Zero,
    Add,
    Replace,
}

/// Reads a file of edits. `tokenizer` is called if an edit has a `word`.
///
/// # Errors
/// The file is not JSON, a key is unknown, or a word is not one token; the error names the file and
/// the edit.
pub fn read_edits(path: &Path, tokenizer: impl FnOnce() -> Result<Tokenizer>) -> Result<Vec<SenseEdit>> {
    let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let parse = || {
        let value: Value = serde_json::from_str(&text).context("the file is not JSON")?;
        let has_words = rows(&value)?.iter().any(|row| row.get("word").is_some());
        let tokenizer = if has_words { Some(tokenizer()?) } else { None };
        parse_edits(&value, tokenizer.as_ref())
    };
    parse().with_context(|| format!("invalid edits in {}", path.display()))
}

/// Parses the JSON of edits.
///
/// # Errors
/// A key is unknown, a word is not one token, or there is a word but no tokenizer; the error names
/// the edit, counted from 1.
pub fn parse_edits(value: &Value, tokenizer: Option<&Tokenizer>) -> Result<Vec<SenseEdit>> {
    let edit = |(number, row): (usize, &Value)| {
        let parse = || parse_row(EditRow::deserialize(row)?, tokenizer);
        parse().with_context(|| format!("edit {}", number + 1))
    };
    rows(value)?.iter().enumerate().map(edit).collect()
}

/// Returns the list of edits in either format.
fn rows(value: &Value) -> Result<&Vec<Value>> {
    if let Some(key) = value.as_object().and_then(|object| object.keys().find(|key| *key != "edits")) {
        bail!("unknown key \"{key}\": the format is {{\"edits\": [...]}}");
    }
    let rows = value.get("edits").unwrap_or(value);
    rows.as_array()
        .context("there is no list of edits: the format is {\"edits\": [{\"token\": 5, \"sense\": 0, \"factor\": 2}]}")
}

fn parse_row(row: EditRow, tokenizer: Option<&Tokenizer>) -> Result<SenseEdit> {
    let token = match (row.token, row.word) {
        (Some(token), None) => token,
        (None, Some(word)) => {
            tokenizer.context("there is no tokenizer for \"word\": give the \"token\"")?.word_id(&word)?
        }
        _ => bail!("give either a \"token\" (an id) or a \"word\""),
    };
    let sense = match row.sense {
        SenseField::One(sense) => SenseChoice::One(sense),
        SenseField::All(All::All) => SenseChoice::All,
    };
    let op = row.op.unwrap_or(EditOp::Scale);
    let takes_vector = matches!(op, EditOp::Add | EditOp::Replace);
    ensure!(takes_vector || row.vector.is_none(), "only \"add\" and \"replace\" take a \"vector\"");
    ensure!(!matches!(op, EditOp::Zero) || row.factor.is_none(), "\"zero\" takes no \"factor\"");
    // `factor` is 1 by default.
    let vector = || -> Result<Vec<f32>> {
        let vector = row.vector.context("\"add\" and \"replace\" need a \"vector\" of n_embd numbers")?;
        let factor = row.factor.unwrap_or(1.0) as f32;
        Ok(vector.iter().map(|x| x * factor).collect())
    };
    let op = match op {
        EditOp::Zero => SenseOp::Scale(0.0),
        EditOp::Scale => SenseOp::Scale(row.factor.context("\"scale\" needs a \"factor\"")?),
        EditOp::Add => SenseOp::Add(vector()?),
        EditOp::Replace => SenseOp::Replace(vector()?),
    };
    Ok(SenseEdit { token, sense, op })
}

/// Returns the JSON of edits.
pub fn edits_json(edits: &[SenseEdit]) -> Value {
    // The fewest digits from which the same fp32 number is read.
    let numbers = |vector: &[f32]| -> Vec<f64> {
        vector.iter().map(|x| x.to_string().parse().unwrap_or(f64::from(*x))).collect()
    };
    let row = |edit: &SenseEdit| {
        let sense = match edit.sense {
            SenseChoice::One(sense) => json!(sense),
            SenseChoice::All => json!("all"),
        };
        match &edit.op {
            SenseOp::Scale(factor) => json!({ "token": edit.token, "sense": sense, "op": "scale", "factor": factor }),
            SenseOp::Add(vector) => {
                json!({ "token": edit.token, "sense": sense, "op": "add", "vector": numbers(vector) })
            }
            SenseOp::Replace(vector) => {
                json!({ "token": edit.token, "sense": sense, "op": "replace", "vector": numbers(vector) })
            }
        }
    };
    json!({ "edits": edits.iter().map(row).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Vec<SenseEdit>> {
        parse_edits(&serde_json::from_str(text).unwrap(), None)
    }

    #[test]
    fn both_formats_are_read_and_written_edits_are_read_back() {
        let edit = |token, sense, op| SenseEdit { token, sense, op };
        let plain_list = parse(r#"[{"token": 82, "sense": 3, "factor": 3.0}]"#).unwrap();
        assert_eq!(plain_list, [edit(82, SenseChoice::One(3), SenseOp::Scale(3.0))]);
        let all = parse(
            r#"{"edits": [{"token": 1, "sense": "all", "op": "zero"},
                {"token": 2, "sense": 0, "op": "add", "vector": [1, 2], "factor": -0.5},
                {"token": 3, "sense": 1, "op": "replace", "vector": [0.5, 0]}]}"#,
        )
        .unwrap();
        let want = [
            edit(1, SenseChoice::All, SenseOp::Scale(0.0)),
            edit(2, SenseChoice::One(0), SenseOp::Add(vec![-0.5, -1.0])),
            edit(3, SenseChoice::One(1), SenseOp::Replace(vec![0.5, 0.0])),
        ];
        assert_eq!(all, want);
        assert_eq!(parse_edits(&edits_json(&all), None).unwrap(), want);
        assert_eq!(parse(r#"{"edits": []}"#).unwrap(), []);
    }

    #[test]
    fn errors_name_the_malformed_edit() {
        let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(error(r#"{"edit": []}"#).starts_with("unknown key \"edit\""));
        assert!(error("3").starts_with("there is no list of edits"));
        let good = r#"{"token": 1, "sense": 0, "factor": 1}"#;
        let second = |row: &str| error(&format!("[{good}, {row}]"));
        assert_eq!(second(r#"{"sense": 0, "factor": 1}"#), "edit 2: give either a \"token\" (an id) or a \"word\"");
        assert!(second(r#"{"token": 1, "sense": 0, "factr": 1}"#).starts_with("edit 2: unknown field `factr`"));
        assert_eq!(
            second(r#"{"token": 1, "sense": "some", "factor": 1}"#),
            "edit 2: \"sense\" must be an integer or \"all\""
        );
        assert_eq!(second(r#"{"token": 1, "sense": 0}"#), "edit 2: \"scale\" needs a \"factor\"");
        assert!(second(r#"{"token": 1, "sense": 0, "op": "halve"}"#).contains("unknown variant `halve`"));
        assert!(second(r#"{"token": 1, "sense": 0, "op": "add"}"#).contains("need a \"vector\""));
        assert!(
            second(r#"{"token": 1, "sense": 0, "op": "zero", "factor": 2}"#).contains("\"zero\" takes no \"factor\"")
        );
        assert!(second(r#"{"token": 1, "sense": 0, "factor": 2, "vector": [1]}"#).contains("take a \"vector\""));
        assert!(second(r#"{"word": "bank", "sense": 0, "factor": 2}"#).contains("there is no tokenizer"));
    }
}
