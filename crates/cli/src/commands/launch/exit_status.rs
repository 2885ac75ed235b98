//! The launcher's exit code and error message, from the exits of its ranks.

use std::time::Duration;

use signal_hook::low_level::signal_name;

use crate::exit::EXIT_STOPPED;

/// Time that the other ranks get after one has failed. They notice the failure at their next
/// collective, within milliseconds, and report it.
pub(crate) const TIMEOUT_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// Time that the other ranks get after one has exited without failure. They have passed their last
/// collective, and may still close files.
pub(crate) const TIMEOUT_AFTER_EXIT: Duration = Duration::from_secs(60);

/// How a rank exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildExit {
    /// The rank exited with this code.
    Code(u8),
    /// A signal killed the rank.
    Signal(i32),
    /// Killed by the launcher, because it still ran after another rank had exited.
    Killed,
}

impl ChildExit {
    /// Whether this is neither success nor a stop with a checkpoint saved.
    pub(crate) fn is_failure(self) -> bool {
        !matches!(self, ChildExit::Code(0 | EXIT_STOPPED))
    }

    fn describe(self) -> String {
        match self {
            ChildExit::Code(code) => format!("exited with code {code}"),
            ChildExit::Signal(9) => {
                "was killed by SIGKILL (if nobody sent it, the system was out of memory: see dmesg)".to_owned()
            }
            ChildExit::Signal(number) => match signal_name(number) {
                Some(name) => format!("was killed by {name}"),
                None => format!("was killed by signal {number}"),
            },
            ChildExit::Killed => "was killed by the launcher".to_owned(),
        }
    }
}

/// Returns the launcher's exit code and error message. `exits` lists the ranks in the order in
/// which they exited.
pub(crate) fn summarize(exits: &[(usize, ChildExit)]) -> (u8, Option<String>) {
    let count = exits.len();
    let killed = exits.iter().filter(|(_, exit)| *exit == ChildExit::Killed);
    let killed: Vec<String> = killed.map(|(rank, _)| rank.to_string()).collect();
    let describe_killed = |timeout: Duration| {
        let (plural, was) = if killed.len() == 1 { ("", "was") } else { ("s", "were") };
        format!("rank{plural} {} still ran {} s later and {was} killed", killed.join(", "), timeout.as_secs())
    };
    let first_failure = exits.iter().find(|(_, exit)| exit.is_failure() && *exit != ChildExit::Killed);
    if let Some(&(rank, exit)) = first_failure {
        let code = match exit {
            ChildExit::Code(code) => code,
            ChildExit::Signal(number) => 128u8.saturating_add(number.unsigned_abs() as u8),
            ChildExit::Killed => 1,
        };
        let others =
            if killed.is_empty() { String::new() } else { format!("; {}", describe_killed(TIMEOUT_AFTER_FAILURE)) };
        return (code, Some(format!("rank {rank} of {count} {}{others}", exit.describe())));
    }
    let Some(&(first, exit)) = exits.first() else {
        return (0, None);
    };
    let what = exit.describe();
    if !killed.is_empty() {
        return (1, Some(format!("rank {first} of {count} {what}; {}", describe_killed(TIMEOUT_AFTER_EXIT))));
    }
    match (exit, exits.iter().find(|(_, other)| *other != exit)) {
        (ChildExit::Code(code), None) => (code, None),
        (_, other) => {
            let other = other.map(|(rank, exit)| format!(", but rank {rank} {}", exit.describe())).unwrap_or_default();
            (1, Some(format!("rank {first} of {count} {what}{other}: all ranks should exit alike")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(exits: &[(usize, ChildExit)], code: u8, message: Option<&str>) {
        let (found, text) = summarize(exits);
        assert_eq!((found, text.as_deref()), (code, message));
    }

    #[test]
    fn a_common_exit_code_is_returned() {
        check(&[(1, ChildExit::Code(0)), (0, ChildExit::Code(0))], 0, None);
        check(&[(0, ChildExit::Code(85)), (1, ChildExit::Code(85))], 85, None);
    }

    #[test]
    fn the_first_failure_is_reported() {
        check(&[(1, ChildExit::Code(1)), (0, ChildExit::Code(1))], 1, Some("rank 1 of 2 exited with code 1"));
        check(&[(0, ChildExit::Code(85)), (1, ChildExit::Code(7))], 7, Some("rank 1 of 2 exited with code 7"));
        check(&[(0, ChildExit::Signal(11)), (1, ChildExit::Code(1))], 139, Some("rank 0 of 2 was killed by SIGSEGV"));
        check(
            &[(2, ChildExit::Signal(9)), (0, ChildExit::Killed), (1, ChildExit::Killed)],
            137,
            Some(
                "rank 2 of 3 was killed by SIGKILL (if nobody sent it, the system was out of memory: see dmesg); ranks 0, 1 still ran 5 s later and were killed",
            ),
        );
    }

    #[test]
    fn different_exits_are_a_failure() {
        check(
            &[(0, ChildExit::Code(0)), (1, ChildExit::Killed)],
            1,
            Some("rank 0 of 2 exited with code 0; rank 1 still ran 60 s later and was killed"),
        );
        check(
            &[(1, ChildExit::Code(85)), (0, ChildExit::Code(0))],
            1,
            Some("rank 1 of 2 exited with code 85, but rank 0 exited with code 0: all ranks should exit alike"),
        );
    }
}
