//! Edits of senses as JSON: what `--edit` reads and the recipes of `control` write.
//!
//! ```json
//! {"edits": [{"word": "bank", "sense": 3, "op": "scale", "factor": 0.5}]}
//! ```
//!
//! A bare list of `{token, sense, factor}` is one too.

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
    sense: Sense,
    op: Option<EditOp>,
    factor: Option<f64>,
    vector: Option<Vec<f32>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "\"sense\" is neither a whole number nor \"all\"")]
enum Sense {
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

/// Reads a file of edits; `tokenizer` is asked for where one names a word.
///
/// # Errors
/// Naming the file and the edit: no JSON, an unknown key, a word that is not one token.
pub fn read_edits(path: &Path, tokenizer: impl FnOnce() -> Result<Tokenizer>) -> Result<Vec<SenseEdit>> {
    let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let parse = || {
        let value: Value = serde_json::from_str(&text).context("it is not JSON")?;
        let names_words = rows_of(&value)?.iter().any(|row| row.get("word").is_some());
        let tokenizer = if names_words { Some(tokenizer()?) } else { None };
        parse_edits(&value, tokenizer.as_ref())
    };
    parse().with_context(|| format!("{} is not usable as edits", path.display()))
}

/// The same from JSON that is at hand.
///
/// # Errors
/// Naming the edit, counted from 1: an unknown key, a word that is not one token or without a tokenizer.
pub fn parse_edits(value: &Value, tokenizer: Option<&Tokenizer>) -> Result<Vec<SenseEdit>> {
    let edit = |(number, row): (usize, &Value)| {
        let parse = || edit_of(EditRow::deserialize(row)?, tokenizer);
        parse().with_context(|| format!("edit {}", number + 1))
    };
    rows_of(value)?.iter().enumerate().map(edit).collect()
}

fn rows_of(value: &Value) -> Result<&Vec<Value>> {
    if let Some(key) = value.as_object().and_then(|object| object.keys().find(|key| *key != "edits")) {
        bail!("key {key} is unknown: it is {{\"edits\": [...]}}");
    }
    let rows = value.get("edits").unwrap_or(value);
    rows.as_array()
        .context("there is no list of edits: it is {\"edits\": [{\"token\": 5, \"sense\": 0, \"factor\": 2}]}")
}

fn edit_of(row: EditRow, tokenizer: Option<&Tokenizer>) -> Result<SenseEdit> {
    let token = match (row.token, row.word) {
        (Some(token), None) => token,
        (None, Some(word)) => {
            tokenizer.context("it names a word, and there is no tokenizer: name the token")?.word_id(&word)?
        }
        _ => bail!("it names either a \"token\" (an id) or a \"word\""),
    };
    let sense = match row.sense {
        Sense::One(sense) => SenseChoice::One(sense),
        Sense::All(All::All) => SenseChoice::All,
    };
    let op = row.op.unwrap_or(EditOp::Scale);
    let takes_vector = matches!(op, EditOp::Add | EditOp::Replace);
    ensure!(takes_vector || row.vector.is_none(), "a \"vector\" goes with \"add\" and \"replace\" alone");
    ensure!(!matches!(op, EditOp::Zero) || row.factor.is_none(), "\"zero\" has no \"factor\"");
    // The vector times the factor, where one is given.
    let vector = || -> Result<Vec<f32>> {
        let vector = row.vector.context("\"add\" and \"replace\" want a \"vector\" of n_embd numbers")?;
        let factor = row.factor.unwrap_or(1.0) as f32;
        Ok(vector.iter().map(|x| x * factor).collect())
    };
    let op = match op {
        EditOp::Zero => SenseOp::Scale(0.0),
        EditOp::Scale => SenseOp::Scale(row.factor.context("\"scale\" wants a \"factor\"")?),
        EditOp::Add => SenseOp::Add(vector()?),
        EditOp::Replace => SenseOp::Replace(vector()?),
    };
    Ok(SenseEdit { token, sense, op })
}

/// The JSON that gives these edits.
pub fn edits_json(edits: &[SenseEdit]) -> Value {
    // As few digits as give the same fp32 again.
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
    fn both_forms_are_read_and_written_ones_are_read_again() {
        let edit = |token, sense, op| SenseEdit { token, sense, op };
        let bare = parse(r#"[{"token": 82, "sense": 3, "factor": 3.0}]"#).unwrap();
        assert_eq!(bare, [edit(82, SenseChoice::One(3), SenseOp::Scale(3.0))]);
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
    fn what_is_no_edit_is_named() {
        let error = |text: &str| format!("{:#}", parse(text).unwrap_err());
        assert!(error(r#"{"edit": []}"#).starts_with("key edit is unknown"));
        assert!(error("3").starts_with("there is no list of edits"));
        let good = r#"{"token": 1, "sense": 0, "factor": 1}"#;
        let second = |row: &str| error(&format!("[{good}, {row}]"));
        assert_eq!(second(r#"{"sense": 0, "factor": 1}"#), "edit 2: it names either a \"token\" (an id) or a \"word\"");
        assert!(second(r#"{"token": 1, "sense": 0, "factr": 1}"#).starts_with("edit 2: unknown field `factr`"));
        assert_eq!(
            second(r#"{"token": 1, "sense": "some", "factor": 1}"#),
            "edit 2: \"sense\" is neither a whole number nor \"all\""
        );
        assert_eq!(second(r#"{"token": 1, "sense": 0}"#), "edit 2: \"scale\" wants a \"factor\"");
        assert!(second(r#"{"token": 1, "sense": 0, "op": "halve"}"#).contains("unknown variant `halve`"));
        assert!(second(r#"{"token": 1, "sense": 0, "op": "add"}"#).contains("want a \"vector\""));
        assert!(
            second(r#"{"token": 1, "sense": 0, "op": "zero", "factor": 2}"#).contains("\"zero\" has no \"factor\"")
        );
        assert!(second(r#"{"token": 1, "sense": 0, "factor": 2, "vector": [1]}"#).contains("a \"vector\" goes with"));
        assert!(second(r#"{"word": "bank", "sense": 0, "factor": 2}"#).contains("there is no tokenizer"));
    }
}
