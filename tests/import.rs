//! `backpack import` on the files that `tests/fixtures/import/make.py` wrote with torch.

use std::fs;
use std::path::{Path, PathBuf};

use model::read_tensors;

use crate::support::{Scratch, backpack, fixture as model_fixture, root};

fn fixture(name: &str) -> String {
    root().join("tests/fixtures/import").join(name).to_str().unwrap().to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_imported_model_computes_what_torch_did_and_exports_the_same_bytes() {
    let scratch = Scratch::new();
    let expected = read_tensors(fixture("expected.safetensors").as_ref()).unwrap();
    let ids: Vec<i64> = Vec::try_from(expected["ids"].get(0)).unwrap();
    let ids = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let same = ["bin", "lightning/plain.ckpt", "lightning/opaque.ckpt"];
    let mut weights = Vec::new();
    for (i, input) in same.iter().chain(&["gpt2", "lightning/gpt2.ckpt"]).enumerate() {
        let (input, output, dump) = (fixture(input), scratch.text(&format!("m{i}")), scratch.text("dump.safetensors"));
        let mut arguments = vec!["import", "--input", &input, "--output", &output];
        if input.ends_with("opaque.ckpt") {
            let error = backpack(&arguments).error();
            assert!(error.contains("give it with --n-head"), "{error}");
            arguments.extend(["--n-head", "2"]);
        }
        let said = backpack(&arguments).expect(0).stdout;
        assert!(said.contains("n_embd 8, n_head 2, n_layer 2"), "{said}");
        backpack(&["dump", "--model", &output, "--ids", &ids, "--output", &dump]).expect(0);
        let logits = &read_tensors(dump.as_ref()).unwrap()["logits"];
        let want = &expected[if input.contains("gpt2") { "gpt2_logits" } else { "backpack_logits" }];
        let difference = (logits - want.get(0)).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{input}: {difference}");
        // A folder that is there is never written over.
        assert!(backpack(&arguments).error().contains("already holds something"));
        let exported = scratch.path(&format!("e{i}"));
        backpack(&["export", "--checkpoint", &output, "--output", exported.to_str().unwrap()]).expect(0);
        let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        if i >= same.len() {
            // A GPT-2 whose scale is folded in: other weights, the same logits.
            let exported = exported.to_str().unwrap();
            backpack(&["dump", "--model", exported, "--ids", &ids, "--output", &dump]).expect(0);
            let folded = &read_tensors(dump.as_ref()).unwrap()["logits"];
            assert!((folded - want.get(0)).abs().max().double_value(&[]) < 1e-5);
        } else {
            assert!(bytes(output.as_ref()) == bytes(&exported), "{input}");
        }
        weights.push(bytes(&exported));
    }
    assert!(weights[..same.len()].iter().all(|bytes| *bytes == weights[0]), "the three hold the same weights");
}

#[test]
fn tokenizer_files_come_along_and_nothing_else_does() {
    let scratch = Scratch::new();
    let input = scratch.path("input");
    fs::create_dir(&input).unwrap();
    for name in ["config.json", "pytorch_model.bin"] {
        fs::copy(PathBuf::from(fixture("bin")).join(name), input.join(name)).unwrap();
    }
    for name in ["tokenizer.json", "vocab.json", "merges.txt", "generation_config.json", "modeling.py"] {
        fs::write(input.join(name), name).unwrap();
    }
    let (input, output) = (scratch.text("input"), scratch.path("output"));
    let arguments = ["import", "--input", &input, "--output", output.to_str().unwrap()];
    let said = backpack(&arguments).expect(0).stdout;
    assert!(said.contains("copied tokenizer.json, vocab.json, merges.txt, generation_config.json"), "{said}");
    let want =
        ["config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json"];
    assert_eq!(names(&output), want);
    assert_eq!(fs::read_to_string(output.join("merges.txt")).unwrap(), "merges.txt");
}

#[test]
fn our_own_folders_are_imported_as_they_are() {
    let scratch = Scratch::new();
    let (input, output) = (model_fixture("one_sense"), scratch.path("output"));
    let arguments = ["import", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    backpack(&arguments).expect(0);
    let tensors = |folder: &Path| read_tensors(&folder.join("model.safetensors")).unwrap();
    assert_eq!(tensors(&input), tensors(&output));
}

#[test]
fn a_refused_file_leaves_nothing_and_runs_nothing() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("out")).unwrap();
    for (input, want) in [
        ("evil", "posix.system, which runs code"),
        ("evil/callbacks.ckpt", "posix.system, which runs code"),
        ("evil/opaque_state.ckpt", "lm_head.weight is an object of argparse.Namespace"),
        ("evil/old_format.ckpt", "save it again with torch.save"),
        ("nowhere", "does not exist"),
    ] {
        let (input, output) = (fixture(input), scratch.text("out/model"));
        let finished = backpack(&["import", "--input", &input, "--output", &output]);
        assert!(!finished.stdout.contains("never be printed"));
        let error = finished.error();
        assert!(error.contains(want), "{error}");
        assert!(names(&scratch.path("out")).is_empty());
    }
}
