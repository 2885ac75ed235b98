//! Comparison of the native BPE with the `tokenizers` crate.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proptest::prelude::*;
use rayon::prelude::*;
use serde_json::Value;

use super::encoder::Encoder;
use super::recipe::Recipe;

fn native(recipe: Recipe) -> Encoder {
    let encoder = Encoder::load(&tokenizer_file(), recipe, 1).unwrap();
    assert_eq!(encoder.fallback_reason, None);
    encoder
}

fn tokenizer_file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/gpt2/tokenizer.json")
}

fn ids(encoder: &Encoder, text: &str) -> Vec<u16> {
    let mut ids = Vec::new();
    encoder.encode(text, &mut ids).unwrap();
    ids
}

/// Loads the same tokenizer with the `tokenizers` crate. An added token that no text contains
/// prevents the use of the native BPE.
fn reference(recipe: Recipe) -> Encoder {
    let mut json: Value = serde_json::from_slice(&fs::read(tokenizer_file()).unwrap()).unwrap();
    let mut other = json["added_tokens"][0].clone();
    (other["id"], other["content"]) = (50_257.into(), "<|never|>".into());
    json["added_tokens"].as_array_mut().unwrap().push(other);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    fs::write(&path, json.to_string()).unwrap();
    let encoder = Encoder::load(&path, recipe, 1).unwrap();
    assert!(encoder.fallback_reason.as_ref().is_some_and(|reason| reason.contains("other added tokens")));
    encoder
}

/// python3 -c "from tokenizers import Tokenizer; t = Tokenizer.from_file('data/gpt2/tokenizer.json');
/// print(t.encode('Hello  world<|endoftext|>it\'s').ids)"; for nanogpt with added_tokens removed.
#[test]
fn recipes_differ_in_the_end_of_text() {
    let text = "Hello  world<|endoftext|>it's";
    let (backpack, nanogpt) = (native(Recipe::Backpack), native(Recipe::Nanogpt));
    assert_eq!(ids(&backpack, text), [15496, 220, 995, 50256, 270, 338, 50256]);
    assert_eq!(ids(&nanogpt, text), [15496, 220, 995, 27, 91, 437, 1659, 5239, 91, 29, 270, 338, 50256]);
    assert_eq!((ids(&backpack, ""), ids(&nanogpt, "")), (vec![], vec![50256]));
    assert_eq!((backpack.vocab_size, backpack.end_of_text), (50257, 50256));
}

#[test]
fn unusable_tokenizer_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let error = |path: &Path| Encoder::load(path, Recipe::Backpack, 1).err().map(|e| format!("{e:#}")).unwrap();
    assert!(error(&path).contains("cannot read the tokenizer"));
    fs::write(&path, "{}").unwrap();
    assert!(error(&path).contains("unusable tokenizer"));
}

fn require_equal(native: &Encoder, reference: &Encoder, text: &str) {
    let (got, want) = (ids(native, text), ids(reference, text));
    if got != want {
        let at = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
        let around = |ids: &[u16]| ids[at.saturating_sub(3)..ids.len().min(at + 5)].to_vec();
        panic!(
            "{:?}... from token {at}: {:?}, expected {:?}",
            text.chars().take(40).collect::<String>(),
            around(&got),
            around(&want)
        );
    }
}

/// Every Unicode scalar value: between letters, after and before a space, repeated, after a digit,
/// between spaces, and after an apostrophe.
#[test]
fn every_character_equals_the_reference() {
    let (native, reference) = (native(Recipe::Nanogpt), reference(Recipe::Nanogpt));
    // All planes. Of the unassigned planes 4 to 13 only a sample, because their characters all have
    // the same class.
    let sampled = |c: &char| !(0x4_0000..0xE_0000).contains(&u32::from(*c)) || u32::from(*c).is_multiple_of(251);
    let all: Vec<char> = ('\0'..=char::MAX).filter(sampled).collect();
    all.par_chunks(256).for_each(|characters| {
        let mut text = String::new();
        for c in characters {
            text.extend(format!("a{c}b {c}x{c} {c}{c}1{c} \n{c}  {c}'{c}'s.{c}!\u{20}{c}").chars());
        }
        require_equal(&native, &reference, &text);
        for c in characters.iter().filter(|c| c.is_whitespace()) {
            require_equal(&native, &reference, &format!("end{c}"));
            require_equal(&native, &reference, &format!("end{c} {c}"));
        }
    });
}

#[test]
fn long_runs_take_seconds_and_equal_the_reference() {
    let (native, reference) = (native(Recipe::Nanogpt), reference(Recipe::Nanogpt));
    for unit in ["x", " ", "ab", "=", "\n", "1", "\u{4e2d}", "antidisestablishment"] {
        for length in [1, 2, 15, 16, 17, 63, 64, 65, 66, 300, 3_000] {
            let text = unit.repeat(length);
            require_equal(&native, &reference, &text);
            require_equal(&native, &reference, &format!("{text}a"));
        }
    }
    for unit in ["a", " "] {
        let start = std::time::Instant::now();
        assert!(!ids(&native, &unit.repeat(10_000_000)).is_empty());
        assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    }
}

/// Texts with the marker or a part of it, and the demonstration corpus.
#[test]
fn markers_and_corpus_equal_the_reference() {
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../data/demo.jsonl");
    let demo = fs::read_to_string(demo).unwrap();
    for recipe in [Recipe::Backpack, Recipe::Nanogpt] {
        let (native, reference) = (native(recipe), reference(recipe));
        for text in [
            "",
            "<|endoftext|>",
            "a <|endoftext|><|endoftext|> b",
            "<|endoftext",
            "x<|<|endoftext|>|>",
            " <|endoftext|> ",
        ] {
            require_equal(&native, &reference, text);
        }
        let texts: Vec<String> = demo
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["text"].as_str().unwrap().to_owned())
            .collect();
        texts.par_iter().for_each(|text| require_equal(&native, &reference, text));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_strings_equal_the_reference(
        texts in proptest::collection::vec(
            prop_oneof![
                ".{0,80}",
                "[a-zA-Z' ]{0,200}",
                "[ \\n\\t\u{a0}a1'.]{0,60}",
                "([a-z]{1,12}( |'s|'ll|, |\\. |\\n\\n|[0-9]{1,5})){0,40}",
                "[\\p{L}\\p{N}\\s]{0,60}",
                "(<\\|endoftext\\|>|<|a| ){0,12}",
            ],
            20,
        )
    ) {
        for recipe in [Recipe::Backpack, Recipe::Nanogpt] {
            let (native, reference) = ENCODERS.with(|e| e[recipe as usize].clone());
            for text in &texts {
                prop_assert_eq!(ids(&native, text), ids(&reference, text), "{:?}", text);
            }
        }
    }
}

thread_local! {
    /// Loaded once, because loading takes longer than a case.
    static ENCODERS: [(Arc<Encoder>, Arc<Encoder>); 2] =
        [Recipe::Backpack, Recipe::Nanogpt].map(|r| (Arc::new(native(r)), Arc::new(reference(r))));
}
