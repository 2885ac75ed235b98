//! The commands of the documents, and the help texts, against the arguments as they are.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::{Cli, Command};

#[path = "../../../tests/documented.rs"]
mod documented;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The command lines of a block, those that go on after a backslash joined.
fn lines(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    joined
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// Words as a shell parts them: quotes hold together, `$(...)` too; what follows `#`, `>`, `|` is
/// not the command's.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut depth) = (Vec::new(), String::new(), None, 0);
    for character in line.chars() {
        match (character, quote) {
            (c, Some(q)) if c == q && depth == 0 => quote = None,
            ('\'' | '"', None) => quote = Some(character),
            ('#' | '>' | '|' | '&', None) if word.is_empty() => break,
            (c, None) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => {
                depth += i32::from(c == '(') - i32::from(c == ')');
                word.push(c);
            }
        }
    }
    words.extend(Some(word).filter(|word| !word.is_empty()));
    words
}

/// The arguments of `backpack` in a command line, where it is one of it.
fn arguments(line: &str) -> Option<Vec<String>> {
    let mut words = words(line);
    let start = words.iter().position(|word| word == "backpack" || word.ends_with("/backpack") || word == "cargo")?;
    let given = words.split_off(start);
    if given[0] != "cargo" {
        return Some(given[1..].to_vec());
    }
    let program = given.get(1).filter(|sub| *sub == "run")?;
    let dashes = given.iter().position(|word| word == "--").unwrap_or_else(|| panic!("{program} without --: {line}"));
    Some(given[dashes + 1..].to_vec())
}

fn parse(arguments: &[String]) -> Result<(), String> {
    let given = std::iter::once("backpack".to_owned()).chain(arguments.iter().cloned());
    match Cli::try_parse_from(given) {
        Ok(Cli { command: Command::Launch(_) }) => {
            let dashes = arguments.iter().position(|word| word == "--").unwrap();
            parse(&arguments[dashes + 1..])
        }
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Why tests/documentation.rs may leave a block to others.
const REASONS: [&str; 5] = ["needs a GPU", "needs a cluster", "needs the network", "takes minutes", "run by "];

#[test]
fn every_command_of_the_documents_is_one() {
    let mut found = 0;
    for block in documented::blocks(&root()) {
        if let Some(reason) = &block.not_run {
            let known = REASONS.iter().any(|start| reason.starts_with(start));
            assert!(known, "{}:{}: \"{reason}\" is none of {REASONS:?}", block.file.display(), block.line);
        }
        for line in lines(&block.text) {
            if let Some(arguments) = arguments(&line) {
                parse(&arguments)
                    .unwrap_or_else(|error| panic!("{}:{}: {line}\n{error}", block.file.display(), block.line));
                found += 1;
            }
        }
    }
    assert!(found > 20, "{found} commands in README.md and docs/");
}

/// Spans of code in the text: `backpack train --resume auto` names a command and flags of it.
#[test]
fn every_flag_that_the_text_names_is_one() {
    let command = Cli::command();
    let mut found = 0;
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|file| file.unwrap().path());
    for file in docs.chain([root().join("README.md")]).filter(|file| file.is_file()) {
        let text = std::fs::read_to_string(&file).unwrap();
        for span in text.split('`').skip(1).step_by(2) {
            let Some(rest) = span.strip_prefix("backpack ") else { continue };
            let words: Vec<&str> = rest.split_whitespace().collect();
            let Some(name) = words.first().filter(|name| name.chars().all(|c| c.is_lowercase() || c == '-')) else {
                continue;
            };
            let mut sub = command.find_subcommand(name).unwrap_or_else(|| panic!("{}: `{span}`", file.display()));
            let mut rest = words.iter().skip(1).peekable();
            while let Some(below) = rest.peek().and_then(|word| sub.find_subcommand(word)) {
                (sub, _) = (below, rest.next());
            }
            let own = rest.take_while(|word| **word != "--");
            for flag in own.filter_map(|word| word.strip_prefix("--")) {
                let flag = flag.split('=').next().unwrap_or_default();
                let known = sub.get_arguments().any(|argument| argument.get_long() == Some(flag));
                assert!(known, "{}: `{span}`: --{flag} is no flag of {name}", file.display());
            }
            found += 1;
        }
    }
    assert!(found > 10, "{found} commands in the text");
}

/// Commands of commands too.
fn check_examples(command: &mut clap::Command, above: &[String]) {
    // `help` is clap's own.
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        let path = [above, &[sub.get_name().to_owned()]].concat();
        let (name, help) = (path.join(" "), sub.render_long_help().to_string());
        let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let (_, example) = flat.split_once("Example: ").unwrap_or_else(|| panic!("{name} has no example in its help"));
        let end = example.find(" Usage: ").unwrap_or(example.len());
        let arguments = arguments(&example[..end]).unwrap_or_else(|| panic!("{name}: {example}"));
        assert_eq!(arguments[..path.len()], path);
        parse(&arguments).unwrap_or_else(|error| panic!("{name}: {error}"));
        check_examples(sub, &path);
    }
}

#[test]
fn every_command_has_an_example_that_it_understands() {
    check_examples(&mut Cli::command(), &[]);
}

#[test]
fn a_line_is_parted_as_a_shell_does() {
    assert_eq!(words(r#"a --b 'c d' "$(ls e | tail)" > f"#), ["a", "--b", "c d", "$(ls e | tail)"]);
    assert_eq!(arguments("RANK=0 backpack train --config x # why").unwrap(), ["train", "--config", "x"]);
    assert_eq!(arguments("cargo run --release -- plan --json").unwrap(), ["plan", "--json"]);
    assert!(arguments("cargo build --release").is_none() && arguments("mkdir -p runs").is_none());
}
