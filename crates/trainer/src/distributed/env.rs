//! The variables that launchers set, each read as what it must be.

use std::io::IsTerminal;
use std::str::FromStr;

use anyhow::{Context, Result};

/// The environment of this process, or a test's.
pub(crate) struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl<'a> Environment<'a> {
    pub(crate) fn new(variable: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Environment(variable)
    }

    /// The variable's text; an empty one counts as unset.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|text| !text.is_empty())
    }

    /// The variable as a whole number.
    ///
    /// # Errors
    /// Naming the variable, when it is none.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let number = self.text(name).map(|text| {
            let number = text.trim().parse().ok();
            number.with_context(|| format!("the environment's {name} is \"{text}\": it must be a whole number"))
        });
        number.transpose()
    }
}

/// The variable of this process.
pub(crate) fn own(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns whether standard input is a terminal.
pub(crate) fn on_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// An environment for tests, from `NAME=value` with blanks between.
#[cfg(test)]
pub(crate) fn given(pairs: &str) -> impl Fn(&str) -> Option<String> {
    move |name| {
        let mut pairs = pairs.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    }
}
