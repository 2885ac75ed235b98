//! Complete preparations: comparison with the Python reference, bad input, interruptions.
#![allow(clippy::unwrap_used)] // clippy exempts only test functions, not their helpers

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use data_prep::hash::hex;
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

fn sha256_of_shards(dir: &Path, split: &SplitManifest) -> String {
    let mut hasher = Sha256::new();
    for shard in &split.shards {
        hasher.update(fs::read(dir.join(&shard.name)).unwrap());
    }
    hex(&hasher.finalize())
}

fn lines(documents: &[&str]) -> String {
    documents.iter().map(|text| format!("{}\n", serde_json::json!({ "text": text }))).collect()
}

/// Compares the shards of corpora that may not be committed with those of the Python packages
/// `datasets`, `tokenizers` and numpy. The environment variable `BACKPACK_TEST_CORPORA` is a
/// directory with `corpus/NAME.parquet` for each corpus NAME, and `data-reference/NAME.RECIPE.json`
/// with the number of documents and tokens and the SHA-256 of each split by Python. The test is
/// skipped if the variable is not set.
#[test]
fn shards_equal_the_python_reference() {
    let Some(corpora) = std::env::var_os("BACKPACK_TEST_CORPORA").map(PathBuf::from) else {
        println!("skipped: BACKPACK_TEST_CORPORA is not set");
        return;
    };
    for (name, fraction, shard_tokens) in [("edge", 0.01, 1_000), ("sample5000", 0.0005, 2_000_000)] {
        for recipe in [Recipe::Backpack, Recipe::Nanogpt] {
            let reference = corpora.join(format!("data-reference/{name}.{recipe}.json"));
            let reference: serde_json::Value = serde_json::from_str(&fs::read_to_string(reference).unwrap()).unwrap();
            let dir = tempfile::tempdir().unwrap();
            let output = dir.path().join("out");
            let corpus = corpora.join(format!("corpus/{name}.parquet"));
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

/// Four documents in three files of three formats. Seed 2357 permutes them to 3, 0, 2, 1, and the
/// first of these is the validation split:
/// python3 -c "import numpy as np; print(np.random.default_rng(2357).permutation(4))"
/// python3 -c "from tokenizers import Tokenizer; t = Tokenizer.from_file('data/gpt2/tokenizer.json')
/// print([t.encode(s + '<|endoftext|>').ids for s in ['Hello world', 'it is', 'three']])"
#[test]
fn documents_of_several_files_are_split_and_ordered_like_numpy() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (dir.path().join("a.jsonl"), dir.path().join("b.txt"), dir.path().join("c.jsonl.zst"));
    fs::write(&a, lines(&["Hello world", "it is"])).unwrap();
    fs::write(&b, "").unwrap();
    fs::write(&c, zstd::encode_all(lines(&["three"]).as_bytes(), 1).unwrap()).unwrap();
    let output = dir.path().join("out");
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
    assert!(!left.iter().any(|n| n.to_string_lossy().ends_with(".partial")), "not deleted: {left:?}");
    error
}

#[test]
fn bad_input_is_named_and_temporary_files_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let output = dir.path().join("out");
    let good = file("good.jsonl", lines(&["one", "two"]).as_bytes());
    let bad = file("bad.jsonl", b"{\"text\": \"ok\"}\n{\"text\"");
    let error = refused(&options(&[&good, &bad], &output));
    assert!(error.contains("bad.jsonl line 2") && error.contains("is not JSON"), "{error}");
    let error = refused(&options(&[&file("latin.txt", b"caf\xe9")], &output));
    assert!(error.contains("latin.txt is not UTF-8 at byte 3"), "{error}");
    let error = refused(&options(&[&file("empty.jsonl", b"\n")], &output));
    assert_eq!(error, "the corpus is empty: 0 documents without tokens");
    let error = refused(&options(&[&file("empty.txt", b"")], &output));
    assert_eq!(error, "the corpus is empty: 1 documents without tokens");
    assert!(refused(&options(&[&dir.path().join("none.jsonl")], &output)).starts_with("no such file or directory"));
    let with = |change: fn(&mut PrepareOptions)| {
        let mut options = options(&[&good], &output);
        change(&mut options);
        refused(&options)
    };
    assert!(with(|o| o.val_fraction = 1.0).contains("--val-fraction is 1"));
    assert!(with(|o| o.shard_tokens = 0).contains("--shard-tokens is 0"));
    assert!(with(|o| o.threads = 1 << 20).contains("--threads is 1048576"));
    assert!(with(|o| o.val_fraction = 0.6).contains("puts all 2 document(s) into validation"));
    assert!(with(|o| o.tokenizer = PathBuf::from("none.json")).contains("cannot read the tokenizer none.json"));
    assert!(!output.exists());
}

#[test]
fn existing_output_is_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("a.jsonl"), dir.path().join("out"));
    fs::write(&input, lines(&["one", "two"])).unwrap();
    // An empty output directory is used, and the files of a killed process are deleted.
    fs::create_dir(&output).unwrap();
    fs::create_dir(dir.path().join(".out.partial")).unwrap();
    fs::write(dir.path().join(".out.partial/spool"), "half").unwrap();
    let options = options(&[&input], &output);
    assert!(!prepare(&options, &|_| {}).unwrap().already_complete);
    let before = listing(&output);
    // The same preparation is recognized. Another one is refused, with the reason.
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

