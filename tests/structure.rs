//! Rules for the layout of the repository: imports, type names, module documentation, file sizes
//! and links of the documents.
//!
//! Each rule is a function over files in memory that returns the violations. It has two tests: one
//! on this repository and one on an example with a violation.
#![allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions

mod source_reader;

use std::collections::btree_map::{BTreeMap, Entry};
use std::collections::{BTreeSet, VecDeque};
use std::path::{Path, PathBuf};
use std::process::Command;

use source_reader::{ImportedPath, Source, Workspace};

const MAX_SOURCE_LINES: usize = 500;
/// Folders of `trainer` that may use the whole configuration.
const CONFIG_USERS: [&str; 6] = ["train", "plan", "status", "bench", "config", "lib"];

/// Text files of the repository by their path.
type Files = BTreeMap<String, String>;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// Returns the paths of all files in the repository that git does not ignore.
fn repository_paths() -> BTreeSet<String> {
    let mut git = Command::new("git");
    git.args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let output = git.output().unwrap();
    assert!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let paths = String::from_utf8(output.stdout).unwrap();
    paths.split_terminator('\0').filter(|path| root().join(path).exists()).map(str::to_owned).collect()
}

fn read_files(is_included: impl Fn(&str) -> bool) -> Files {
    let paths = repository_paths().into_iter().filter(|path| is_included(path));
    paths.map(|path| (path.clone(), std::fs::read_to_string(root().join(path)).unwrap())).collect()
}

/// Returns the files `crates/*/src/**/*.rs`.
fn sources() -> Vec<Source> {
    let files = read_files(|path| path.starts_with("crates/") && path.ends_with(".rs"));
    let source = |(path, text): (String, String)| {
        let (package, path) = path.strip_prefix("crates/")?.split_once("/src/")?;
        Some(Source { package: package.to_owned(), path: path.to_owned(), text })
    };
    let sources: Vec<Source> = files.into_iter().filter_map(source).collect();
    // With too few files, the rules would hold without checking anything.
    assert!(sources.len() > 150, "{} files", sources.len());
    sources
}

/// Returns the documents that users read.
fn documents() -> Files {
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"];
    read_files(|path| top.contains(&path) || (path.starts_with("docs/") && path.ends_with(".md")))
}

fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

/// Builds the sources of an example from pairs of `package/path` and text.
fn example(files: &[(&str, &str)]) -> Workspace {
    let source = |(path, text): &(&str, &str)| {
        let (package, path) = path.split_once('/').unwrap();
        Source { package: package.to_owned(), path: path.to_owned(), text: (*text).to_owned() }
    };
    Workspace::new(files.iter().map(source).collect())
}

// Import cycles.

/// Finds a shortest cycle through each file that is part of a cycle.
fn import_cycles(workspace: &Workspace) -> Vec<String> {
    let mut targets: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
    for ImportedPath { from, to, .. } in workspace.imports() {
        targets.entry(from).or_default().insert(to);
    }
    let mut cycles = BTreeMap::new();
    for &start in targets.keys() {
        let (mut previous, mut queue) = (BTreeMap::new(), VecDeque::from([start]));
        while let Some(file) = queue.pop_front() {
            for &to in targets.get(&file).into_iter().flatten() {
                if let Entry::Vacant(entry) = previous.entry(to) {
                    entry.insert(file);
                    queue.push_back(to);
                }
            }
        }
        let Some(&last) = previous.get(&start) else { continue };
        let mut cycle = vec![start, last];
        while cycle[cycle.len() - 1] != start {
            cycle.push(previous[&cycle[cycle.len() - 1]]);
        }
        cycle.reverse();
        let members: BTreeSet<usize> = cycle.iter().copied().collect();
        let paths: Vec<String> = cycle.iter().map(|&file| workspace.sources[file].path.clone()).collect();
        cycles.entry(members).or_insert(format!("{}: {}", workspace.sources[start].package, paths.join(" -> ")));
    }
    cycles.into_values().collect()
}

