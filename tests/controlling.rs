//! `backpack control`: the three methods of the paper.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{CommandOutput, Scratch, backpack, file_names, fixture, write_model_of_words};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

/// Runs a method on one thread, because other tests run at the same time.
fn control(method: &str, model: &str, more: &[&str]) -> CommandOutput {
    backpack(&[&["control", method, "--model", model, "--threads", "1"], more].concat())
}

/// A placeholder word of the small model's vocabulary: `waf` is 5.
fn placeholder(id: u16) -> String {
    let letter = |n: u16| char::from(b'a' + (n % 26) as u8);
    format!("w{}{}", letter(id / 26), letter(id))
}

/// Writes the fixture with a tokenizer whose 311 ids are words. Scoring all pairs of word and sense
/// is fast with so few words.
fn write_small_model_with_words(folder: &Path) {
    let english = [(30, "he"), (41, "she"), (90, "doctor"), (91, "nurse"), (200, "war"), (201, "army"), (7, "The")];
    let vocabulary = (0..311).map(|id| {
        let known = english.iter().find(|(known, _)| *known == id).map(|(_, word)| (*word).to_owned());
        (known.unwrap_or_else(|| placeholder(id)), json!(id))
    });
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [],
        "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": null,
        "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocabulary.collect::<serde_json::Map<_, _>>(), "unk_token": "waa" },
    });
    fs::create_dir_all(folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(fixture("inv_scale").join(name), folder.join(name)).unwrap();
    }
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

#[test]
fn topic_generates_and_measures_texts_at_every_strength() {
    let scratch = Scratch::new();
    write_small_model_with_words(&scratch.path("model"));
    fs::write(scratch.path("fight.txt"), "# of war\nwar\n\narmy\nwaf\nwar\n").unwrap();
    let (model, words, output) = (scratch.path_str("model"), scratch.path_str("fight.txt"), scratch.path_str("out"));
    let run = |more: &[&str]| {
        let basis = ["--words", &words, "--about", "The doctor waj", "--prompt", "The wad", "--texts", "6"];
        control("topic", &model, &[&basis[..], &["--tokens", "12"], more].concat())
    };
    let report = run(&["--output", &output, "--json"]).expect(0).json();
    let [fight, about] = report["topics"].as_array().unwrap().as_slice() else { panic!("{report}") };
    assert_eq!((&fight["topic"], &fight["words"]), (&json!("fight"), &json!(["war", "army", "waf"])));
    assert_eq!(about["topic"], "about: The doctor waj");
    for topic in [fight, about] {
        let strengths = topic["strengths"].as_array().unwrap();
        assert_eq!(strengths.len(), 4);
        for (strength, measured) in strengths.iter().enumerate() {
            assert_eq!(measured["strength"], strength);
            assert!((0.0..=1.0).contains(&number(&measured["success"])) && number(&measured["perplexity"]) > 1.0);
        }
        let name = topic["topic"].as_str().unwrap();
        assert_eq!(strengths[2]["words_of_all_topics"][name], strengths[2]["words_per_100_tokens"]);
        assert!(topic["highest"].as_array().unwrap().len() == 10);
    }
    assert_eq!(fight["strengths"][0]["perplexity"], about["strengths"][0]["perplexity"]);

    let folder = scratch.path("out");
    assert_eq!(file_names(&folder), ["plot.png", "plot.svg", "report.json", "table.md", "texts.jsonl"]);
    assert_eq!(serde_json::from_slice::<Value>(&fs::read(folder.join("report.json")).unwrap()).unwrap(), report);
    let texts = fs::read_to_string(folder.join("texts.jsonl")).unwrap();
    let texts: Vec<Value> = texts.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    // Strength 0 once, and three strengths of two topics.
    assert_eq!(texts.len(), 7 * 6);
    // The reported rate is that of the written texts.
    let of = |strength: u64| texts.iter().filter(move |t| t["topic"] == "fight" && t["strength"] == strength);
    let counted =
        of(3).map(|t| t["text"].as_str().unwrap().split(' ').filter(|w| ["war", "army", "waf"].contains(w)).count());
    let rate = 100.0 * counted.sum::<usize>() as f64 / 72.0;
    assert!((number(&fight["strengths"][3]["words_per_100_tokens"]) - rate).abs() < 1e-9, "{rate}");
    let svg = fs::read_to_string(folder.join("plot.svg")).unwrap();
    for name in ["fight", "about: The doctor waj", "topic words per 100 tokens", "perplexity"] {
        assert!(svg.contains(name), "{name}");
    }

    // The same seed gives the same texts. The printed table is that of the directory.
    let table = fs::read_to_string(folder.join("table.md")).unwrap();
    assert_eq!(run(&[]).expect(0).stdout, table);
    assert_ne!(run(&["--seed", "1"]).expect(0).stdout, table);
    assert!(table.starts_with("| topic ") && table.contains("| fight "), "{table}");
    assert!(table.contains("| texts on "), "{table}");
    let one = run(&["--strengths", "3", "--json"]).expect(0).json();
    assert_eq!(one["topics"][0]["strengths"], json!([fight["strengths"][0], fight["strengths"][3]]));
}

