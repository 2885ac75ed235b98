//! `backpack import` on files that `tests/fixtures/import/make.py` wrote with torch.

use std::fs;
use std::path::{Path, PathBuf};

use model::read_tensors;

use crate::support::{Scratch, backpack, file_names, fixture as model_fixture, root};

fn fixture(name: &str) -> String {
    root().join("tests/fixtures/import").join(name).to_str().unwrap().to_owned()
}

#[test]
fn imported_models_match_torch_and_export_identical_bytes() {
    let scratch = Scratch::new();
    let expected = read_tensors(fixture("expected.safetensors").as_ref()).unwrap();
    let ids: Vec<i64> = Vec::try_from(expected["ids"].get(0)).unwrap();
    let ids = ids.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
    let same = ["bin", "lightning/plain.ckpt", "lightning/opaque.ckpt"];
    let mut weights = Vec::new();
    for (i, input) in same.iter().chain(&["gpt2", "lightning/gpt2.ckpt"]).enumerate() {
        let (input, output, dump) =
            (fixture(input), scratch.path_str(&format!("m{i}")), scratch.path_str("dump.safetensors"));
        let mut arguments = vec!["import", "--input", &input, "--output", &output];
        if input.ends_with("opaque.ckpt") {
            let error = backpack(&arguments).error();
            assert!(error.contains("give it with --n-head"), "{error}");
            arguments.extend(["--n-head", "2"]);
        }
        let printed = backpack(&arguments).expect(0).stdout;
        assert!(printed.contains("n_embd 8, n_head 2, n_layer 2"), "{printed}");
        backpack(&["dump", "--model", &output, "--ids", &ids, "--output", &dump]).expect(0);
        let logits = &read_tensors(dump.as_ref()).unwrap()["logits"];
        let want = &expected[if input.contains("gpt2") { "gpt2_logits" } else { "backpack_logits" }];
        let difference = (logits - want.get(0)).abs().max().double_value(&[]);
        assert!(difference < 1e-5, "{input}: {difference}");
        // An existing directory is not overwritten.
        assert!(backpack(&arguments).error().contains(" is not empty: choose a new directory"));
        let exported = scratch.path(&format!("e{i}"));
        backpack(&["export", "--checkpoint", &output, "--output", exported.to_str().unwrap()]).expect(0);
        let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        if i >= same.len() {
            // Export folds the attention scale into the weights of a GPT-2; the logits are the
            // same.
            let exported = exported.to_str().unwrap();
            backpack(&["dump", "--model", exported, "--ids", &ids, "--output", &dump]).expect(0);
            let folded = &read_tensors(dump.as_ref()).unwrap()["logits"];
            assert!((folded - want.get(0)).abs().max().double_value(&[]) < 1e-5);
        } else {
            assert!(bytes(output.as_ref()) == bytes(&exported), "{input}");
        }
        weights.push(bytes(&exported));
    }
    assert!(weights[..same.len()].iter().all(|bytes| *bytes == weights[0]), "the three files have the same weights");
}

#[test]
fn import_copies_only_tokenizer_files() {
    let scratch = Scratch::new();
    let input = scratch.path("input");
    fs::create_dir(&input).unwrap();
    for name in ["config.json", "pytorch_model.bin"] {
        fs::copy(PathBuf::from(fixture("bin")).join(name), input.join(name)).unwrap();
    }
    for name in ["tokenizer.json", "vocab.json", "merges.txt", "generation_config.json", "modeling.py"] {
        fs::write(input.join(name), name).unwrap();
    }
    let (input, output) = (scratch.path_str("input"), scratch.path("output"));
    let arguments = ["import", "--input", &input, "--output", output.to_str().unwrap()];
    let printed = backpack(&arguments).expect(0).stdout;
    assert!(printed.contains("copied tokenizer.json, vocab.json, merges.txt, generation_config.json"), "{printed}");
    let want =
        ["config.json", "generation_config.json", "merges.txt", "model.safetensors", "tokenizer.json", "vocab.json"];
    assert_eq!(file_names(&output), want);
    assert_eq!(fs::read_to_string(output.join("merges.txt")).unwrap(), "merges.txt");
}

#[test]
fn own_model_directories_are_imported_unchanged() {
    let scratch = Scratch::new();
    let (input, output) = (model_fixture("one_sense"), scratch.path("output"));
    let arguments = ["import", "--input", input.to_str().unwrap(), "--output", output.to_str().unwrap()];
    backpack(&arguments).expect(0);
    let tensors = |folder: &Path| read_tensors(&folder.join("model.safetensors")).unwrap();
    assert_eq!(tensors(&input), tensors(&output));
}

#[test]
fn a_rejected_file_writes_nothing_and_executes_nothing() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("out")).unwrap();
    for (input, want) in [
        ("evil", "posix.system, which runs code"),
        ("evil/callbacks.ckpt", "posix.system, which runs code"),
        ("evil/opaque_state.ckpt", "lm_head.weight is an object of argparse.Namespace"),
        ("evil/old_format.ckpt", "save it again with torch.save"),
        ("nowhere", "does not exist"),
    ] {
        let (input, output) = (fixture(input), scratch.path_str("out/model"));
        let finished = backpack(&["import", "--input", &input, "--output", &output]);
        assert!(!finished.stdout.contains("never be printed"));
        let error = finished.error();
        assert!(error.contains(want), "{error}");
        assert!(file_names(&scratch.path("out")).is_empty());
    }
}
