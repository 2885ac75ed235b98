//! On the files that `tests/fixtures/import/make.py` wrote with torch, and on broken ones.

use std::fs;
use std::path::{Path, PathBuf};

use tch::Kind as Type;

use super::pickle::Pickle;
use super::*;
use crate::layers::ForwardOptions;
use crate::safetensors::{read_tensors, write_tensors};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/import").join(name)
}

fn expected() -> BTreeMap<String, Tensor> {
    read_tensors(&fixture("expected.safetensors")).unwrap()
}

fn error_of(path: &Path) -> String {
    format!("{:#}", import(path, None).map(|_| ()).unwrap_err())
}

/// A folder with a fixture's config.json, changed.
fn folder_with(config: &str, change: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(fixture(config).join(CONFIG_FILE)).unwrap();
    let mut json = serde_json::from_str(&text).unwrap();
    change(&mut json);
    fs::write(folder.path().join(CONFIG_FILE), json.to_string()).unwrap();
    folder
}

#[track_caller]
fn assert_gives(model: &LanguageModel, which: &str) {
    let expected = expected();
    let logits = tch::no_grad(|| model.logits(&expected["ids"], ForwardOptions::evaluation()));
    let difference = (logits - &expected[which]).abs().max().double_value(&[]);
    assert!(difference < 1e-5, "{which}: {difference}");
}

/// The same tensors bit for bit, and none besides.
#[track_caller]
fn assert_same_tensors(model: &LanguageModel, seen_as: impl Fn(&str, &Tensor) -> Tensor) {
    let expected = expected();
    let mut count = 0;
    for (name, tensor) in model.parameters().iter() {
        assert_eq!(*tensor, seen_as(name, &expected[name]), "{name}");
        count += 1;
    }
    assert_eq!(count, expected.keys().filter(|name| name.starts_with("backpack.")).count());
}

#[test]
fn a_pytorch_bin_with_views_aliases_and_masks_gives_its_tensors() {
    let imported = import(&fixture("bin"), None).unwrap();
    assert_same_tensors(&imported.model, |_, tensor| tensor.shallow_clone());
    assert_gives(&imported.model, "backpack_logits");
    assert_eq!(imported.notes, ["left out 4 causal-mask buffers, which are no weights"]);
}

#[test]
fn shards_of_half_precision_become_fp32() {
    let imported = import(&fixture("sharded_bin"), None).unwrap();
    let index = fs::read_to_string(fixture("sharded_bin/pytorch_model.bin.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_same_tensors(&imported.model, |name, tensor| {
        let first = index["weight_map"][name].as_str().unwrap().contains("00001-of");
        tensor.to_kind(if first { Type::Half } else { Type::BFloat16 }).to_kind(Type::Float)
    });
}

