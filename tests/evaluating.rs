//! `backpack eval` on small files in the format of each task. tests/interop compares the numbers
//! with lm-evaluation-harness and scipy.

use std::fs;

use serde_json::Value;

use crate::support::{CommandOutput, Scratch, backpack, fixture, token_stream, write_ids, write_model_of_words};

const LAMBADA: &str = r#"{"text": "It was a dark night and it was a dark day and then it was a dark night"}
{"text": "Night"}
{"text": "She said \"no\" and he\n\nsaid yes"}
"#;
const WIKITEXT: &str =
    " \n = One = \n \n It was 5 @-@ 4 , then ( as now ) over . \n = = Part = = \n More . \n = Two = \n Two . \n";
const BLIMP: [(&str, &str); 2] = [
    ("agreement", r#"{"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps.", "UID": "agreement"}"#),
    ("order", r#"{"sentence_good": "A wall fell.", "sentence_bad": "A fell wall."}"#),
];
const SIMILARITY: &str =
    "word1\tword2\tPOS\tSimLex999\nold\tnew\tA\t1.58\nsun\tmoon\tN\t7\nLlanfair\tcat\tN\t2\nking\tqueen\tN\t8.1\n";

/// Writes a model and a directory with data for all tasks.
fn write_model_and_data() -> (Scratch, String, String) {
    let scratch = Scratch::new();
    write_model_of_words(&scratch.path("model"));
    for task in ["val", "lambada", "wikitext", "blimp", "similarity"] {
        fs::create_dir_all(scratch.path("tasks").join(task)).unwrap();
    }
    write_ids(&scratch.path("tasks/val/val.bin"), &token_stream(200, 311));
    fs::write(scratch.path("tasks/lambada/lambada_test.jsonl"), LAMBADA).unwrap();
    fs::write(scratch.path("tasks/wikitext/wiki.test.raw"), WIKITEXT).unwrap();
    for (paradigm, line) in BLIMP {
        fs::write(scratch.path(&format!("tasks/blimp/{paradigm}.jsonl")), line).unwrap();
    }
    fs::write(scratch.path("tasks/similarity/SimLex-999.txt"), SIMILARITY).unwrap();
    fs::write(scratch.path("tasks/similarity/README.txt"), "No list.\n").unwrap();
    let (model, tasks) = (scratch.path_str("model"), scratch.path_str("tasks"));
    (scratch, model, tasks)
}

fn eval(model: &str, task: &str, data: &str, more: &[&str]) -> CommandOutput {
    backpack(&[&["eval", "--model", model, "--task", task, "--data", data, "--threads", "1"], more].concat())
}

/// The text with single spaces, whatever the widths of table columns.
fn unaligned(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn json_results_do_not_depend_on_the_batch_size() {
    let (_scratch, model, tasks) = write_model_and_data();
    let json = |task: &str, more: &[&str]| {
        let answer = eval(&model, task, &format!("{tasks}/{task}"), &[&["--json"], more].concat()).expect(0).json();
        assert_eq!(answer["task"], *task);
        assert_eq!(answer["data"], format!("{tasks}/{task}"));
        assert!(answer["tokens"].as_u64().unwrap() > 0);
        answer
    };
    for (task, keys) in [
        ("val", &["loss", "perplexity"][..]),
        ("lambada", &["loss", "perplexity", "accuracy"]),
        ("wikitext", &["loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"]),
        ("blimp", &["loss", "perplexity", "accuracy"]),
    ] {
        let (answer, one_by_one) = (json(task, &[]), json(task, &["--batch", "1"]));
        for key in keys {
            let (a, b) = (number(&answer[key]), number(&one_by_one[key]));
            assert!((a - b).abs() <= 1e-4 * a.abs(), "{task} {key}: {a}, {b}");
        }
        assert!((number(&answer["perplexity"]).ln() - number(&answer["loss"])).abs() < 1e-9);
    }
    let lambada = json("lambada", &[]);
    assert_eq!((&lambada["passages"], &lambada["tokens"], &lambada["truncated"]), (&3.into(), &3.into(), &0.into()));
    let wikitext = json("wikitext", &[]);
    assert_eq!((&wikitext["pages"], &wikitext["words"], &wikitext["bytes"]), (&2.into(), &32.into(), &95.into()));
    assert_eq!(json("wikitext", &["--limit", "1"])["pages"], 1);
    let blimp = json("blimp", &[]);
    let paradigms: Vec<&str> = blimp["paradigms"].as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!((paradigms, &blimp["pairs"]), (vec!["agreement", "order"], &2.into()));
    let similarity = json("similarity", &[]);
    assert_eq!(similarity["lists"].as_object().unwrap().len(), 1);
    let list = &similarity["lists"]["SimLex-999"];
    assert_eq!((&list["pairs"], &list["kept"]), (&4.into(), &3.into()));
    assert_eq!(list["by_sense"].as_array().unwrap().len(), 4);
    for key in ["embedding", "min_matched", "max_matched", "min_all", "max_all"] {
        assert!((-1.0..=1.0).contains(&number(&list[key])), "{key}");
    }
    // The correlation of two pairs is 1 or -1.
    let few = json("similarity", &["--limit", "2"]);
    assert!(few["limit"] == 2 && number(&few["lists"]["SimLex-999"]["embedding"]).abs() == 1.0);
}

/// Maximum relative difference between a loss with bf16 products and one with fp32 products.
const BF16_TOLERANCE: f64 = 1e-3;

#[test]
fn bf16_losses_are_close_to_fp32_and_the_output_names_the_precision() {
    let (_scratch, model_of_words, tasks) = write_model_and_data();
    let loss = |model: &str, task: &str, precision: &str| {
        let more = ["--json", "--device", "cpu", "--precision", precision];
        let answer = eval(model, task, &format!("{tasks}/{task}"), &more).expect(0);
        let header = format!("evaluating {model} on device cpu, precision {precision}");
        assert!(answer.stderr.lines().any(|line| line == header), "{}", answer.stderr);
        let json = answer.json();
        assert_eq!((&json["device"], &json["precision"]), (&"cpu".into(), &precision.into()));
        number(&json["loss"])
    };
    let model = fixture("inv_scale");
    let [fp32, bf16] = ["fp32", "bf16"].map(|precision| loss(model.to_str().unwrap(), "val", precision));
    let off = (bf16 / fp32 - 1.0).abs();
    assert!(off > 0.0 && off < BF16_TOLERANCE, "{bf16} is not close to {fp32}");
    for task in ["lambada", "wikitext", "blimp"] {
        // The weights of this model are large, and so are the differences.
        let [fp32, bf16] = ["fp32", "bf16"].map(|precision| loss(&model_of_words, task, precision));
        assert!(bf16 != fp32 && (bf16 / fp32 - 1.0).abs() < 0.1, "{task}: {bf16}, {fp32}");
    }
    // Sense vectors are computed in fp32 at either precision.
    let [fp32, bf16] = ["fp32", "bf16"].map(|precision| {
        let more = ["--json", "--precision", precision];
        eval(&model_of_words, "similarity", &format!("{tasks}/similarity"), &more).expect(0).json()["lists"].clone()
    });
    assert_eq!(bf16, fp32);
    eval(&model_of_words, "val", &format!("{tasks}/val"), &["--precision", "tf32"]).expect(2);
}

#[test]
fn eval_measures_edited_senses() {
    let (scratch, model, tasks) = write_model_and_data();
    let edits = scratch.path_str("edits.json");
    fs::write(&edits, r#"{"edits": [{"word": "king", "sense": 0, "op": "scale", "factor": -1}]}"#).unwrap();
    let json = |task: &str, more: &[&str]| {
        eval(&model, task, &format!("{tasks}/{task}"), &[&["--json"], more].concat()).expect(0).json()
    };
    let (before, after) = (json("similarity", &[]), json("similarity", &["--edit", &edits]));
    let list = |answer: &Value| answer["lists"]["SimLex-999"].clone();
    assert_ne!(list(&before)["by_sense"][0], list(&after)["by_sense"][0]);
    assert_eq!(list(&before)["by_sense"][1], list(&after)["by_sense"][1]);
    // No text of this task contains the edited word.
    assert_eq!(json("blimp", &[]), json("blimp", &["--edit", &edits]));
}

#[test]
fn all_tasks_write_json_and_a_table() {
    let (scratch, model, tasks) = write_model_and_data();
    let output = scratch.path_str("results");
    fs::remove_dir_all(scratch.path("tasks/lambada")).unwrap();
    let printed = eval(&model, "all", &tasks, &["--output", &output, "--limit", "2"]).expect(0);
    let json: Value = serde_json::from_str(&fs::read_to_string(scratch.path("results/results.json")).unwrap()).unwrap();
    assert_eq!((&json["task"], &json["model"]), (&"all".into(), &model.as_str().into()));
    assert_eq!(json["skipped"]["lambada"], format!("{tasks}/lambada does not exist"));
    let alone = eval(&model, "blimp", &format!("{tasks}/blimp"), &["--json", "--limit", "2"]).expect(0).json();
    assert_eq!(json["results"]["blimp"], alone);
    let table = fs::read_to_string(scratch.path("results/results.md")).unwrap();
    assert_eq!(table, printed.stdout);
    for part in [
        "| OpenWebText | LAMBADA perplexity | LAMBADA accuracy | WikiText | BLiMP |",
        " | - | - | ",
        "Measured on device cpu, precision fp32.",
        "**Limited**: only the first 2 items of each task's data were used.",
        "- LAMBADA: skipped, ",
        "| agreement | ",
        "| SimLex-999 | 2 | 2 | ",
    ] {
        assert!(unaligned(&table).contains(part), "{part}: {table}");
    }
    assert!(
        printed.stderr.contains("warning: ") && printed.stderr.contains("has no manifest.json"),
        "{}",
        printed.stderr
    );
    // An existing directory is not overwritten, and a failed evaluation writes none.
    let error = eval(&model, "all", &tasks, &["--output", &output]).error();
    assert!(error.contains(" is not empty: choose a new directory"), "{error}");
    fs::write(scratch.path("tasks/similarity/bad.csv"), "a,b,c\n").unwrap();
    let second = scratch.path_str("second");
    let error = eval(&model, "all", &tasks, &["--output", &second]).error();
    assert!(
        error.contains("bad.csv line 1: column 3 must be the rating, but is \"c\"") && !scratch.path("second").exists(),
        "{error}"
    );
    // Data given by task; JSON on stdout.
    let named = format!("blimp={tasks}/blimp");
    let json = eval(&model, "all", &named, &["--output", &second, "--json"]).expect(0).json();
    assert_eq!((json["results"].as_object().unwrap().len(), json["skipped"].as_object().unwrap().len()), (1, 4));
    eval(&model, "all", &tasks, &[]).expect(2);
}

#[test]
fn similarity_of_a_gpt2_compares_embeddings_only() {
    let scratch = Scratch::new();
    let (_data, _, tasks) = write_model_and_data();
    scratch
        .train("run", &["--set", "model.architecture=gpt2", "--set", "model.vocab_size=50264", "--stop-after", "1"])
        .expect(85);
    let model = scratch.checkpoint("run", 1);
    let model = model.to_str().unwrap();
    let answer = eval(model, "similarity", &format!("{tasks}/similarity"), &["--json"]).expect(0).json();
    let list = &answer["lists"]["SimLex-999"];
    assert!(list["embedding"].is_number() && list.get("by_sense").is_none());
    let shown = eval(model, "similarity", &format!("{tasks}/similarity"), &[]).expect(0).stdout;
    assert!(
        shown.starts_with("3 of 4 pairs")
            && unaligned(&shown).contains("| - | - | - | - |")
            && !shown.contains("| sense |")
    );
    eval(model, "lambada", &format!("{tasks}/lambada"), &[]).expect(0);
}

#[test]
fn eval_rejects_bad_data() {
    let (scratch, model, tasks) = write_model_and_data();
    let error = |task: &str, name: &str, text: &str| {
        fs::write(scratch.path(name), text).unwrap();
        eval(&model, task, &scratch.path_str(name), &[]).error()
    };
    let long = "word ".repeat(70);
    for (task, name, text, why) in [
        ("lambada", "a.jsonl", "{\"text\": \"a b\"}\n{\"text\": ", "a.jsonl line 2: is not JSON at byte 8"),
        ("lambada", "b.jsonl", "{\"page\": \"a b\"}", "b.jsonl line 1: has no key \"text\" (it has page)"),
        ("lambada", "c.txt", "a b c", "c.txt is plain text"),
        ("lambada", "d.jsonl", "", "d.jsonl is empty"),
        ("wikitext", "e.txt", "\"\"\n\" = A = \"\n", "e.txt line 1 starts with a quotation mark"),
        ("wikitext", "f.raw", "Once upon a time.", "f.raw has no line like \" = Title = \""),
        (
            "blimp",
            "g.jsonl",
            &format!("{{\"sentence_good\": \"{long}\", \"sentence_bad\": \"a\"}}"),
            "g.jsonl line 1: the sentence_good: 71 tokens must be predicted, more than the model's context of 64",
        ),
        ("similarity", "h.txt", "a\tb\t1\na\tb\n", "h.txt line 2: the line has 2 columns"),
    ] {
        let printed = error(task, name, text);
        assert!(printed.contains(why), "{printed}");
    }
    let error = |task: &str, data: &str| eval(&model, task, data, &[]).error();
    assert!(error("blimp", "nowhere").contains("nowhere does not exist"));
    assert!(error("blimp", "lambada=x").contains("--data lambada=x is not for --task blimp"));
    assert!(error("blimp", &format!("{tasks}/wikitext")).contains("has no .jsonl file"));
    // A vocabulary smaller than the tokenizer's.
    let small = fixture("inv_scale");
    let printed = eval(small.to_str().unwrap(), "blimp", &format!("{tasks}/blimp"), &[]).error();
    assert!(printed.contains("the tokenizer has 50257 ids, more than the model's vocabulary of 311"), "{printed}");
}
