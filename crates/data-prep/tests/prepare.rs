//! Whole preparations: against the Python reference, and with bad input.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use data_prep::{
    Manifest, PrepareEvent, PrepareOptions, PrepareProgress, PrepareStage, Recipe, Split, SplitManifest, TokenSplit,
    prepare, verify,
};
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
        skip_bad_documents: false,
        threads: 2,
        commit_every: Duration::from_secs(5),
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
            let manifest = prepare(&options, &|_| {}).unwrap().manifest;
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
            .unwrap()
            .manifest;
    assert_eq!(Manifest::load(&output).unwrap().unwrap().0, manifest);
    let read = |which| {
        let split = TokenSplit::open(&output, which, 50_264).unwrap();
        let mut ids = vec![0; split.num_tokens() as usize];
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
    assert!(with(|o| o.threads = 1 << 20).contains("--threads is 1048576"));
    assert!(with(|o| o.val_fraction = 0.6).contains("the train split would be empty: all 2 document(s)"));
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
    assert!(!prepare(&options, &|_| {}).unwrap().already_complete);
    let before = listing(&output);
    // The same again is recognised; anything else is refused, and says why.
    assert!(prepare(&options, &|_| {}).unwrap().already_complete);
    let with = |change: fn(&mut PrepareOptions)| {
        let mut options = options.clone();
        change(&mut options);
        refused(&options)
    };
    assert!(with(|o| o.val_fraction = 0.5).contains("already holds files (val_fraction is 0.5 now and was 0.0005)"));
    assert!(with(|o| o.inputs.push(o.inputs[0].clone())).contains("shards of other inputs"));
    fs::write(&input, lines(&["one", "twe"])).unwrap();
    assert!(refused(&options).contains("shards of other inputs"));
    assert_eq!(listing(&output), before);
    fs::remove_file(output.join("manifest.json")).unwrap();
    assert!(refused(&options).contains("already holds files (no manifest.json)"));
}

/// Names, bytes and times of a folder's files.
fn listing(folder: &Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let mut files: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.clone(), fs::read(&p).unwrap(), fs::metadata(&p).unwrap().modified().unwrap()))
        .collect();
    files.sort();
    files
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
    fs::write(output.join("val-00007.bin"), [0, 0]).unwrap();
    assert!(
        verify(&output).unwrap_err().to_string().contains("val-00007.bin is a shard that manifest.json does not name")
    );
}

/// About `megabytes` of text in jsonl, different for every seed.
fn corpus(megabytes: usize, seed: u64) -> String {
    let words = ["the", "of", "sense", "vector", "and", "a", "word", "Backpack", "in", "it's", "1913,", "na\u{ef}ve"];
    let mut state = seed;
    let mut text = String::new();
    let mut documents = String::new();
    while documents.len() < megabytes << 20 {
        text.clear();
        for _ in 0..2_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push_str(words[(state >> 33) as usize % words.len()]);
            text.push(' ');
        }
        documents.push_str(&lines(&[&text]));
    }
    documents
}

/// A preparation that fails in the second of three files, with work done that is kept.
struct Interrupted {
    folder: tempfile::TempDir,
    options: PrepareOptions,
}