#[test]
fn safetensors_in_one_file_and_in_shards_give_their_tensors() {
    let tensors: Vec<(String, Tensor)> =
        expected().into_iter().filter(|(name, _)| name.starts_with("backpack.")).collect();
    let folder = folder_with("bin", |_| {});
    let write = |file: &str, of: &[(String, Tensor)]| {
        write_tensors(&folder.path().join(file), of.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
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
        fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
    };
    index(&map);
    assert_same_tensors(&import(folder.path(), None).unwrap().model, |_, tensor| tensor.shallow_clone());
    // What the index has wrong.
    map.insert("lm_head.weight".into(), "b.safetensors".into());
    index(&map);
    assert!(error_of(folder.path()).contains("tensor lm_head.weight is not in b.safetensors"));
    map.insert("lm_head.weight".into(), "../b.safetensors".into());
    index(&map);
    assert!(error_of(folder.path()).contains("\"../b.safetensors\", which is not a file of this folder"));
    write("model.safetensors", &tensors);
    assert_same_tensors(&import(folder.path(), None).unwrap().model, |_, tensor| tensor.shallow_clone());
}

/// A library that stores a tied weight once may keep any of its names.
#[test]
fn a_tied_weight_is_found_under_any_of_its_names_and_its_copies_must_agree() {
    let folder = folder_with("bin", |_| {});
    let path = folder.path().join("model.safetensors");
    let mut tensors = expected();
    tensors.retain(|name, _| name.starts_with("backpack."));
    let wte = tensors.remove("backpack.gpt2_model.wte.weight").unwrap();
    tensors.insert("lm_head.weight".into(), wte.copy());
    let write = |tensors: &BTreeMap<String, Tensor>| {
        write_tensors(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
    };
    write(&tensors);
    assert_same_tensors(&import(folder.path(), None).unwrap().model, |_, tensor| tensor.shallow_clone());
    tensors.insert("backpack.word_embeddings.weight".into(), wte + 1e-6);
    write(&tensors);
    let error = error_of(folder.path());
    assert!(error.contains("tensors backpack.word_embeddings.weight and lm_head.weight differ"), "{error}");
}

#[test]
fn a_gpt2_comes_with_and_without_prefix() {
    let imported = import(&fixture("gpt2"), None).unwrap();
    assert_eq!(imported.model.config().architecture, config::Architecture::Gpt2);
    assert_gives(&imported.model, "gpt2_logits");
    let folder = folder_with("gpt2", |_| {});
    crate::save_folder(&imported.model, folder.path()).unwrap();
    assert_gives(&import(folder.path(), None).unwrap().model, "gpt2_logits");
}

#[test]
fn the_authors_checkpoints_give_the_same_tensors() {
    let imported = import(&fixture("lightning/plain.ckpt"), None).unwrap();
    assert_same_tensors(&imported.model, |_, tensor| tensor.shallow_clone());
    assert_gives(&imported.model, "backpack_logits");
    let notes =
        ["n_head 2, from its hyper_parameters", "left out 1 of state_dict's entries, which are not the model's"];
    for (note, start) in imported.notes.iter().zip(notes) {
        assert!(note.starts_with(start), "{note}");
    }
    let config = imported.model.config();
    let sizes = (config.n_embd, config.n_layer, config.num_senses, config.sense_intermediate_scale, config.n_inner);
    assert_eq!((sizes, config.dropout), ((8, 2, 4, 2, None), 0.0));
    assert_gives(&import(&fixture("lightning/gpt2.ckpt"), None).unwrap().model, "gpt2_logits");
}

#[test]
fn hyper_parameters_that_are_no_plain_containers_are_asked_for() {
    let path = fixture("lightning/opaque.ckpt");
    let error = error_of(&path);
    assert!(error.contains("n_embd 8 is no published size: give it with --n-head"), "{error}");
    let imported = import(&path, Some(2)).unwrap();
    assert_same_tensors(&imported.model, |_, tensor| tensor.shallow_clone());
    assert!(imported.notes[0].starts_with("scale_attn_by_inverse_layer_idx true"), "{:?}", imported.notes);
    let error = format!("{:#}", import(&path, Some(3)).map(|_| ()).unwrap_err());
    assert!(error.contains("n_embd 8 does not divide into n_head 3 heads"), "{error}");
    let error = format!("{:#}", import(&fixture("bin"), Some(2)).map(|_| ()).unwrap_err());
    assert!(error.starts_with("--n-head is for a .ckpt"), "{error}");
}

#[test]
fn pickles_with_code_are_refused_by_name() {
    for (name, want) in [
        ("evil", "it names posix.system, which runs code"),
        ("evil/callbacks.ckpt", "it names posix.system, which runs code"),
        ("evil/opaque_state.ckpt", "lm_head.weight is an object of argparse.Namespace, which is not read here"),
        ("evil/old_format.ckpt", "torch before 1.6"),
    ] {
        let error = error_of(&fixture(name));
        assert!(error.contains(want), "{name}: {error}");
    }
    // Harmless or not: a file of weights holds nothing else.
    let folder = folder_with("bin", |_| {});
    fs::copy(fixture("lightning/plain.ckpt"), folder.path().join("pytorch_model.bin")).unwrap();
    let error = error_of(folder.path());
    assert!(error.contains("it names pathlib.PosixPath: weights are tensors"), "{error}");
}

#[test]
fn what_does_not_belong_together_is_named() {
    let path = |folder: &tempfile::TempDir| {
        fs::copy(fixture("bin/pytorch_model.bin"), folder.path().join("pytorch_model.bin")).unwrap();
        error_of(folder.path())
    };
    let remove =
        |key: &'static str| move |json: &mut serde_json::Value| drop(json.as_object_mut().unwrap().remove(key));
    let error = path(&folder_with("bin", remove("num_senses")));
    assert!(error.contains("config.json is not usable: key num_senses is missing"), "{error}");
    let error = path(&folder_with("gpt2", remove("architectures")));
    assert!(error.contains("has no num_senses and describes a GPT-2"), "{error}");
    let error = path(&folder_with("bin", |json| json["n_positions"] = 7.into()));
    assert!(error.contains("wpe.weight has shape [6, 8], but config.json asks for [7, 8]"), "{error}");
    let error = path(&folder_with("bin", |json| json["n_layer"] = 1.into()));
    assert!(error.contains("tensor backpack.gpt2_model.h.1.attn.c_attn.bias is not part of this model"), "{error}");
    let error = path(&folder_with("bin", |json| json["n_layer"] = 3.into()));
    assert!(error.contains("tensor backpack.gpt2_model.h.2.ln_1.weight is missing"), "{error}");
    let empty = folder_with("bin", |_| {});
    assert!(error_of(empty.path()).contains("holds no weights: one of model.safetensors"));
    fs::write(empty.path().join("pytorch_model.bin"), "<html>").unwrap();
    assert!(error_of(empty.path()).contains("it does not begin as a file of torch.save"));
    assert!(error_of(&fixture("expected.safetensors")).contains("one file of a Hugging Face folder"));
    assert!(error_of(&fixture("bin/pytorch_model.bin")).contains("without a state_dict"));
    assert!(error_of(&fixture("nowhere")).contains("does not exist"));
}

#[test]
fn broken_weights_are_refused_by_name() {
    for bad in [f64::NAN, f64::INFINITY] {
        let folder = folder_with("bin", |_| {});
        let mut tensors = expected();
        tensors.retain(|name, _| name.starts_with("backpack."));
        let _ = tensors.get_mut("backpack.sense_network.ln.bias").unwrap().get(3).fill_(bad);
        let path = folder.path().join("model.safetensors");
        write_tensors(&path, tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))).unwrap();
        let error = error_of(folder.path());
        assert!(error.contains("tensor backpack.sense_network.ln.bias holds NaN or infinity"), "{error}");
    }
}

