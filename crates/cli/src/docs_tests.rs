//! Tests that the commands of the documentation and of the help texts have valid arguments.

use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::{Cli, Command};

#[path = "../../../tests/documented.rs"]
mod documented;

/// Directories whose Markdown files are checked. Commands of docs/measurements are parsed, not run.
const DIRECTORIES: [&str; 2] = ["docs", "docs/measurements"];

/// The repository root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The command lines of a block. Lines that end with a backslash are joined with the next one.
fn lines(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    joined
        .lines()
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .collect()
}

/// Splits a line into words as a shell does. Quoted text and `$(...)` are one word. A comment,
/// redirection or pipe ends the command.
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

/// The arguments of `backpack`, if the line is a command of it.
fn arguments(line: &str) -> Option<Vec<String>> {
    let mut words = words(line);
    let start = words.iter().position(|word| word == "backpack" || word.ends_with("/backpack") || word == "cargo")?;
    let command = words.split_off(start);
    if command[0] != "cargo" {
        return Some(command[1..].to_vec());
    }
    command.get(1).filter(|subcommand| *subcommand == "run")?;
    let dashes = command.iter().position(|word| word == "--").unwrap_or_else(|| panic!("cargo run without --: {line}"));
    Some(command[dashes + 1..].to_vec())
}

/// Parses the arguments, and those of the command that `launch` starts.
fn parse(arguments: &[String]) -> Result<(), String> {
    let command = std::iter::once("backpack".to_owned()).chain(arguments.iter().cloned());
    match Cli::try_parse_from(command) {
        Ok(Cli { command: Command::Launch(_) }) => {
            let dashes = arguments.iter().position(|word| word == "--").unwrap();
            parse(&arguments[dashes + 1..])
        }
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// Beginnings of the accepted reasons not to run a block in tests/documentation.rs.
const REASONS: [&str; 5] = ["needs a GPU", "needs a cluster", "needs the network", "takes minutes", "run by "];

#[test]
fn documented_commands_have_valid_arguments() {
    let mut found = 0;
    for block in documented::blocks(&root(), &DIRECTORIES) {
        if let Some(reason) = &block.not_run {
            let known = REASONS.iter().any(|start| reason.starts_with(start));
            assert!(known, "{}:{}: \"{reason}\" is not one of {REASONS:?}", block.file.display(), block.line);
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

/// Checks code spans such as `backpack train --resume auto`.
#[test]
fn code_spans_name_existing_commands_and_flags() {
    let command = Cli::command();
    let mut found = 0;
    for file in documented::files(&root(), &DIRECTORIES) {
        let text = std::fs::read_to_string(&file).unwrap();
        for span in text.split('`').skip(1).step_by(2) {
            let Some(rest) = span.strip_prefix("backpack ") else { continue };
            let words: Vec<&str> = rest.split_whitespace().collect();
            let Some(name) = words.first().filter(|name| name.chars().all(|c| c.is_lowercase() || c == '-')) else {
                continue;
            };
            let mut sub = command.find_subcommand(name).unwrap_or_else(|| panic!("{}: `{span}`", file.display()));
            let mut rest = words.iter().skip(1).peekable();
            while let Some(nested) = rest.peek().and_then(|word| sub.find_subcommand(word)) {
                (sub, _) = (nested, rest.next());
            }
            let flags = rest.take_while(|word| **word != "--");
            for flag in flags.filter_map(|word| word.strip_prefix("--")) {
                let flag = flag.split('=').next().unwrap_or_default();
                let known = sub.get_arguments().any(|argument| argument.get_long() == Some(flag));
                assert!(known, "{}: `{span}`: {name} has no flag --{flag}", file.display());
            }
            found += 1;
        }
    }
    assert!(found > 10, "{found} commands in the text");
}

/// Checks the examples of all subcommands of `command`, whose path is `parents`.
fn check_examples(command: &mut clap::Command, parents: &[String]) {
    // clap adds `help`.
    for sub in command.get_subcommands_mut().filter(|sub| sub.get_name() != "help") {
        let path = [parents, &[sub.get_name().to_owned()]].concat();
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
fn examples_of_help_texts_have_valid_arguments() {
    check_examples(&mut Cli::command(), &[]);
}

#[test]
fn lines_are_split_as_a_shell_does() {
    assert_eq!(words(r#"a --b 'c d' "$(ls e | tail)" > f"#), ["a", "--b", "c d", "$(ls e | tail)"]);
    assert_eq!(arguments("RANK=0 backpack train --config x # why").unwrap(), ["train", "--config", "x"]);
    assert_eq!(arguments("cargo run --release -- plan --json").unwrap(), ["plan", "--json"]);
    assert!(arguments("cargo build --release").is_none() && arguments("mkdir -p runs").is_none());
}
