//! `--edit`, and the sense table of `export --senses`.

use std::fs;

use model::{SENSE_TABLE_FILE, read_tensors};
use serde_json::{Value, json};

use crate::support::{Scratch, backpack, fixture};

fn list(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",")
}

#[test]
fn both_formats_of_edit_files_match_the_fixtures() {
    let scratch = Scratch::new();
    for set in ["inv_scale", "no_inv_scale", "one_sense"] {
        let folder = fixture(set);
        let model = folder.to_str().unwrap();
        let cases: Value = serde_json::from_str(&fs::read_to_string(folder.join("cases.json")).unwrap()).unwrap();
        let forward = read_tensors(&folder.join("forward.safetensors")).unwrap();
        let ids: Vec<i64> = Vec::try_from(forward["edit_ids"].get(0)).unwrap();
        for which in ["edit_single", "edit_multi"] {
            let (edit, output) = (scratch.path_str("edit.json"), scratch.path_str("dump.safetensors"));
            for edits in [cases[which].clone(), json!({ "edits": cases[which] })] {
                fs::write(&edit, edits.to_string()).unwrap();
                let arguments = ["dump", "--model", model, "--ids", &list(&ids), "--edit", &edit, "--output", &output];
                backpack(&arguments).expect(0);
                let logits = &read_tensors(output.as_ref()).unwrap()["logits"];
                let off = (logits - forward[&format!("{which}_logits")].get(0)).abs().max().double_value(&[]);
                assert!(off < 5e-5, "{set} {which}: {off}");
            }
        }
    }
}

#[test]
fn a_sense_table_is_verified_and_generates_the_same_tokens() {
    let scratch = Scratch::new();
    let (model, plain, quick) = (fixture("inv_scale"), scratch.path_str("plain"), scratch.path_str("quick"));
    let model = model.to_str().unwrap();
    backpack(&["export", "--checkpoint", model, "--output", &plain]).expect(0);
    backpack(&["export", "--checkpoint", model, "--output", &quick, "--senses"]).expect(0);
    let table = scratch.path("quick").join(SENSE_TABLE_FILE);
    assert_eq!(read_tensors(&table).unwrap()["senses"].size(), [311, 4, 40]);
    let generate = |folder: &str| {
        backpack(&[
            "generate",
            "--model",
            folder,
            "--prompt-ids",
            "5,6,7",
            "--greedy",
            "--max-new-tokens",
            "40",
            "--json",
        ])
    };
    assert_eq!(generate(&quick).expect(0).stdout, generate(&plain).expect(0).stdout);
    let other = scratch.path_str("other");
    backpack(&["export", "--checkpoint", fixture("no_inv_scale").to_str().unwrap(), "--output", &other]).expect(0);
    fs::copy(&table, scratch.path("other").join(SENSE_TABLE_FILE)).unwrap();
    let error = generate(&other).error();
    assert!(error.contains("senses.safetensors") && error.contains("but this model's senses are"), "{error}");
    // A truncated table is an error.
    let bytes = fs::read(&table).unwrap();
    fs::write(&table, &bytes[..bytes.len() - 5]).unwrap();
    let error = generate(&quick).error();
    assert!(error.contains("senses.safetensors") && error.contains("truncated"), "{error}");
}

#[test]
fn invalid_edits_are_rejected_with_their_position() {
    let scratch = Scratch::new();
    let (model, edit) = (fixture("inv_scale"), scratch.path_str("edit.json"));
    let model = model.to_str().unwrap();
    let error = |text: &str| {
        fs::write(&edit, text).unwrap();
        let error =
            backpack(&["generate", "--model", model, "--prompt-ids", "1", "--edit", &edit, "--max-new-tokens", "1"])
                .error();
        assert!(error.contains("edit.json"), "{error}");
        error
    };
    assert!(error("{").contains("not JSON"));
    assert!(error(r#"[{"token": 1, "sense": 0}]"#).contains("edit 1: \"scale\" needs a \"factor\""));
    assert!(
        error(r#"[{"token": 311, "sense": 0, "factor": 0}]"#).contains("token 311, but the model's ids are 0 to 310")
    );
    assert!(error(r#"[{"token": 1, "sense": 4, "factor": 0}]"#).contains("senses 0 to 3"));
    let word = r#"[{"word": "antidisestablishmentarianism", "sense": 0, "factor": 0}]"#;
    let foreign = error(word);
    assert!(foreign.contains("50257 ids, more than the model's vocabulary of 311"), "{foreign}");
    let tokenizer = ["--tokenizer", "data/gpt2/tokenizer.json"];
    let command = ["generate", "--model", model, "--prompt-ids", "1", "--edit", &edit];
    let split = backpack(&[&command[..], &tokenizer].concat()).error();
    assert!(
        split.contains("edit 1: \"antidisestablishmentarianism\" is not one token: it splits into \" ant\""),
        "{split}"
    );
    let large = r#"[{"token": 1, "sense": 0, "factor": 1e30}, {"token": 1, "sense": 0, "factor": 1e30}]"#;
    assert!(error(large).contains("make a sense infinite"));
    // A number that is finite in fp32 and not in fp16.
    fs::write(&edit, r#"[{"token": 1, "sense": 0, "factor": 1e9}]"#).unwrap();
    let out = scratch.path_str("out");
    let command = ["export", "--checkpoint", model, "--output", &out, "--edit", &edit, "--dtype"];
    let small = backpack(&[&command[..], &["fp16"]].concat()).error();
    assert!(small.contains("has a number that is too large for Half: export with --dtype fp32"), "{small}");
    backpack(&[&command[..], &["fp32"]].concat()).expect(0);
    let missing = backpack(&["generate", "--model", model, "--prompt-ids", "1", "--edit", "none.json"]).error();
    assert!(missing.contains("none.json cannot be read"), "{missing}");
}