/// Returns the paths, contents and modification times of the files of a directory.
fn listing(dir: &Path) -> Vec<(PathBuf, Vec<u8>, std::time::SystemTime)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| (p.clone(), fs::read(&p).unwrap(), fs::metadata(&p).unwrap().modified().unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn verification_names_the_damaged_shard() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("a.jsonl"), dir.path().join("out"));
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
        verify(&output)
            .unwrap_err()
            .to_string()
            .contains("val-00007.bin is a shard that is not listed in manifest.json")
    );
}

/// Returns at least `megabytes` of random text in jsonl.
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

/// Preparation that failed in the second of three files and kept its work.
struct Interrupted {
    dir: tempfile::TempDir,
    options: PrepareOptions,
}

impl Interrupted {
    const BAD: &'static str = "{\"text\": \"torn";

    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
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
            ..options(&[&a, &b, &c], &dir.path().join("out"))
        };
        let messages = Mutex::new(Vec::new());
        let error = prepare(&options, &record(&messages)).unwrap_err();
        assert!(format!("{error:#}").contains("b.jsonl line"), "{error:#}");
        assert_eq!(*messages.lock().unwrap(), ["finished work is kept: the same command resumes from it"]);
        Interrupted { dir, options }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn repair(&self) {
        let path = self.path("b.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, text.strip_suffix(Self::BAD).unwrap()).unwrap();
    }

    /// Resumes, and compares the result with a preparation without interruption.
    fn finish(&self) -> Vec<String> {
        let messages = Mutex::new(Vec::new());
        let resumed = prepare(&self.options, &record(&messages)).unwrap().manifest;
        let whole = PrepareOptions { output: self.path("whole"), ..self.options.clone() };
        assert_eq!(prepare(&whole, &|_| {}).unwrap().manifest, resumed);
        let bytes = |dir: &str| listing(&self.path(dir)).into_iter().map(|(_, bytes, _)| bytes).collect::<Vec<_>>();
        assert_eq!(bytes("out"), bytes("whole"));
        messages.into_inner().unwrap()
    }

    fn error(&self) -> String {
        format!("{:#}", prepare(&self.options, &|_| {}).unwrap_err())
    }
}

fn record(messages: &Mutex<Vec<String>>) -> impl Fn(PrepareEvent<'_>) + Sync {
    |event| {
        if let PrepareEvent::Message(text) = event {
            messages.lock().unwrap().push(text.to_owned());
        }
    }
}

#[test]
fn resumed_preparation_gives_the_same_bytes() {
    let interrupted = Interrupted::new();
    interrupted.repair();
    let messages = interrupted.finish();
    assert!(messages.len() == 1 && messages[0].starts_with("resuming after "), "{messages:?}");
}

#[test]
fn torn_files_of_a_killed_process_do_not_change_the_result() {
    let interrupted = Interrupted::new();
    interrupted.repair();
    for (name, torn) in [("commits.jsonl", "{\"position\":{\"fi"), ("spool.bin", "xyz"), ("lengths.bin", "12345")] {
        let path = interrupted.path(".out.partial").join(name);
        fs::write(&path, [fs::read(&path).unwrap(), torn.as_bytes().to_vec()].concat()).unwrap();
    }
    interrupted.finish();
}

