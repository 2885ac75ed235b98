//! Comparison of docs/config.md with the configuration keys, and loading of the shipped
//! configurations.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

use std::collections::BTreeMap;
use std::path::PathBuf;

use trainer::Config;

/// Returns the keys in the tables of the sections as `section.key`, with the default from the
/// second column.
fn documented() -> BTreeMap<String, String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/config.md");
    let (mut section, mut found) = (String::new(), BTreeMap::new());
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or_default().to_owned();
        }
        // Other parts of the page have tables about several keys.
        if section.is_empty() {
            continue;
        }
        let mut cells = line.split('|').map(|cell| cell.trim().trim_matches('`').to_owned());
        if let (Some(""), Some(key), Some(default)) = (cells.next().as_deref(), cells.next(), cells.next())
            && line.starts_with("| `")
        {
            found.insert(format!("{section}.{key}"), default);
        }
    }
    found
}

#[test]
fn every_key_is_documented_with_its_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.toml");
    std::fs::write(&file, "[data]\npath = 'x'\n").unwrap();
    let resolved: toml::Table = Config::load(&file, &[]).unwrap().to_toml().unwrap().parse().unwrap();
    let mut documented = documented();
    // These keys have no default value.
    for name in ["model.n_inner", "model.sense_block_inner", "checkpoint.init_from"] {
        assert_eq!(documented.remove(name).as_deref(), Some("none"));
    }
    for (section, keys) in &resolved {
        for (key, value) in keys.as_table().unwrap() {
            let name = format!("{section}.{key}");
            let default = documented.remove(&name).unwrap_or_else(|| panic!("docs/config.md has no key {name}"));
            if name != "data.path" {
                let default: toml::Table = format!("value = {default}").parse().unwrap();
                assert_eq!(default["value"], *value, "{name}");
            }
        }
    }
    assert!(documented.is_empty(), "docs/config.md contains unknown keys: {documented:?}");
}

/// The expected numbers of parameters are those of the paper.
#[test]
fn shipped_configurations_have_the_sizes_of_the_paper() {
    let configs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    for (name, parameters) in [
        ("owt/micro", 41_659_776),
        ("owt/mini", 103_856_000),
        ("owt/small", 170_083_584),
        ("owt/gpt2-micro", 30_145_536),
        ("owt/gpt2-mini", 71_886_080),
        ("owt/gpt2-small", 124_051_968),
    ] {
        let config = Config::load(&configs.join(format!("{name}.toml")), &[]).unwrap();
        assert_eq!(config.model.num_parameters(), parameters, "{name}");
        assert_eq!((config.batch.tokens_per_step, config.schedule.max_steps), (524_288, 100_000), "{name}");
    }
    Config::load(&configs.join("quickstart.toml"), &[]).unwrap();
    // The ablations of the paper train the mini model for 50,000 steps with a smaller sense
    // network.
    for (name, senses) in [("1", 1), ("4", 4), ("16", 16), ("64", 64)] {
        let config = Config::load(&configs.join(format!("owt/ablations/mini-{name}-senses.toml")), &[]).unwrap();
        assert_eq!((config.model.n_embd, config.model.num_senses, config.schedule.max_steps), (640, senses, 50_000));
        assert_eq!((config.model.sense_intermediate_scale, config.model.sense_block_size()), (1, 640));
    }
}
