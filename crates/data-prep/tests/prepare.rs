//! Whole preparations: against the Python reference, and with bad input.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::fs;
use std::path::{Path, PathBuf};

use data_prep::{Manifest, PrepareOptions, Recipe, Split, SplitManifest, TokenSplit, prepare, verify};
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn options(inputs: &[&Path], output: &Path) -> PrepareOptions {
    PrepareOptions {
        inputs: inputs.iter().map(|p| p.display().to_string()).collect(),
        output: output.to_owned(),
        recipe: Recipe::Backpack,
        tokenizer: root().join("data/gpt2/tokenizer.json"),
        text_column: "text".to_owned(),
        val_fraction: 0.0005,
        split_seed: 2357,
        shard_tokens: 100_000_000,
        threads: 2,
    }
}

fn sha256_of_shards(folder: &Path, split: &SplitManifest) -> String {
    let mut hasher = Sha256::new();
    for shard in &split.shards {
        hasher.update(fs::read(folder.join(&shard.name)).unwrap());
    }
    hasher.finalize().iter().map(|b| format!("{b:02x}")).collect()
}

fn lines(documents: &[&str]) -> String {
    documents.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect()
}

/// `../shared` holds corpora that may not be committed, with the hashes that
/// `reference_prepare.py` (datasets, tokenizers, numpy) gave for them.
#[test]
fn the_references_are_met_byte_for_byte() {
    let shared = root().join("../shared");
    if !shared.is_dir() {
        println!("skipped: {} is not there", shared.display());
        return;
    }
    for (name, fraction, shard_tokens) in [("edge", 0.01, 1_000), ("sample5000", 0.0005, 2_000_000)] {
        for recipe in [Recipe::Backpack, Recipe::Nanogpt] {
            let reference = shared.join(format!("data-reference/{name}.{recipe}.json"));
            let reference: serde_json::Value = serde_json::from_str(&fs::read_to_string(reference).unwrap()).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let output = folder.path().join("out");
            let corpus = shared.join(format!("corpus/{name}.parquet"));
            let options =
                PrepareOptions { recipe, val_fraction: fraction, shard_tokens, ..options(&[&corpus], &output) };
            let manifest = prepare(&options, &|_| {}).unwrap();
            for (which, split) in [("train", &manifest.train), ("val", &manifest.val)] {
                let want = &reference[which];
                assert_eq!(want["docs"], split.documents, "{name} {recipe} {which}");
                assert_eq!(want["tokens"], split.tokens, "{name} {recipe} {which}");
                assert_eq!(want["sha256"], sha256_of_shards(&output, split), "{name} {recipe} {which}");
            }
            verify(&output).unwrap();
        }
    }
}

/// Four documents over three files of three kinds; seed 2357 permutes them to 3, 0, 2, 1,
/// of which the first is validation:
/// python3 -c "import numpy as np; print(np.random.default_rng(2357).permutation(4))"
/// python3 -c "from tokenizers import Tokenizer; t = Tokenizer.from_file('data/gpt2/tokenizer.json')
/// print([t.encode(s + '<|endoftext|>').ids for s in ['Hello world', 'it is', 'three']])"
#[test]
fn documents_of_several_files_are_split_and_ordered_as_numpy_does() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b, c) = (folder.path().join("a.jsonl"), folder.path().join("b.txt"), folder.path().join("c.jsonl.zst"));
    fs::write(&a, lines(&["Hello world", "it is"])).unwrap();
    fs::write(&b, "").unwrap();
    fs::write(&c, zstd::encode_all(lines(&["three"]).as_bytes(), 1).unwrap()).unwrap();
    let output = folder.path().join("out");
    let manifest =
        prepare(&PrepareOptions { val_fraction: 0.25, shard_tokens: 4, ..options(&[&a, &b, &c], &output) }, &|_| {})
            .unwrap();
    assert_eq!(Manifest::load(&output).unwrap().unwrap().0, manifest);
    let read = |which| {
        let split = TokenSplit::open(&output, which, 50_264).unwrap();
        let mut ids = vec![0; split.tokens() as usize];
        split.read(0, &mut ids).unwrap();
        ids
    };
    assert_eq!(read(Split::Val), [15542, 50256]);
    assert_eq!(read(Split::Train), [15496, 995, 50256, 270, 318, 50256]);
    assert_eq!(manifest.train.shards.len(), 2);
    let tokens: Vec<u64> = manifest.train.shards.iter().map(|s| s.tokens).collect();
    assert_eq!(tokens, [4, 2]);
}

