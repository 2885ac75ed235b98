//! The rules of deny.toml that can be checked offline and without `cargo deny`: licenses and
//! sources of the dependencies.

use std::process::Command;

use serde_json::Value;

use crate::support::root;

/// Whether the allowed licenses satisfy an SPDX expression. `/` is the old notation of OR.
fn is_met(expression: &str, allowed: &[&str]) -> bool {
    let expression = expression.replace('/', " OR ");
    // No expression in Cargo.lock nests deeper than `(A OR B) AND C`.
    let all = expression.split(" AND ").map(|part| part.trim().trim_matches(['(', ')']));
    all.into_iter().all(|part| part.split(" OR ").any(|one| allowed.contains(&one.trim())))
}

#[test]
fn every_dependency_has_an_allowed_license_and_source() {
    let deny: toml::Table = std::fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let list = |section: &str, key: &str| -> Vec<String> {
        deny[section][key].as_array().unwrap().iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    let licenses = list("licenses", "allow");
    let allowed: Vec<&str> = licenses.iter().map(String::as_str).collect();
    let sources: Vec<String> = list("sources", "allow-registry").iter().map(|url| format!("registry+{url}")).collect();
    let target = deny["graph"]["targets"][0].as_str().unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap());
    cargo.args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", target]);
    let output = cargo.current_dir(root()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100);
    for package in packages {
        let (name, license) = (package["name"].as_str().unwrap(), package["license"].as_str().unwrap_or("none"));
        assert!(is_met(license, &allowed), "{name} is under {license}, which deny.toml does not allow");
        if let Some(source) = package["source"].as_str() {
            assert!(sources.iter().any(|known| known == source), "{name} comes from {source}");
        }
    }
}

#[test]
fn spdx_expressions_are_evaluated() {
    let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"];
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("MIT/GPL-3.0", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("Apache-2.0 WITH LLVM-exception OR GPL-2.0", true),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}