#[test]
fn sources_have_no_import_cycle() {
    let workspace = Workspace::new(sources());
    assert!(workspace.imports().len() > 300, "{} imports", workspace.imports().len());
    assert_none(&import_cycles(&workspace));
}

#[test]
fn import_cycle_is_found() {
    let workspace = example(&[
        ("x/lib.rs", "mod a; mod b; mod c; pub use a::A;"),
        ("x/a.rs", "pub struct A(crate::b::B);"),
        ("x/b.rs", "use crate::c::C; pub struct B; fn f() { C::new() }"),
        // `crate::A` is re-exported from a.rs.
        ("x/c.rs", "use crate::A; pub struct C;"),
    ]);
    assert_eq!(import_cycles(&workspace), ["x: a.rs -> b.rs -> c.rs -> a.rs"]);
}

#[test]
fn imports_of_tests_and_reexports_are_no_cycle() {
    let workspace = example(&[
        ("x/lib.rs", "mod a; mod b; pub use b::{B, f as g};"),
        ("x/a.rs", "pub struct A; #[cfg(test)] mod tests { use crate::b::B; } #[cfg(test)] mod more;"),
        ("x/a/more.rs", "use crate::b::B;"),
        ("x/b.rs", "use super::a::{self, A}; pub(in crate::a) struct B; pub fn f() -> a::A { A }"),
    ]);
    assert_eq!(import_cycles(&workspace), [""; 0]);
    assert_eq!(workspace.imports().len(), 1);
}

#[test]
fn every_declaration_of_a_name_is_an_import() {
    let workspace = example(&[
        ("x/lib.rs", "mod a; mod b; mod c;"),
        ("x/a.rs", "fn f() { use crate::b::T as _; } fn g() { use crate::c::T as _; }"),
        ("x/b.rs", "pub trait T {}"),
        ("x/c.rs", "pub trait T {}"),
    ]);
    let targets: Vec<&str> = workspace.imports().iter().map(|i| workspace.sources[i.to].path.as_str()).collect();
    assert_eq!(targets, ["b.rs", "c.rs"]);
}

/// `crate::a::new` comes from b.rs, although a method and a local function of a.rs have this name.
#[test]
fn methods_and_local_functions_are_no_items_of_a_module() {
    let workspace = example(&[
        ("x/lib.rs", "mod a; mod b; mod c;"),
        ("x/a.rs", "pub use crate::b::*; struct A; impl A { fn new() {} } fn f() { fn new() {} }"),
        ("x/b.rs", "pub fn new() {}"),
        ("x/c.rs", "fn f() { crate::a::new() }"),
    ]);
    let imports = workspace.imports();
    let import = imports.iter().find(|i| workspace.sources[i.from].path == "c.rs").unwrap();
    assert_eq!((workspace.sources[import.to].path.as_str(), import.item.as_str()), ("b.rs", "new"));
}

// Order of the folders.

/// Reads the tables of docs/architecture.md that list the folders of each crate in their order.
fn folder_order(architecture: &str) -> BTreeMap<String, Vec<String>> {
    let start = architecture.find("\n## Folders of the crates\n").unwrap();
    let section = architecture[start + 1..].split("\n## ").next().unwrap();
    let crates = section.split("\n### ").skip(1).map(|text| {
        let (package, table) = text.split_once('\n').unwrap();
        let cells = table.lines().filter(|line| line.starts_with("| `")).filter_map(|line| line.split('|').nth(1));
        let names = cells.flat_map(|cell| cell.split(',')).map(|name| name.trim().trim_matches('`').to_owned());
        (package.trim().to_owned(), names.collect())
    });
    crates.collect()
}

/// The folder of a file, or the name of a file that is in no folder.
fn folder(path: &str) -> &str {
    path.split('/').next().unwrap().trim_end_matches(".rs")
}