/// A name and its bytes.
type TestEntry = (String, Vec<u8>);

/// A stored zip archive with check sums of 0, which torch may write: what is changed in it
/// reaches the pickle and the tensors.
fn zip_of(entries: &[TestEntry]) -> Vec<u8> {
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

fn entries_of(path: &Path) -> Vec<TestEntry> {
    let mut archive = zip::Archive::open(path).unwrap();
    let names: Vec<String> = archive.names().map(str::to_owned).collect();
    names.into_iter().map(|name| (name.clone(), archive.read(&name).unwrap())).collect()
}

#[test]
fn archives_that_lie_are_refused() {
    let path = fixture("lightning/plain.ckpt");
    let entries = entries_of(&path);
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("x.ckpt");
    let error_with = |change: &dyn Fn(&mut Vec<TestEntry>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        fs::write(&copy, zip_of(&entries)).unwrap();
        error_of(&copy)
    };
    fs::write(&copy, zip_of(&entries)).unwrap();
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
    assert!(error.contains("is there twice"), "{error}");
    // Two entries that claim the same bytes.
    let mut bytes = zip_of(&[("x/a".into(), vec![0; 1000]), ("x/b".into(), vec![0; 1000])]);
    let place = bytes.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap() + 42;
    bytes[place..place + 4].fill(0);
    bytes[place - 22..place - 14].copy_from_slice(&[0xd0, 7, 0, 0, 0xd0, 7, 0, 0]);
    fs::write(&copy, &bytes).unwrap();
    assert!(error_of(&copy).contains("its entries claim more bytes than"), "{}", error_of(&copy));
    // One flipped bit of a weight is found by torch's check sum.
    let mut bytes = fs::read(&path).unwrap();
    let place = bytes.windows(6).position(|w| w == b"data/0").unwrap() + 200;
    bytes[place] ^= 1;
    fs::write(&copy, &bytes).unwrap();
    assert!(error_of(&copy).contains("its check sum is wrong"), "{}", error_of(&copy));
    bytes.truncate(bytes.len() / 2);
    fs::write(&copy, &bytes).unwrap();
    assert!(error_of(&copy).contains("the file is cut short"));
}

#[test]
fn hostile_pickles_end_in_an_error() {
    let parse = |bytes: &[u8]| Pickle::parse(bytes).map(|_| ()).map_err(|e| format!("{e:#}"));
    // Nesting of any depth, a container within itself, a text that claims 2^64 - 1 bytes.
    let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat();
    parse(&deep).unwrap();
    parse(b"]q\x00h\x00a.").unwrap();
    assert!(parse(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff").unwrap_err().contains("where 0 are left"));
    for (bytes, want) in [
        (&b""[..], "where 0 are left"),
        (b".", "its stack is empty"),
        (b"h\x07.", "memo 7, which was never put"),
        (b"t.", "no mark"),
        (b"K\x01K\x01R.", "it calls what is no function"),
        (b"(K\x01d.", "a key without a value"),
        (b"K\x01K\x01a.", "what is no list"),
        (b"cbuiltins\neval\n.", "builtins.eval"),
        (b"\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"ccollections\nOrderedDict\nK\x01\x85R.", "OrderedDict with 1 arguments"),
        (b"i__main__\nX\n.", "instruction 0x69 is not one"),
    ] {
        let error = parse(bytes).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
}

/// Neither a panic nor a crash, whatever is changed: only a model or an error.
#[test]
fn thousands_of_mutations_end_in_a_model_or_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = 1u64;
    let mut random = |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as usize) % below
    };
    let original = fs::read(fixture("lightning/plain.ckpt")).unwrap();
    let entries = entries_of(&fixture("lightning/plain.ckpt"));
    let pickle = entries.iter().position(|(name, _)| name.ends_with("data.pkl")).unwrap();
    let mut accepted = 0;
    for round in 0..6_000 {
        // The pickle alone, within an archive without check sums, or the file as it is,
        // its table of contents first of all.
        let mut mutant = entries.clone();
        let mut bytes = original.clone();
        for _ in 0..=random(3) {
            let target = if round % 2 == 0 { &mut mutant[pickle].1 } else { &mut bytes };
            let from = if round % 4 == 1 { target.len() - target.len() / 5 } else { 0 };
            let place = from + random(target.len() - from);
            match random(4) {
                0 => target[place] = random(256) as u8,
                1 => target[place] ^= 1 << random(8),
                2 => drop(target.remove(place)),
                _ => target.insert(place, random(256) as u8),
            }
        }
        // A new name each time: writing over a file waits for the disk.
        let copy = folder.path().join(format!("{round}.ckpt"));
        fs::write(&copy, if round % 2 == 0 { zip_of(&mutant) } else { bytes }).unwrap();
        accepted += usize::from(import(&copy, Some(2)).is_ok());
        fs::remove_file(&copy).unwrap();
    }
    assert!(accepted > 100, "{accepted}: the mutations are too harsh to reach anything");
}
