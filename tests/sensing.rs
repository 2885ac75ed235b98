//! `backpack senses`.

use serde_json::Value;

use crate::support::{Scratch, backpack, fixture, write_model_of_words};

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn senses_of_a_word_and_their_weights_in_a_text() {
    let scratch = Scratch::new();
    write_model_of_words(&scratch.path("model"));
    let model = scratch.path_str("model");
    let shown = backpack(&["senses", "--model", &model, "time", "--top", "3", "--json"]).expect(0).json();
    assert_eq!((shown["word"].as_str(), shown["token"].as_i64()), (Some(" time"), Some(640)));
    let senses = shown["senses"].as_array().unwrap();
    assert_eq!(senses.len(), 4);
    for sense in senses {
        let raised: Vec<f64> = sense["raises"].as_array().unwrap().iter().map(|w| number(&w["logit"])).collect();
        assert!(raised.len() == 3 && raised[0] >= raised[2] && raised[2] >= number(&sense["lowers"][0]["logit"]));
        assert!(number(&sense["norm"]) > 0.0 && sense.get("weight").is_none());
    }
    // The token id gives the same result.
    let by_id = backpack(&["senses", "--model", &model, "--token", "640", "--top", "3", "--json"]).expect(0).json();
    assert_eq!(by_id, shown);
    let text = "It was a long time, and time was short.";
    let used = backpack(&["senses", "--model", &model, "time", "--text", text, "--json"]).expect(0).json();
    let weights: Vec<f64> = used["senses"].as_array().unwrap().iter().map(|s| number(&s["weight"])).collect();
    assert!(weights.iter().all(|w| (0.0..=1.0).contains(w)) && weights.iter().sum::<f64>() > 0.0);
    let table = backpack(&["senses", "--model", &model, "time", "--text", text]).expect(0).stdout;
    assert!(
        table.starts_with("time (token 640)\nsense  0, norm ") && table.contains("in the text\n    raises  "),
        "{table}"
    );
}

#[test]
fn contributions_to_a_prediction_sum_to_its_logit() {
    let scratch = Scratch::new();
    write_model_of_words(&scratch.path("model"));
    let model = scratch.path_str("model");
    let arguments = ["senses", "--model", &model, "--text", "It was a long time ago", "--top", "5", "--json"];
    for more in [&[][..], &["--next", "ago"]] {
        let answer = backpack(&[&arguments[..], more].concat()).expect(0).json();
        let positions = answer["positions"].as_array().unwrap();
        assert_eq!(positions.len(), 6);
        for position in positions {
            let parts: f64 =
                position["contributions"].as_array().unwrap().iter().map(|p| number(&p["contribution"])).sum();
            let off = parts + number(&position["rest"]) - number(&position["next"]["logit"]);
            assert!(off.abs() < 1e-3, "{position}");
            assert!(more.is_empty() || position["next"]["word"] == " ago");
        }
        assert_eq!(positions[5]["contributions"].as_array().unwrap().len(), 5);
        assert_eq!(positions[0]["contributions"].as_array().unwrap().len(), 4);
    }
    let table = backpack(&["senses", "--model", &model, "--text", "It was", "--top", "2"]).expect(0).stdout;
    assert!(table.contains("  0 It  ->  ") && table.contains("  rest\n"), "{table}");
}

#[test]
fn two_words_are_compared_sense_by_sense() {
    let scratch = Scratch::new();
    write_model_of_words(&scratch.path("model"));
    let model = scratch.path_str("model");
    let same = backpack(&["senses", "--model", &model, "--compare", "time", "time", "--json"]).expect(0).json();
    for sense in 0..4 {
        assert!((number(&same["cosines"][sense][sense]) - 1.0).abs() < 1e-6);
    }
    let table = backpack(&["senses", "--model", &model, "--compare", "time", "year"]).expect(0).stdout;
    assert!(
        table.starts_with("cosines between the senses of time (rows) and year (columns)\n")
            && table.lines().count() == 6
    );
}

#[test]
fn senses_rejects_bad_inputs() {
    let scratch = Scratch::new();
    write_model_of_words(&scratch.path("model"));
    let model = scratch.path_str("model");
    let error = |more: &[&str]| backpack(&[&["senses", "--model", &model], more].concat()).error();
    let split = error(&["MacBookish"]);
    assert!(split.contains("\"MacBookish\" is not one token: it splits into \" MacBook\", "), "{split}");
    assert!(error(&["time", "--text", "Nothing of it here."]).contains("the text does not contain \"time\""));
    let long = "time ".repeat(80);
    assert!(error(&["--text", &long]).contains("more than the model's context of 64"));
    assert!(error(&["--token", "50264"]).contains("outside the model's vocabulary of 50264"));
    assert!(error(&[""]).contains("the word is empty"));
    let none = backpack(&["senses", "--model", &model, "time", "--top", "0"]).expect(2);
    assert!(none.stderr.contains("must be at least 1"), "{}", none.stderr);
    backpack(&["senses", "--model", &model, "time", "--top", &u64::MAX.to_string()]).expect(0);
    backpack(&["senses", "--model", &model]).expect(2);
    backpack(&["senses", "--model", &model, "time", "--compare", "a", "b"]).expect(2);
    // Without a usable tokenizer ids are displayed.
    let fixture = fixture("inv_scale");
    let shown = backpack(&["senses", "--model", fixture.to_str().unwrap(), "--token", "5"]).expect(0).stdout;
    assert!(shown.starts_with("5 (token 5)"), "{shown}");
    // The default tokenizer does not fit the model.
    let foreign = backpack(&["senses", "--model", fixture.to_str().unwrap(), "time"]).error();
    assert!(foreign.contains("50257 ids, more than the model's vocabulary of"), "{foreign}");
}