fn order_violations(workspace: &Workspace, order: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let is_top = |name: &str| ["lib", "main"].contains(&name);
    // lib.rs and main.rs are last.
    let position = |source: &Source| {
        let name = folder(&source.path);
        let names = order.get(&source.package).map_or(&[] as &[String], Vec::as_slice);
        let position = names.iter().position(|entry| folder(entry.trim_end_matches('/')) == name);
        if is_top(name) { Some(usize::MAX) } else { position }
    };
    let missing = workspace.sources.iter().filter(|source| !workspace.is_test(source) && position(source).is_none());
    let missing: BTreeSet<String> =
        missing.map(|source| format!("{}: {} is not in its table", source.package, folder(&source.path))).collect();
    let mut violations: Vec<String> = missing.into_iter().collect();
    for ImportedPath { from, to, item } in workspace.imports() {
        let (from, to) = (&workspace.sources[from], &workspace.sources[to]);
        if position(from) < position(to) && position(from).is_some() {
            violations
                .push(format!("{}: {} imports {item} from {}, which comes later", from.package, from.path, to.path));
        }
    }
    violations
}

#[test]
fn folders_import_in_the_documented_order() {
    let architecture = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let order = folder_order(&architecture);
    assert_none(&order_violations(&Workspace::new(sources()), &order));
    let paths = repository_paths();
    for (package, names) in order {
        for name in names {
            let is_path =
                |path: &String| ["src/", ""].iter().any(|at| path.starts_with(&format!("crates/{package}/{at}{name}")));
            assert!(paths.iter().any(is_path), "docs/architecture.md lists {name} of {package}, which does not exist");
        }
    }
}

#[test]
fn import_against_the_order_is_found() {
    let table = "# A\n\n## Folders of the crates\n### x\n| folder | contents |\n|---|---|\n| `low.rs`, `mid/` | b |\n| `high/` | c |\n\n## Other\n";
    let order = folder_order(table);
    assert_eq!(order["x"], ["low.rs", "mid/", "high/"]);
    let workspace = example(&[
        ("x/lib.rs", "mod high; mod mid; mod low; mod new; use low::Low; pub struct X(Low);"),
        ("x/high/mod.rs", "use crate::mid::Mid; pub struct High;"),
        ("x/mid/mod.rs", "pub struct Mid; mod part;"),
        ("x/mid/part.rs", "use super::super::high::High;"),
        ("x/low.rs", "use crate::X; pub struct Low; pub(crate) use crate::high::High;"),
        ("x/new.rs", ""),
    ]);
    let expected = [
        "x: new is not in its table",
        "x: mid/part.rs imports High from high/mod.rs, which comes later",
        "x: low.rs imports X from lib.rs, which comes later",
        "x: low.rs imports High from high/mod.rs, which comes later",
    ];
    assert_eq!(order_violations(&workspace, &order), expected);
}

// Users of the whole configuration.

fn config_violations(workspace: &Workspace) -> Vec<String> {
    let is_config = |import: &&ImportedPath| {
        let (from, to) = (&workspace.sources[import.from], &workspace.sources[import.to]);
        let is_name = ["Config", "*"].contains(&import.item.as_str());
        from.package == "trainer"
            && folder(&to.path) == "config"
            && is_name
            && !CONFIG_USERS.contains(&folder(&from.path))
    };
    let imports = workspace.imports();
    let files = imports.iter().filter(is_config).map(|import| &workspace.sources[import.from]);
    files.map(|source| format!("{} uses config::Config", source.full_path())).collect()
}

#[test]
fn only_commands_use_the_whole_config() {
    assert_none(&config_violations(&Workspace::new(sources())));
}

#[test]
fn use_of_the_whole_config_is_found() {
    let workspace = example(&[
        ("trainer/lib.rs", "pub mod config; mod data; mod train; pub use config::Config;"),
        ("trainer/config/mod.rs", "pub struct Config; pub fn read() {}"),
        ("trainer/data/mod.rs", "fn open(config: &crate::Config) { crate::config::read() }"),
        ("trainer/train/mod.rs", "use crate::config::Config;"),
    ]);
    assert_eq!(config_violations(&workspace), ["crates/trainer/src/data/mod.rs uses config::Config"]);
}

