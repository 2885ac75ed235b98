//! What the ends of several ranks mean for the launcher: its exit code and its last line.

use std::time::Duration;

use signal_hook::low_level::signal_name;

use crate::STOPPED;

/// After one has failed, the others see it at their next collective, within milliseconds,
/// and say so; then they are ended.
pub(crate) const GRACE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// After one is done or has stopped, the others are through with their last collective, and
/// may have files to close.
pub(crate) const GRACE_AFTER_END: Duration = Duration::from_secs(60);

/// How a rank ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChildExit {
    Code(u8),
    Signal(i32),
    /// By the launcher, since it did not end with the others.
    Killed,
}

impl ChildExit {
    pub(crate) fn is_failure(self) -> bool {
        !matches!(self, ChildExit::Code(0 | STOPPED))
    }

    fn says(self) -> String {
        match self {
            ChildExit::Code(code) => format!("ended with exit code {code}"),
            ChildExit::Signal(9) => {
                "was ended by SIGKILL (where nobody sent it, the system was short of memory: see dmesg)".to_owned()
            }
            ChildExit::Signal(number) => match signal_name(number) {
                Some(name) => format!("was ended by {name}"),
                None => format!("was ended by signal {number}"),
            },
            ChildExit::Killed => "was ended by the launcher".to_owned(),
        }
    }
}

/// Exit code and error of ranks that ended so, in this order.
pub(crate) fn verdict(ends: &[(usize, ChildExit)]) -> (u8, Option<String>) {
    let count = ends.len();
    let late: Vec<String> =
        ends.iter().filter(|(_, end)| *end == ChildExit::Killed).map(|(rank, _)| rank.to_string()).collect();
    let late = |grace: Duration| {
        let plural = if late.len() == 1 { "" } else { "s" };
        let was = if late.len() == 1 { "was" } else { "were" };
        format!("rank{plural} {} still ran {} s later and {was} killed", late.join(", "), grace.as_secs())
    };
    let any_late = ends.iter().any(|(_, end)| *end == ChildExit::Killed);
    let first_failed = ends.iter().find(|(_, end)| end.is_failure() && *end != ChildExit::Killed);
    if let Some(&(rank, end)) = first_failed {
        let code = match end {
            ChildExit::Code(code) => code,
            ChildExit::Signal(number) => 128u8.saturating_add(number.unsigned_abs() as u8),
            ChildExit::Killed => 1,
        };
        let rest = if any_late { format!("; {}", late(GRACE_AFTER_FAILURE)) } else { String::new() };
        return (code, Some(format!("rank {rank} of {count} {}{rest}", end.says())));
    }
    let Some(&(first, end)) = ends.first() else {
        return (0, None);
    };
    if any_late {
        return (1, Some(format!("rank {first} of {count} {}; {}", end.says(), late(GRACE_AFTER_END))));
    }
    match (end, ends.iter().find(|(_, other)| *other != end)) {
        (ChildExit::Code(code), None) => (code, None),
        (_, other) => {
            let other = other.map(|(rank, end)| format!(", but rank {rank} {}", end.says())).unwrap_or_default();
            (1, Some(format!("rank {first} of {count} {}{other}: all should end alike", end.says())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn gives(ends: &[(usize, ChildExit)], code: u8, says: Option<&str>) {
        let (found, text) = verdict(ends);
        assert_eq!((found, text.as_deref()), (code, says));
    }

    #[test]
    fn ranks_that_end_alike_give_their_code() {
        gives(&[(1, ChildExit::Code(0)), (0, ChildExit::Code(0))], 0, None);
        gives(&[(0, ChildExit::Code(85)), (1, ChildExit::Code(85))], 85, None);
    }

    #[test]
    fn the_first_failure_is_told() {
        gives(&[(1, ChildExit::Code(1)), (0, ChildExit::Code(1))], 1, Some("rank 1 of 2 ended with exit code 1"));
        gives(&[(0, ChildExit::Code(85)), (1, ChildExit::Code(7))], 7, Some("rank 1 of 2 ended with exit code 7"));
        gives(&[(0, ChildExit::Signal(11)), (1, ChildExit::Code(1))], 139, Some("rank 0 of 2 was ended by SIGSEGV"));
        gives(
            &[(2, ChildExit::Signal(9)), (0, ChildExit::Killed), (1, ChildExit::Killed)],
            137,
            Some(
                "rank 2 of 3 was ended by SIGKILL (where nobody sent it, the system was short of memory: see dmesg); ranks 0, 1 still ran 5 s later and were killed",
            ),
        );
    }

    #[test]
    fn ranks_that_do_not_end_alike_have_failed() {
        gives(
            &[(0, ChildExit::Code(0)), (1, ChildExit::Killed)],
            1,
            Some("rank 0 of 2 ended with exit code 0; rank 1 still ran 60 s later and was killed"),
        );
        gives(
            &[(1, ChildExit::Code(85)), (0, ChildExit::Code(0))],
            1,
            Some("rank 1 of 2 ended with exit code 85, but rank 0 ended with exit code 0: all should end alike"),
        );
    }
}
