//! Tests of the import, with files that `tests/fixtures/import/make.py` wrote with torch, and with
//! damaged ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use tch::{Kind, Tensor};

use super::pickle::Pickle;
use super::*;
use crate::config::Architecture;
use crate::ops::ForwardOptions;
use crate::safetensors::{read_tensors, write_tensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/import").join(name)
}

fn expected() -> BTreeMap<String, Tensor> {
    read_tensors(&fixture("expected.safetensors")).unwrap()
}

fn import_error(path: &Path) -> String {
    format!("{:#}", import(path, None).map(|_| ()).unwrap_err())
}

/// Creates a directory with the config.json of a fixture, after a change.
fn dir_with_config(config: &str, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(fixture(config).join(CONFIG_FILE)).unwrap();
    let mut json = serde_json::from_str(&text).unwrap();
    change(&mut json);
    fs::write(directory.path().join(CONFIG_FILE), json.to_string()).unwrap();
    directory
}

#[track_caller]
fn assert_logits(model: &LanguageModel, which: &str) {
    let expected = expected();
    let logits = tch::no_grad(|| model.logits(&expected["ids"], ForwardOptions::evaluation()));
    let difference = (logits - &expected[which]).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "{which}: {difference}");
}

/// Checks that the model has exactly the expected tensors, bit for bit, after `convert`.
#[track_caller]
fn assert_same_tensors(model: &LanguageModel, convert: impl Fn(&str, &Tensor) -> Tensor) {
    let expected = expected();
    let mut count = 0;
    for (name, tensor) in model.parameters().iter() {
        assert_eq!(*tensor, convert(name, &expected[name]), "{name}");
        count += 1;
    }
    assert_eq!(count, expected.keys().filter(|name| name.starts_with("backpack.")).count());
}

#[test]
fn pytorch_bin_with_views_aliases_and_masks_is_imported() {
    let imported = import(&fixture("bin"), None).unwrap();
    assert_same_tensors(&imported.model, |_, tensor| tensor.shallow_clone());
    assert_logits(&imported.model, "backpack_logits");
    assert_eq!(imported.notes, ["skipped 4 causal-mask buffers, which are not weights"]);
}

#[test]
fn half_precision_shards_become_fp32() {
    let imported = import(&fixture("sharded_bin"), None).unwrap();
    let index = fs::read_to_string(fixture("sharded_bin/pytorch_model.bin.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_same_tensors(&imported.model, |name, tensor| {
        let first = index["weight_map"][name].as_str().unwrap().contains("00001-of");
        tensor.to_kind(if first { Kind::Half } else { Kind::BFloat16 }).to_kind(Kind::Float)
    });
}