#[test]
fn debias_reports_and_saves_its_factor() {
    let scratch = Scratch::new();
    write_small_model_with_words(&scratch.path("model"));
    let (model, edit, output) =
        (scratch.path_str("model"), scratch.path_str("edits/debias.json"), scratch.path_str("out"));
    for (name, text) in [
        ("work.txt", "doctor\nnurse\nmother-in-law\n"),
        ("train.txt", "The {} wad\nwai {} waj wak\n"),
        ("test.txt", "wal {}\nThe {} wam wad\n"),
    ] {
        fs::write(scratch.path(name), text).unwrap();
    }
    let (work, train, test) =
        (scratch.path_str("work.txt"), scratch.path_str("train.txt"), scratch.path_str("test.txt"));
    let files = ["--occupations", &work, "--prompts", &train, "--test-prompts", &test];
    let run = |more: &[&str]| control("debias", &model, &[&files[..], more].concat());
    let report = run(&["--save-edit", &edit, "--output", &output, "--json"]).expect(0).json();
    assert_eq!(report["skipped"], json!(["mother-in-law"]));
    assert_eq!((report["occupations"].as_array().unwrap().len(), report["senses"].as_array().unwrap().len()), (2, 4));
    let bias = |prompts: &str, which: &str| number(&report[prompts][which]);
    let (sense, factor) = (report["sense"].as_u64().unwrap() as usize, number(&report["factor"]));
    assert!((0.0..=1.0).contains(&factor));
    // The objective at the selected factor is not larger than at factor 1 and factor 0.
    let objective = bias("training", "found") + 1.0 - factor;
    assert!(objective <= bias("training", "plain") + 1e-9 && objective <= bias("training", "removed") + 1.0 + 1e-9);
    let lowest = |trial: &Value| number(&trial["lowest"]);
    let trials = report["senses"].as_array().unwrap();
    assert!(trials.iter().all(|trial| lowest(&trials[sense]) <= lowest(trial)));
    assert_eq!(file_names(&scratch.path("out")), ["plot.png", "plot.svg", "report.json", "table.md"]);

    // The saved edits give the edited model.
    let edits: Value = serde_json::from_slice(&fs::read(&edit).unwrap()).unwrap();
    let want = |token: i64| json!({ "token": token, "sense": sense, "op": "scale", "factor": factor });
    assert_eq!(edits, json!({ "edits": [want(90), want(91)] }));
    let again = run(&["--edit", &edit, "--json"]).expect(0).json();
    for prompts in ["training", "test"] {
        assert!((number(&again[prompts]["plain"]) / bias(prompts, "found") - 1.0).abs() < 1e-3, "{again}");
    }
    let table = run(&[]).expect(0).stdout;
    for text in ["| training prompts", "| test prompts", "| doctor", "not one token: 1 (mother-in-law)"] {
        assert!(table.contains(text), "{table}");
    }
}

#[test]
fn edit_changes_only_prompts_with_the_word() {
    let scratch = Scratch::new();
    write_model_of_words(&scratch.path("model"));
    let (model, edit, output) = (scratch.path_str("model"), scratch.path_str("edit.json"), scratch.path_str("out"));
    let words = ["--word", "MacBook", "--old", "Apple", "--new", "HP"];
    let run = |more: &[&str]| control("edit", &model, &[&words[..], more].concat()).expect(0);
    let report = run(&["--save-edit", &edit, "--output", &output, "--json"]).json();
    let prompts = report["prompts"].as_array().unwrap();
    assert_eq!(
        prompts.iter().map(|p| p["has_word"].as_bool().unwrap()).collect::<Vec<_>>(),
        [true, true, false, false]
    );
    assert_eq!(prompts[0]["prompt"], "The MacBook is best known for");
    for prompt in prompts {
        let (has_word, change) = (prompt["has_word"].as_bool().unwrap(), number(&prompt["largest_change"]));
        assert_eq!(change > 0.0, has_word, "{prompt}");
        assert!(has_word || prompt["before"] == prompt["after"]);
        assert_eq!(prompt["after"]["top"].as_array().unwrap().len(), 5);
    }
    assert_eq!(report["senses"].as_array().unwrap().len(), 4);
    assert_eq!(file_names(&scratch.path("out")), ["plot.png", "plot.svg", "report.json", "table.md"]);
    // The saved edits give the probabilities that were reported after the edit.
    let prompt = ["--prompt", "The MacBook is best known for", "--edit", &edit, "--json"];
    let again = run(&prompt).json();
    let (now, then) = (number(&again["prompts"][0]["before"]["new"]), number(&prompts[0]["after"]["new"]));
    assert!((now / then - 1.0).abs() < 1e-3, "{now} {then}");
    let generate = ["generate", "--model", &model, "--prompt", "The MacBook", "--max-new-tokens", "2", "--edit", &edit];
    backpack(&generate).expect(0);
    let table = run(&[]).stdout;
    assert!(table.starts_with("MacBook predicts HP instead of Apple.\n"), "{table}");
}