// Names of types.

fn shared_type_names(workspace: &Workspace) -> Vec<String> {
    let mut files: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, path) in workspace.types() {
        files.entry(name).or_default().push(path);
    }
    let shared = files.iter().filter(|(_, files)| files.len() > 1);
    shared.map(|(name, files)| format!("{name}: {}", files.join(", "))).collect()
}

#[test]
fn type_names_are_unique() {
    assert_none(&shared_type_names(&Workspace::new(sources())));
}

#[test]
fn shared_type_name_is_found() {
    let workspace = example(&[
        (
            "x/lib.rs",
            "struct A; enum B {} impl Iterator for A { type Item = u8; } trait T { type Item; } union U { a: u8 }",
        ),
        (
            "y/lib.rs",
            "fn f() { type A = u8; } struct Item; #[cfg(test)] mod tests { struct B; } trait U { fn union() {} }",
        ),
    ]);
    let expected = ["A: crates/x/src/lib.rs, crates/y/src/lib.rs", "U: crates/x/src/lib.rs, crates/y/src/lib.rs"];
    assert_eq!(shared_type_names(&workspace), expected);
}

// Size and documentation of source files.

fn file_violations(sources: &[Source]) -> Vec<String> {
    let mut violations = Vec::new();
    for source in sources {
        let lines = source.text.lines().count();
        if lines > MAX_SOURCE_LINES {
            violations.push(format!("{} has {lines} lines, more than {MAX_SOURCE_LINES}", source.full_path()));
        }
        let name = source.path.rsplit('/').next().unwrap();
        if ["mod.rs", "lib.rs", "main.rs"].contains(&name) && !source.text.starts_with("//!") {
            violations.push(format!("{} does not start with a comment `//!`", source.full_path()));
        }
    }
    violations
}

#[test]
fn sources_are_short_and_modules_are_documented() {
    assert_none(&file_violations(&sources()));
}

#[test]
fn long_source_and_undocumented_module_are_found() {
    let workspace = example(&[
        ("x/lib.rs", "//! A crate.\n"),
        ("x/a/mod.rs", "mod b;\n"),
        ("x/a/b.rs", &"\n".repeat(501)),
        ("x/a/c.rs", &"\n".repeat(500)),
    ]);
    let expected = [
        "crates/x/src/a/mod.rs does not start with a comment `//!`",
        "crates/x/src/a/b.rs has 501 lines, more than 500",
    ];
    assert_eq!(file_violations(&workspace.sources), expected);
}

// Links of the documents.

/// Returns the lines of a document that are not code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence && !line.starts_with("    ")
    })
}

/// Returns the anchors of the headings as GitHub generates them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let headings = prose(text).filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| {
        let kept = heading.to_lowercase().replace(' ', "-");
        let kept: String = kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect();
        let count = counts.entry(kept.clone()).or_default();
        *count += 1;
        if *count == 1 { kept } else { format!("{kept}-{}", *count - 1) }
    };
    headings.map(anchor).collect()
}

/// Returns the targets of links, images and definitions of reference links. Lines that are indented
/// by four spaces are code, so links in nested lists are not found.
fn link_targets(text: &str) -> Vec<String> {
    let prose: String = prose(text).map(|line| format!("{line}\n")).collect();
    // Every second part of a paragraph is between backticks. Code spans do not cross paragraphs.
    let plain: String = prose.split("\n\n").flat_map(|paragraph| paragraph.split('`').step_by(2)).collect();
    let definition = |line: &&str| line.starts_with('[') && !line.starts_with("[^");
    let definitions = prose.lines().filter(definition).filter_map(|line| Some(line.split_once("]: ")?.1));
    let inline = plain.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let html = ["href=\"", "src=\""].into_iter().flat_map(|start| plain.split(start).skip(1));
    let html = html.filter_map(|rest| rest.split('"').next());
    inline
        .chain(html)
        .chain(definitions)
        .map(|target| target.split(' ').next().unwrap_or_default().to_owned())
        .collect()
}