#[test]
fn other_arguments_and_changed_inputs_are_refused() {
    let mut interrupted = Interrupted::new();
    let good = interrupted.options.clone();
    interrupted.options.split_seed = 7;
    let error = interrupted.error();
    assert!(error.contains("has other arguments or inputs (split_seed is 7 now and was 2357)"), "{error}");
    interrupted.options = good.clone();
    interrupted.options.inputs.pop();
    assert!(interrupted.error().contains("other inputs: 2 files now, 3 before"));
    interrupted.options = good;
    let path = interrupted.path("a.jsonl");
    let text = fs::read(&path).unwrap();
    fs::write(&path, &text[..text.len() / 2]).unwrap();
    let error = interrupted.error();
    assert!(error.contains("a.jsonl has changed since it was read") && error.contains("to start again"), "{error}");
    fs::remove_dir_all(interrupted.path(".out.partial")).unwrap();
    fs::write(&path, text).unwrap();
    interrupted.repair();
    interrupted.finish();
}

/// The second stage fails at a shard whose path is a directory.
#[test]
fn finished_shards_are_not_written_again() {
    let interrupted = Interrupted::new();
    interrupted.repair();
    let (partial, blocked) = (interrupted.path(".out.partial"), interrupted.path(".out.partial/train-00004.bin"));
    let error = prepare(&interrupted.options, &|event| {
        if matches!(event, PrepareEvent::Progress(PrepareProgress { stage: PrepareStage::Writing, .. })) {
            let _ = fs::create_dir(&blocked);
        }
    })
    .unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains(&format!("cannot write {}", blocked.display())), "{error}");
    fs::remove_dir(&blocked).unwrap();
    let first = partial.join("train-00000.bin");
    let written = fs::metadata(&first).unwrap().modified().unwrap();
    interrupted.finish();
    let kept = fs::metadata(interrupted.path("out/train-00000.bin")).unwrap().modified().unwrap();
    assert_eq!(written, kept);
}

#[test]
fn interrupted_publication_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("a.jsonl"), dir.path().join("out"));
    fs::write(&input, lines(&["one two one", "two", "three"])).unwrap();
    let options = options(&[&input], &output);
    prepare(&options, &|_| {}).unwrap();
    let before = listing(&output);
    let partial = dir.path().join(".out.partial");
    fs::rename(&output, &partial).unwrap();
    fs::write(partial.join("plan.json"), "{}").unwrap();
    assert!(prepare(&options, &|_| {}).unwrap().already_complete);
    assert_eq!(listing(&output), before);
}

#[test]
fn bad_documents_are_skipped_counted_and_listed() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
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
    let gone = dir.path().join("gone.txt");
    std::os::unix::fs::symlink("nowhere", &gone).unwrap();
    let inputs: Vec<&Path> = inputs.iter().map(PathBuf::as_path).collect();
    let output = dir.path().join("out");
    let mut options = PrepareOptions { skip_bad_documents: true, val_fraction: 0.5, ..options(&inputs, &output) };
    options.inputs.push(dir.path().join("g*.txt").display().to_string());
    let messages = Mutex::new(Vec::new());
    let manifest = prepare(&options, &record(&messages)).unwrap().manifest;
    assert_eq!(manifest.skipped_documents, 5);
    let listed = fs::read_to_string(output.join("skipped.jsonl")).unwrap();
    assert_eq!((listed.lines().count(), messages.lock().unwrap().len()), (5, 5));
    for reason in [
        "a.jsonl line 2",
        "b.txt is not UTF-8",
        "c.parquet (16 bytes)",
        "d.jsonl.zst at line",
        "gone.txt: No such file",
    ] {
        assert!(listed.contains(reason), "{reason}: {listed}");
    }
    assert!(manifest.sources[4].sha256.is_some() && manifest.sources[5].sha256.is_none());
    options.skip_bad_documents = false;
    options.output = dir.path().join("strict");
    assert!(refused(&options).contains("gone.txt: No such file"));
}

#[test]
fn file_that_changes_while_it_is_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("a.jsonl"), dir.path().join("out"));
    fs::write(&input, corpus(30, 1)).unwrap();
    let error = prepare(&options(&[&input], &output), &|_| {
        let mut file = fs::OpenOptions::new().append(true).open(&input).unwrap();
        file.write_all(b"{\"text\": \"more\"}\n").unwrap();
    })
    .unwrap_err();
    assert!(format!("{error:#}").contains("a.jsonl changed while it was read"), "{error:#}");
    assert!(!output.exists());
}