fn refused(options: &PrepareOptions) -> String {
    let error = format!("{:#}", prepare(options, &|_| {}).unwrap_err());
    let parent = options.output.parent().unwrap();
    let left: Vec<_> = fs::read_dir(parent).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|n| n.to_string_lossy().ends_with(".partial")), "left behind: {left:?}");
    error
}

#[test]
fn bad_input_is_named_and_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let output = folder.path().join("out");
    let good = file("good.jsonl", lines(&["one", "two"]).as_bytes());
    let bad = file("bad.jsonl", b"{\"text\": \"ok\"}\n{\"text\"");
    let error = refused(&options(&[&good, &bad], &output));
    assert!(error.contains("bad.jsonl line 2") && error.contains("is not JSON"), "{error}");
    let error = refused(&options(&[&file("latin.txt", b"caf\xe9")], &output));
    assert!(error.contains("latin.txt is not UTF-8 at byte 3"), "{error}");
    let error = refused(&options(&[&file("empty.jsonl", b"\n")], &output));
    assert_eq!(error, "the corpus is empty: 0 documents and no token in them");
    let error = refused(&options(&[&file("empty.txt", b"")], &output));
    assert_eq!(error, "the corpus is empty: 1 documents and no token in them");
    assert!(refused(&options(&[&folder.path().join("none.jsonl")], &output)).starts_with("no such file or folder"));
    let with = |change: fn(&mut PrepareOptions)| {
        let mut options = options(&[&good], &output);
        change(&mut options);
        refused(&options)
    };
    assert!(with(|o| o.val_fraction = 1.0).contains("--val-fraction is 1"));
    assert!(with(|o| o.shard_tokens = 0).contains("--shard-tokens is 0"));
    assert!(with(|o| o.tokenizer = PathBuf::from("none.json")).contains("none.json cannot be read"));
    assert!(!output.exists());
}

#[test]
fn an_output_that_holds_something_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("a.jsonl"), folder.path().join("out"));
    fs::write(&input, lines(&["one", "two"])).unwrap();
    // An empty folder is taken, and so is what a killed run left.
    fs::create_dir(&output).unwrap();
    fs::create_dir(folder.path().join(".out.partial")).unwrap();
    fs::write(folder.path().join(".out.partial/spool"), "half").unwrap();
    let options = options(&[&input], &output);
    prepare(&options, &|_| {}).unwrap();
    let before = fs::read(output.join("manifest.json")).unwrap();
    assert!(refused(&options).contains("already holds files"));
    assert_eq!(fs::read(output.join("manifest.json")).unwrap(), before);
}

#[test]
fn verifying_names_the_damaged_shard() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("a.jsonl"), folder.path().join("out"));
    fs::write(&input, lines(&["one two one", "two", "three"])).unwrap();
    prepare(&options(&[&input], &output), &|_| {}).unwrap();
    let report = verify(&output).unwrap();
    assert_eq!(report.train.ends_of_text + report.val.ends_of_text, 3);
    let shard = output.join("train-00000.bin");
    let mut bytes = fs::read(&shard).unwrap();
    bytes[0] ^= 1;
    fs::write(&shard, bytes).unwrap();
    assert!(verify(&output).unwrap_err().to_string().contains("train-00000.bin is damaged"));
}
