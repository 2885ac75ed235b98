//! Lists of words and prompts: built-in lists and files of the user.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use evals::Tokenizer;
use model::LanguageModel;

macro_rules! built_in {
    ($path:literal) => {
        include_str!(concat!("../../../../../data/", $path))
    };
}

/// The built-in topics by name.
const TOPICS: [(&str, &str); 6] = [
    ("family", built_in!("topics/family.txt")),
    ("law", built_in!("topics/law.txt")),
    ("money", built_in!("topics/money.txt")),
    ("music", built_in!("topics/music.txt")),
    ("sport", built_in!("topics/sport.txt")),
    ("war", built_in!("topics/war.txt")),
];
/// The built-in occupations.
pub(super) const OCCUPATIONS: &str = built_in!("debias/occupations.txt");
/// The built-in training prompts.
pub(super) const TRAINING_PROMPTS: &str = built_in!("debias/train.txt");
/// The built-in test prompts.
pub(super) const TEST_PROMPTS: &str = built_in!("debias/test.txt");

/// Returns the lines that are neither empty nor comments (`#`).
pub(super) fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// Returns the lines of `file`, or of the built-in list if no file is given.
///
/// # Errors
/// If the file cannot be read, or has no lines.
pub(super) fn read_lines(file: Option<&Path>, built_in: &str) -> Result<Vec<String>> {
    let Some(path) = file else { return Ok(lines(built_in)) };
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = lines(&text);
    ensure!(!lines.is_empty(), "{} is empty: write one word or prompt per line", path.display());
    Ok(lines)
}

/// Returns the words of a built-in topic.
///
/// # Errors
/// If no built-in topic has this name. The error lists the names.
pub(super) fn topic(name: &str) -> Result<Vec<String>> {
    let Some((_, words)) = TOPICS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = TOPICS.iter().map(|(name, _)| *name).collect();
        bail!("unknown topic \"{name}\": choose one of {}, or give a file of words with --words", names.join(", "))
    };
    Ok(lines(words))
}

/// Returns the first token of each word, as the paper does, without duplicates; and the words that
/// have several tokens.
///
/// # Errors
/// If a word has no token, or its first token is outside the model's vocabulary; the error names
/// the word.
pub(super) fn first_tokens(
    words: &[String],
    tokenizer: &Tokenizer,
    model: &LanguageModel,
) -> Result<(Vec<i64>, Vec<String>)> {
    let (mut ids, mut several_tokens) = (Vec::new(), Vec::new());
    for word in words {
        let tokens = tokenizer.encode(&format!(" {word}"))?;
        let first = *tokens.first().with_context(|| format!("\"{word}\" has no token"))?;
        check_token(word, first, model)?;
        if tokens.len() > 1 {
            several_tokens.push(word.clone());
        }
        if !ids.contains(&first) {
            ids.push(first);
        }
    }
    Ok((ids, several_tokens))
}

/// Checks that a word's token is in the model's vocabulary.
///
/// # Errors
/// If the token is outside the vocabulary; the error names the word.
pub(super) fn check_token(word: &str, id: i64, model: &LanguageModel) -> Result<()> {
    let num_tokens = model.config().tokenizer_vocab_size();
    ensure!(
        id < num_tokens,
        "\"{word}\" is token {id}, outside the model's vocabulary of {num_tokens}: give the model's tokenizer with --tokenizer"
    );
    Ok(())
}

/// Returns the token id of a word that is a single token with a leading space.
///
/// # Errors
/// If the word has several tokens, or is outside the model's vocabulary.
pub(super) fn word_id(word: &str, tokenizer: &Tokenizer, model: &LanguageModel) -> Result<i64> {
    let id = tokenizer.word_id(word)?;
    check_token(word, id, model)?;
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_lists_are_well_formed() {
        for (name, _) in TOPICS {
            let words = topic(name).unwrap();
            assert!(words.len() >= 30 && words.iter().all(|w| w.chars().all(|c| c.is_ascii_lowercase())), "{name}");
        }
        for prompt in lines(TRAINING_PROMPTS).iter().chain(&lines(TEST_PROMPTS)) {
            assert!(prompt.contains(" {} "), "{prompt}");
        }
        assert!(lines(TRAINING_PROMPTS).iter().all(|prompt| !lines(TEST_PROMPTS).contains(prompt)));
        assert_eq!(lines("# why\n\n a \nb"), ["a", "b"]);
    }
}