/// Resolves a relative path from the directory of a document.
fn join(document: &str, target: &str) -> String {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => (),
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

fn broken_links(documents: &Files, paths: &BTreeSet<String>) -> Vec<String> {
    let mut broken = Vec::new();
    for (document, text) in documents {
        for target in link_targets(text) {
            let (path, anchor) = target.split_once('#').unwrap_or((&target, ""));
            if path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            let file = if path.is_empty() { document.clone() } else { join(document, path) };
            let is_directory =
                paths.iter().any(|other| Path::new(other).ancestors().skip(1).any(|dir| dir == Path::new(&file)));
            let has_anchor = || documents.get(&file).is_none_or(|text| anchors(text).contains(anchor));
            if !paths.contains(&file) && !is_directory || !anchor.is_empty() && !has_anchor() {
                broken.push(format!("{document} links to {target}, which does not exist"));
            }
        }
    }
    broken
}

#[test]
fn links_of_documents_resolve() {
    let documents = documents();
    assert!(documents.len() > 10, "{}", documents.len());
    assert_none(&broken_links(&documents, &repository_paths()));
}

#[test]
fn broken_link_is_found() {
    let readme = "# Title\n[a](docs/a.md#two-words) [b](docs/b.md) ![c](docs/c.svg) [d](https://x.org/y) [e](#title) [f](docs/)\n`[g](g.md)`\n    [h](h.md)\n\nAn odd ` backtick.\n\n[i](i.md) and [j][k].\n\n[k]: k.md\n";
    let a = "## Two `words`!\n## Two words\n[back](../README.md#no-title) [here](#two-words-1) [b](b.md)\n```\n# no heading\n```\n";
    let documents = Files::from([("README.md", readme), ("docs/a.md", a)].map(|(p, t)| (p.to_owned(), t.to_owned())));
    let paths = ["README.md", "docs/a.md", "docs/c.svg"].map(str::to_owned).into();
    let expected = [
        "README.md links to docs/b.md",
        "README.md links to i.md",
        "README.md links to k.md",
        "docs/a.md links to ../README.md#no-title",
        "docs/a.md links to b.md",
    ];
    assert_eq!(broken_links(&documents, &paths), expected.map(|text| format!("{text}, which does not exist")));
}

// Source files that the documents name.

/// Finds names of Rust files in code spans that are not the end of a path in the repository.
fn missing_sources(documents: &Files, paths: &BTreeSet<String>) -> Vec<String> {
    let mut missing = Vec::new();
    for (document, text) in documents {
        let spans = prose(text).flat_map(|line| line.split('`').skip(1).step_by(2));
        // `NAME.rs` is a placeholder.
        for name in spans.filter(|span| span.ends_with(".rs") && !span.ends_with("NAME.rs") && !span.contains('*')) {
            if !paths.iter().any(|path| Path::new(path).ends_with(name)) {
                missing.push(format!("{document} names {name}, which does not exist"));
            }
        }
    }
    missing
}

#[test]
fn sources_in_documents_exist() {
    assert_none(&missing_sources(&documents(), &repository_paths()));
}

#[test]
fn missing_source_is_found() {
    let text = "`x/src/a.rs` and `a.rs`, not `b.rs`, `y/src/a.rs` or `src/NAME.rs`; b.rs\n";
    let documents = Files::from([("README.md".to_owned(), text.to_owned())]);
    let paths = ["crates/x/src/a.rs".to_owned()].into();
    let expected = ["b.rs", "y/src/a.rs"].map(|name| format!("README.md names {name}, which does not exist"));
    assert_eq!(missing_sources(&documents, &paths), expected);
}