#[test]
fn control_rejects_bad_inputs() {
    let scratch = Scratch::new();
    write_model_of_words(&scratch.path("model"));
    let model = scratch.path_str("model");
    let error = |arguments: &[&str]| {
        let (method, more) = arguments.split_first().unwrap();
        control(method, &model, more).error()
    };
    let file = |name: &str, text: &str| {
        fs::write(scratch.path(name), text).unwrap();
        scratch.path_str(name)
    };
    let empty = file("empty.txt", "# nothing\n\n");
    assert!(error(&["topic", "--words", &empty]).contains("empty.txt is empty"));
    assert!(error(&["topic", "--words", "none.txt"]).contains("cannot read none.txt"));
    let unknown = error(&["topic", "--topic", "cookery"]);
    assert!(
        unknown.contains("unknown topic \"cookery\": choose one of family, law, money, music, sport, war"),
        "{unknown}"
    );
    let none = control("topic", &model, &["--topic", "war", "--texts", "0"]).expect(2).stderr;
    assert!(none.contains("must be at least 1"), "{none}");
    let long = error(&["topic", "--topic", "war", "--tokens", "64"]);
    assert!(
        long.contains(
            "--tokens is 64, but the model's context of 64 has room for 1 to 63 tokens after the prompt of 1"
        ),
        "{long}"
    );
    assert!(error(&["topic", "--topic", "war", "--prompt", ""]).contains("cannot use --prompt: there are no tokens"));
    fs::create_dir(scratch.path("full")).unwrap();
    file("full/file", "");
    assert!(error(&["topic", "--topic", "war", "--output", &scratch.path_str("full")]).contains("full is not empty"));

    let no_braces = file("prompts.txt", "My {} said\nThe doctor said\n");
    let refused = error(&["debias", "--prompts", &no_braces]);
    assert!(refused.contains("the prompt \"The doctor said\" has no {}"), "{refused}");
    let no_space = file("prompts.txt", "{} said that\n");
    assert!(error(&["debias", "--test-prompts", &no_space]).contains("no space before its {}"));
    let split = file("work.txt", "hairdresser\nplumber\n");
    assert!(error(&["debias", "--occupations", &split]).contains("none of the 2 occupations is one token"));

    let edit = |word: &str, old: &str, more: &[&str]| {
        error(&[&["edit", "--word", word, "--old", old, "--new", "HP"], more].concat())
    };
    assert!(edit("MacBookish", "Apple", &[]).contains("\"MacBookish\" is not one token"));
    assert!(edit("MacBook", "HP", &[]).contains("are one token"));
    let long = "time ".repeat(80);
    assert!(edit("MacBook", "Apple", &["--prompt", &long]).contains("more than the model's context of 64"));

    // A model whose vocabulary is smaller than the tokenizer's, and a model without senses.
    let fixture = fixture("inv_scale");
    let small = fixture.to_str().unwrap();
    let foreign = control("topic", small, &["--topic", "war", "--prompt", "!"]).error();
    assert!(foreign.contains("50257 ids, more than the model's vocabulary of 311"), "{foreign}");
    let given = ["--topic", "war", "--prompt", "!", "--tokenizer", "data/gpt2/tokenizer.json"];
    let outside = control("topic", small, &given).error();
    assert!(outside.contains("\"war\" is token 1175, outside the model's vocabulary of 311"), "{outside}");
    scratch.train("run", &["--set", "model.architecture=gpt2", "--stop-after", "1"]).expect(85);
    let gpt2 = scratch.checkpoint("run", 1);
    let gpt2 = gpt2.to_str().unwrap();
    for method in [&["topic", "--topic", "war"][..], &["debias"], &["edit", "--word", "a", "--old", "b", "--new", "c"]]
    {
        let error = control(method[0], gpt2, &method[1..]).error();
        assert!(error.contains("is a GPT-2, which has no senses"), "{error}");
    }
    control("topic", &model, &[]).expect(2);
    control("topic", &model, &["--topic", "war", "--strengths", "4"]).expect(2);
    backpack(&["control"]).expect(2);
}
