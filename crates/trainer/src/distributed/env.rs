//! Reading of the environment variables that launchers set.

use std::io::IsTerminal;
use std::str::FromStr;

use anyhow::{Context, Result};

/// The environment variables of this process, or those that a test provides.
pub(crate) struct Environment<'a>(&'a dyn Fn(&str) -> Option<String>);

impl<'a> Environment<'a> {
    /// Creates an environment from a function that returns the value of a variable.
    pub(crate) fn new(variable: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Environment(variable)
    }

    /// Returns the text of a variable. An empty variable counts as unset.
    pub(crate) fn text(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|text| !text.is_empty())
    }

    /// Returns a variable as a whole number.
    ///
    /// # Errors
    /// Names the variable if its value is not a whole number of type `T`.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let number = self.text(name).map(|text| {
            let number = text.trim().parse().ok();
            number.with_context(|| format!("the environment variable {name} is \"{text}\": it must be a whole number"))
        });
        number.transpose()
    }
}

/// Returns the value of an environment variable of this process.
pub(crate) fn process_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Returns whether standard input is a terminal.
pub(crate) fn on_terminal() -> bool {
    std::io::stdin().is_terminal()
}

/// Returns an environment for a test from `NAME=value` pairs that are separated by blanks.
#[cfg(test)]
pub(crate) fn test_variables(pairs: &str) -> impl Fn(&str) -> Option<String> {
    move |name| {
        let mut pairs = pairs.split(' ').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned())
    }
}
