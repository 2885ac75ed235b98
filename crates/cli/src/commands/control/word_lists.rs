//! Words and prompts: those that the project ships, which are in the program, and the user's.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use evals::Tokenizer;
use model::LanguageModel;

macro_rules! shipped {
    ($path:literal) => {
        include_str!(concat!("../../../../../data/", $path))
    };
}

/// Topics by name.
const TOPICS: [(&str, &str); 6] = [
    ("family", shipped!("topics/family.txt")),
    ("law", shipped!("topics/law.txt")),
    ("money", shipped!("topics/money.txt")),
    ("music", shipped!("topics/music.txt")),
    ("sport", shipped!("topics/sport.txt")),
    ("war", shipped!("topics/war.txt")),
];
pub(super) const OCCUPATIONS: &str = shipped!("debias/occupations.txt");
pub(super) const TRAINING_PROMPTS: &str = shipped!("debias/train.txt");
pub(super) const TEST_PROMPTS: &str = shipped!("debias/test.txt");

/// The lines of a text that hold something, but those that begin with `#`.
pub(super) fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(str::to_owned).collect()
}

/// The lines of a file, or of what is shipped in its place.
///
/// # Errors
/// When it cannot be read, or holds none.
pub(super) fn lines_of(file: Option<&Path>, shipped: &str) -> Result<Vec<String>> {
    let Some(path) = file else { return Ok(lines(shipped)) };
    let text = fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let lines = lines(&text);
    ensure!(!lines.is_empty(), "{} is empty: it takes one word or prompt a line", path.display());
    Ok(lines)
}

/// The words of a topic that is shipped.
///
/// # Errors
/// When there is none of this name, with those that there are.
pub(super) fn topic(name: &str) -> Result<Vec<String>> {
    let Some((_, words)) = TOPICS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = TOPICS.iter().map(|(name, _)| *name).collect();
        bail!("there is no topic \"{name}\": there are {}; name a file of words with --words", names.join(", "))
    };
    Ok(lines(words))
}

/// Words by the first token of each, the paper's way: ids without doubles, and the words that are several tokens.
///
/// # Errors
/// Naming the word that the model's vocabulary lacks.
pub(super) fn first_tokens(
    words: &[String],
    tokenizer: &Tokenizer,
    model: &LanguageModel,
) -> Result<(Vec<i64>, Vec<String>)> {
    let (mut ids, mut cut) = (Vec::new(), Vec::new());
    for word in words {
        let tokens = tokenizer.encode(&format!(" {word}"))?;
        let first = *tokens.first().with_context(|| format!("\"{word}\" has no token"))?;
        check_token(word, first, model)?;
        if tokens.len() > 1 {
            cut.push(word.clone());
        }
        if !ids.contains(&first) {
            ids.push(first);
        }
    }
    Ok((ids, cut))
}

/// Refuses a word whose token the model lacks.
///
/// # Errors
/// Naming it.
pub(super) fn check_token(word: &str, id: i64, model: &LanguageModel) -> Result<()> {
    let num_tokens = model.config().tokenizer_vocab_size();
    ensure!(
        id < num_tokens,
        "\"{word}\" is token {id}, outside the model's vocabulary of {num_tokens}: name its own tokenizer with --tokenizer"
    );
    Ok(())
}

/// The id of a word that is one token of the model's.
///
/// # Errors
/// When it is several, or outside the vocabulary.
pub(super) fn word(word: &str, tokenizer: &Tokenizer, model: &LanguageModel) -> Result<i64> {
    let id = tokenizer.word_id(word)?;
    check_token(word, id, model)?;
    Ok(id)
}

/// A token's text, spaces and all.
pub(super) fn name(tokenizer: &Tokenizer, id: i64) -> String {
    tokenizer.decode(&[id]).unwrap_or_else(|_| id.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shipped_is_plain() {
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