#[test]
fn safetensors_in_one_file_and_in_shards_are_imported() {
    let tensors: Vec<(String, Tensor)> =
        expected().into_iter().filter(|(name, _)| name.starts_with("backpack.")).collect();
    let directory = dir_with_config("bin", |_| {});
    let write = |file: &str, of: &[(String, Tensor)]| {
        write_tensors(&directory.path().join(file), of.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    };
    let (first, second) = tensors.split_at(11);
    write("a.safetensors", first);
    write("b.safetensors", second);
    let mut map = serde_json::Map::new();
    for (part, file) in [(first, "a.safetensors"), (second, "b.safetensors")] {
        map.extend(part.iter().map(|(name, _)| (name.clone(), file.into())));
    }
    let index = |map: &serde_json::Map<String, serde_json::Value>| {
        let text = serde_json::json!({ "weight_map": map }).to_string();
        fs::write(directory.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&map);
    assert_same_tensors(&import(directory.path(), None).unwrap().model, |_, tensor| tensor.shallow_clone());
    // Errors of the index.
    map.insert("lm_head.weight".into(), "b.safetensors".into());
    index(&map);
    assert!(import_error(directory.path()).contains("tensor lm_head.weight is not in b.safetensors"));
    map.insert("lm_head.weight".into(), "../b.safetensors".into());
    index(&map);
    assert!(import_error(directory.path()).contains("\"../b.safetensors\", which is not a file of this directory"));
    write("model.safetensors", &tensors);
    assert_same_tensors(&import(directory.path(), None).unwrap().model, |_, tensor| tensor.shallow_clone());
}

/// A library that stores a tied weight once may use any of its names.
#[test]
fn tied_weights_may_have_any_name_and_copies_must_be_equal() {
    let directory = dir_with_config("bin", |_| {});
    let path = directory.path().join("model.safetensors");
    let mut tensors = expected();
    tensors.retain(|name, _| name.starts_with("backpack."));
    let wte = tensors.remove("backpack.gpt2_model.wte.weight").unwrap();
    tensors.insert("lm_head.weight".into(), wte.copy());
    let write = |tensors: &BTreeMap<String, Tensor>| {
        write_tensors(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    };
    write(&tensors);
    assert_same_tensors(&import(directory.path(), None).unwrap().model, |_, tensor| tensor.shallow_clone());
    tensors.insert("backpack.word_embeddings.weight".into(), wte + 1e-6);
    write(&tensors);
    let error = import_error(directory.path());
    assert!(error.contains("tensors backpack.word_embeddings.weight and lm_head.weight differ"), "{error}");
}

#[test]
fn gpt2_is_imported_with_and_without_prefix() {
    let imported = import(&fixture("gpt2"), None).unwrap();
    assert_eq!(imported.model.config().architecture, Architecture::Gpt2);
    assert_logits(&imported.model, "gpt2_logits");
    let directory = dir_with_config("gpt2", |_| {});
    crate::save_model(&imported.model, directory.path()).unwrap();
    assert_logits(&import(directory.path(), None).unwrap().model, "gpt2_logits");
}

#[test]
fn checkpoints_of_the_authors_are_imported() {
    let imported = import(&fixture("lightning/plain.ckpt"), None).unwrap();
    assert_same_tensors(&imported.model, |_, tensor| tensor.shallow_clone());
    assert_logits(&imported.model, "backpack_logits");
    let notes = ["n_head 2, from its hyper_parameters", "skipped entries of state_dict that are not weights: 1 ("];
    assert_eq!(imported.notes.len(), notes.len(), "{:?}", imported.notes);
    for (note, start) in imported.notes.iter().zip(notes) {
        assert!(note.starts_with(start), "{note}");
    }
    let config = imported.model.config();
    let sizes = (config.n_embd, config.n_layer, config.num_senses, config.sense_intermediate_scale, config.n_inner);
    assert_eq!((sizes, config.dropout), ((8, 2, 4, 2, None), 0.0));
    assert_logits(&import(&fixture("lightning/gpt2.ckpt"), None).unwrap().model, "gpt2_logits");
}

#[test]
fn n_head_is_required_if_hyper_parameters_are_unreadable() {
    let path = fixture("lightning/opaque.ckpt");
    let error = import_error(&path);
    assert!(error.contains("n_embd 8 is not a published size; give it with --n-head"), "{error}");
    let imported = import(&path, Some(2)).unwrap();
    assert_same_tensors(&imported.model, |_, tensor| tensor.shallow_clone());
    assert!(imported.notes[0].starts_with("scale_attn_by_inverse_layer_idx true"), "{:?}", imported.notes);
    let error = format!("{:#}", import(&path, Some(3)).map(|_| ()).unwrap_err());
    assert!(error.contains("n_embd (8) must be a multiple of n_head (3)"), "{error}");
    let error = format!("{:#}", import(&fixture("bin"), Some(2)).map(|_| ()).unwrap_err());
    assert!(error.starts_with("--n-head is for a .ckpt"), "{error}");
}

#[test]
fn pickles_with_code_are_rejected_by_name() {
    for (name, want) in [
        ("evil", "it refers to posix.system, which runs code"),
        ("evil/callbacks.ckpt", "it refers to posix.system, which runs code"),
        ("evil/opaque_state.ckpt", "lm_head.weight is an object of argparse.Namespace, which is not supported"),
        ("evil/old_format.ckpt", "torch before 1.6"),
    ] {
        let error = import_error(&fixture(name));
        assert!(error.contains(want), "{name}: {error}");
    }
    // A file of weights must not contain other objects, even harmless ones.
    let directory = dir_with_config("bin", |_| {});
    fs::copy(fixture("lightning/plain.ckpt"), directory.path().join("pytorch_model.bin")).unwrap();
    let error = import_error(directory.path());
    assert!(error.contains("it refers to pathlib.PosixPath, which was not executed"), "{error}");
}

#[test]
fn mismatches_of_config_and_weights_are_named() {
    let path = |directory: &tempfile::TempDir| {
        fs::copy(fixture("bin/pytorch_model.bin"), directory.path().join("pytorch_model.bin")).unwrap();
        import_error(directory.path())
    };
    let remove =
        |key: &'static str| move |json: &mut serde_json::Value| drop(json.as_object_mut().unwrap().remove(key));
    let error = path(&dir_with_config("bin", remove("num_senses")));
    assert!(error.contains("config.json is not usable: key num_senses is missing"), "{error}");
    let error = path(&dir_with_config("gpt2", remove("architectures")));
    assert!(error.contains("has no num_senses and describes a GPT-2"), "{error}");
    let error = path(&dir_with_config("bin", |json| json["n_positions"] = 7.into()));
    assert!(error.contains("wpe.weight has shape [6, 8], but config.json requires [7, 8]"), "{error}");
    let error = path(&dir_with_config("bin", |json| json["n_layer"] = 1.into()));
    assert!(error.contains("tensor backpack.gpt2_model.h.1.attn.c_attn.bias is not part of this model"), "{error}");
    let error = path(&dir_with_config("bin", |json| json["n_layer"] = 3.into()));
    assert!(error.contains("tensor backpack.gpt2_model.h.2.ln_1.weight is missing"), "{error}");
    let empty = dir_with_config("bin", |_| {});
    assert!(import_error(empty.path()).contains("has no weights: it must have one of model.safetensors"));
    fs::write(empty.path().join("pytorch_model.bin"), "<html>").unwrap();
    assert!(import_error(empty.path()).contains("it does not begin like a file of torch.save"));
    assert!(import_error(&fixture("expected.safetensors")).contains("one file of a Hugging Face directory"));
    assert!(import_error(&fixture("bin/pytorch_model.bin")).contains("without a state_dict"));
    assert!(import_error(&fixture("nowhere")).contains("does not exist"));
}

#[test]
fn weights_that_are_not_finite_are_rejected_by_name() {
    for bad in [f64::NAN, f64::INFINITY] {
        let directory = dir_with_config("bin", |_| {});
        let mut tensors = expected();
        tensors.retain(|name, _| name.starts_with("backpack."));
        let _ = tensors.get_mut("backpack.sense_network.ln.bias").unwrap().get(3).fill_(bad);
        let path = directory.path().join("model.safetensors");
        write_tensors(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
        let error = import_error(directory.path());
        assert!(error.contains("tensor backpack.sense_network.ln.bias holds NaN or infinity"), "{error}");
    }
}

/// The name and the bytes of an entry.
type TestEntry = (String, Vec<u8>);

/// Creates an uncompressed zip archive with checksums of 0, which torch may write, so that changes
/// of the entries pass the checksum test.
fn zip_from(entries: &[TestEntry]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let header = file.len() as u32;
        let sizes = [(bytes.len() as u32).to_le_bytes(), (bytes.len() as u32).to_le_bytes()].concat();
        let length = (name.len() as u16).to_le_bytes();
        file.extend([b"PK\x03\x04".as_slice(), &[0; 14], &sizes, &length, &[0; 2], name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02".as_slice(), &[0; 16], &sizes, &length, &[0; 12]].concat());
        directory.extend([&header.to_le_bytes(), name.as_bytes()].concat());
    }
    let (offset, size) = (file.len() as u32, directory.len() as u32);
    file.extend(&directory);
    file.extend([b"PK\x05\x06".as_slice(), &[0; 8], &size.to_le_bytes(), &offset.to_le_bytes(), &[0; 2]].concat());
    file
}

fn read_entries(path: &Path) -> Vec<TestEntry> {
    let mut archive = zip::Archive::open(path).unwrap();
    let names: Vec<String> = archive.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), archive.read(&name).unwrap())).collect()
}

#[test]
fn invalid_archives_are_rejected() {
    let path = fixture("lightning/plain.ckpt");
    let entries = read_entries(&path);
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("x.ckpt");
    let error_with = |change: &dyn Fn(&mut Vec<TestEntry>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        fs::write(&copy, zip_from(&entries)).unwrap();
        import_error(&copy)
    };
    fs::write(&copy, zip_from(&entries)).unwrap();
    assert_same_tensors(&import(&copy, None).unwrap().model, |_, tensor| tensor.shallow_clone());
    let find = |entries: &[TestEntry], end: &str| entries.iter().position(|(n, _)| n.ends_with(end)).unwrap();
    let error = error_with(&|e| e[find(&entries, "byteorder")].1 = b"big".to_vec());
    assert!(error.contains("big-endian machine"), "{error}");
    let error = error_with(&|e| e[find(&entries, "data/0")].1.truncate(8));
    assert!(
        error.contains("tensor model.lm_head.weight cannot be read: its storage claims 104 values, but"),
        "{error}"
    );
    let error = error_with(&|e| drop(e.remove(find(&entries, "data/0"))));
    assert!(error.contains("data/0 is missing"), "{error}");
    let error = error_with(&|e| drop(e.remove(find(&entries, "data.pkl"))));
    assert!(error.contains("it has no data.pkl"), "{error}");
    let error = error_with(&|e| e.push(e[0].clone()));
    assert!(error.contains("appears twice"), "{error}");
    // Two entries with the same bytes.
    let mut bytes = zip_from(&[("x/a".into(), vec![0; 1000]), ("x/b".into(), vec![0; 1000])]);
    let offset = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap() + 42;
    bytes[offset..offset + 4].fill(0);
    bytes[offset - 22..offset - 14].copy_from_slice(&[0xd0, 7, 0, 0, 0xd0, 7, 0, 0]);
    fs::write(&copy, &bytes).unwrap();
    assert!(import_error(&copy).contains("its entries claim more bytes than"), "{}", import_error(&copy));
    // The checksum detects one flipped bit of a weight.
    let mut bytes = fs::read(&path).unwrap();
    let offset = bytes.windows(6).position(|w| w == b"data/0").unwrap() + 200;
    bytes[offset] ^= 1;
    fs::write(&copy, &bytes).unwrap();
    assert!(import_error(&copy).contains("its checksum is wrong"), "{}", import_error(&copy));
    bytes.truncate(bytes.len() / 2);
    fs::write(&copy, &bytes).unwrap();
    assert!(import_error(&copy).contains("the file is truncated"));
}

#[test]
fn hostile_pickles_are_errors() {
    let parse = |bytes: &[u8]| Pickle::parse(bytes).map(|_| ()).map_err(|e| format!("{e:#}"));
    // Deep nesting, a container that contains itself, and a text that claims 2^64 - 1 bytes.
    let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat();
    parse(&deep).unwrap();
    parse(b"]q\x00h\x00a.").unwrap();
    assert!(parse(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff").unwrap_err().contains("but 0 remain"));
    for (bytes, want) in [
        (&b""[..], "but 0 remain"),
        (b".", "its stack is empty"),
        (b"h\x07.", "memo 7, which does not exist"),
        (b"t.", "no open mark"),
        (b"K\x01K\x01R.", "it calls a value that is not a function"),
        (b"(K\x01d.", "a key without a value"),
        (b"K\x01K\x01a.", "a value that is not a list"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with 1 arguments"),
        (b"i__main__\nX\n.", "instruction 0x69 is not one"),
    ] {
        let error = parse(bytes).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
}

/// No change of a file causes a panic or a crash.
#[test]
fn mutated_files_give_a_model_or_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    let original = fs::read(fixture("lightning/plain.ckpt")).unwrap();
    let entries = read_entries(&fixture("lightning/plain.ckpt"));
    let pickle = entries.iter().position(|(name, _)| name.ends_with("data.pkl")).unwrap();
    let mut accepted = 0;
    for round in 0..6_000 {
        // Changes the pickle of an archive without checksums, or the whole file, or its end, where
        // the directory is.
        let mut mutant = entries.clone();
        let mut bytes = original.clone();
        for _ in 0..=random(3) {
            let target = if round % 2 == 0 { &mut mutant[pickle].1 } else { &mut bytes };
            let from = if round % 4 == 1 { target.len() - target.len() / 5 } else { 0 };
            let position = from + random(target.len() - from);
            match random(4) {
                0 => target[position] = random(256) as u8,
                1 => target[position] ^= 1 << random(8),
                2 => drop(target.remove(position)),
                _ => target.insert(position, random(256) as u8),
            }
        }
        // A new name each time, because overwriting a file waits for the disk.
        let copy = directory.path().join(format!("{round}.ckpt"));
        fs::write(&copy, if round % 2 == 0 { zip_from(&mutant) } else { bytes }).unwrap();
        accepted += usize::from(import(&copy, Some(2)).is_ok());
        fs::remove_file(&copy).unwrap();
    }
    assert!(accepted > 100, "only {accepted} files were accepted: the mutations are too strong to test much");
}