impl Interrupted {
    const BAD: &'static str = "{\"text\": \"torn";

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (a, b, c) = (
            file("a.jsonl", &corpus(6, 1)),
            file("b.jsonl", &(corpus(10, 2) + Self::BAD)),
            file("c.jsonl", &corpus(3, 3)),
        );
        let options = PrepareOptions {
            commit_every: Duration::ZERO,
            val_fraction: 0.1,
            shard_tokens: 500_000,
            ..options(&[&a, &b, &c], &folder.path().join("out"))
        };
        let notes = Mutex::new(Vec::new());
        let error = prepare(&options, &note(&notes)).unwrap_err();
        assert!(format!("{error:#}").contains("b.jsonl line"), "{error:#}");
        assert_eq!(*notes.lock().unwrap(), ["what was done is kept: the same command goes on from there"]);
        Interrupted { folder, options }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn mend(&self) {
        let path = self.path("b.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.strip_suffix(Self::BAD).unwrap()).unwrap();
    }

    /// Goes on, and holds the result against a preparation without interruption.
    fn finish(&self) -> Vec<String> {
        let notes = Mutex::new(Vec::new());
        let resumed = prepare(&self.options, &note(&notes)).unwrap().manifest;
        let whole = PrepareOptions { output: self.path("whole"), ..self.options.clone() };
        assert_eq!(prepare(&whole, &|_| {}).unwrap().manifest, resumed);
        let bytes =
            |folder: &str| listing(&self.path(folder)).into_iter().map(|(_, bytes, _)| bytes).collect::<Vec<_>>();
        assert_eq!(bytes("out"), bytes("whole"));
        notes.into_inner().unwrap()
    }

    fn error(&self) -> String {
        format!("{:#}", prepare(&self.options, &|_| {}).unwrap_err())
    }
}

fn note(notes: &Mutex<Vec<String>>) -> impl Fn(PrepareEvent<'_>) + Sync {
    |event| {
        if let PrepareEvent::Message(text) = event {
            notes.lock().unwrap().push(text.to_owned());
        }
    }
}

#[test]
fn an_interrupted_preparation_goes_on_to_the_same_bytes() {
    let interrupted = Interrupted::new();
    interrupted.mend();
    let notes = interrupted.finish();
    assert!(notes.len() == 1 && notes[0].starts_with("going on after "), "{notes:?}");
}

#[test]
fn torn_files_of_a_killed_process_do_no_harm() {
    let interrupted = Interrupted::new();
    interrupted.mend();
    for (name, torn) in [("commits.jsonl", "{\"position\":{\"fi"), ("spool.bin", "xyz"), ("lengths.bin", "12345")] {
        let path = interrupted.path(".out.partial").join(name);
        fs::write(&path, [fs::read(&path).unwrap(), torn.as_bytes().to_vec()].concat()).unwrap();
    }
    interrupted.finish();
}

#[test]
fn other_arguments_or_changed_inputs_are_refused_and_said() {
    let mut interrupted = Interrupted::new();
    let good = interrupted.options.clone();
    interrupted.options.split_seed = 7;
    let error = interrupted.error();
    assert!(error.contains("was started otherwise (split_seed is 7 now and was 2357)"), "{error}");
    interrupted.options = good.clone();
    interrupted.options.inputs.pop();
    assert!(interrupted.error().contains("other inputs: 2 files now, 3 then"));
    interrupted.options = good;
    let path = interrupted.path("a.jsonl");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    let error = interrupted.error();
    assert!(error.contains("a.jsonl has changed since it was read") && error.contains("to start afresh"), "{error}");
    fs::remove_dir_all(interrupted.path(".out.partial")).unwrap();
    fs::write(&path, text).unwrap();
    interrupted.mend();
    interrupted.finish();
}

/// The second stage stops at a shard that cannot be written: a folder stands in its place.
#[test]
fn finished_shards_are_not_written_again() {
    let interrupted = Interrupted::new();
    interrupted.mend();
    let (partial, blocked) = (interrupted.path(".out.partial"), interrupted.path(".out.partial/train-00004.bin"));
    let error = prepare(&interrupted.options, &|event| {
        if matches!(event, PrepareEvent::Progress(PrepareProgress { stage: PrepareStage::Writing, .. })) {
            let _ = fs::create_dir(&blocked);
        }
    })
    .unwrap_err();
    assert!(format!("{error:#}").contains("train-00004.bin cannot be written"), "{error:#}");
    fs::remove_dir(&blocked).unwrap();
    let first = partial.join("train-00000.bin");
    let written = fs::metadata(&first).unwrap().modified().unwrap();
    interrupted.finish();
    let kept = fs::metadata(interrupted.path("out/train-00000.bin")).unwrap().modified().unwrap();
    assert_eq!(written, kept);
}

#[test]
fn a_publication_that_was_cut_off_is_ended() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("a.jsonl"), folder.path().join("out"));
    fs::write(&input, lines(&["one two one", "two", "three"])).unwrap();
    let options = options(&[&input], &output);
    prepare(&options, &|_| {}).unwrap();
    let before = listing(&output);
    let partial = folder.path().join(".out.partial");
    fs::rename(&output, &partial).unwrap();
    fs::write(partial.join("plan.json"), "{}").unwrap();
    assert!(prepare(&options, &|_| {}).unwrap().already_complete);
    assert_eq!(listing(&output), before);
}

#[test]
fn bad_documents_are_left_out_counted_and_listed() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let zstd = zstd::encode_all(corpus(1, 5).as_bytes(), 1).unwrap();
    let inputs = [
        file("a.jsonl", b"{\"text\": \"one\"}\n{\"text\": null}\n{\"text\": \"two\"}\n"),
        file("b.txt", b"caf\xe9"),
        file("c.parquet", b"PAR1 and no more"),
        file("d.jsonl.zst", &zstd[..zstd.len() - 5]),
        file("e.jsonl", b"{\"text\": \"three\"}"),
    ];
    let gone = folder.path().join("gone.txt");
    std::os::unix::fs::symlink("nowhere", &gone).unwrap();
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let output = folder.path().join("out");
    let mut options = PrepareOptions { skip_bad_documents: true, val_fraction: 0.5, ..options(&inputs, &output) };
    options.inputs.push(folder.path().join("g*.txt").display().to_string());
    let notes = Mutex::new(Vec::new());
    let manifest = prepare(&options, &note(&notes)).unwrap().manifest;
    assert_eq!(manifest.skipped_documents, 5);
    let listed = fs::read_to_string(output.join("skipped.jsonl")).unwrap();
    assert_eq!((listed.lines().count(), notes.lock().unwrap().len()), (5, 5));
    for why in [
        "a.jsonl line 2",
        "b.txt is not UTF-8",
        "c.parquet of 16 bytes",
        "d.jsonl.zst cannot be read at line",
        "gone.txt cannot be read",
    ] {
        assert!(listed.contains(why), "{why}: {listed}");
    }
    assert!(manifest.sources[4].sha256.is_some() && manifest.sources[5].sha256.is_none());
    options.skip_bad_documents = false;
    options.output = folder.path().join("strict");
    assert!(refused(&options).contains("gone.txt cannot be read"));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("a.jsonl"), folder.path().join("out"));
    fs::write(&input, corpus(30, 1)).unwrap();
    let error = prepare(&options(&[&input], &output), &|_| {
        let mut file = fs::OpenOptions::new().append(true).open(&input).unwrap();
        file.write_all(b"{\"text\": \"more\"}\n").unwrap();
    })
    .unwrap_err();
    assert!(format!("{error:#}").contains("a.jsonl changed while it was read"), "{error:#}");
    assert!(!output.exists());
}
