//! What a failed collective operation says of the other ranks.

use crate::error::first_line;

/// Why a collective operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// A connection is closed: another rank has ended, or its machine.
    PeerGone,
    /// No answer in time: another rank hangs, or cannot be reached.
    TimedOut,
    /// Something else, this process's own fault included.
    Other,
}

/// Sorts an error's text: this crate's, or one that tch gave for the backward pass.
pub fn failure(message: &str) -> Failure {
    let any = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
    if any(&["Application timeout", "Timed out", "timed out", "Timeout", "timeout"]) {
        Failure::TimedOut
    } else if any(&["Connection closed", "Connection reset", "Connection was", "Broken pipe", "Socket closed"]) {
        Failure::PeerGone
    } else {
        Failure::Other
    }
}

/// What Gloo says of the network, in words for a user: its own name the line of its source
/// where it noticed, and send the reader to other logs. `None` for other messages.
pub(crate) fn worded(message: &str) -> Option<String> {
    let line = first_line(message);
    // `[/path/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:6808: Connection ...`
    let said = line.split_once("/gloo/")?.1.split_once("] ")?.1;
    let said = said.split(". ").next().unwrap_or(said);
    match failure(said) {
        Failure::PeerGone => Some(format!(
            "the connection to another rank broke ({said}): that rank or its machine has ended; what it said last tells why"
        )),
        Failure::TimedOut => Some(format!(
            "another rank did not answer ({said}): it hangs, it is slower than the time allowed, or its machine cannot be reached"
        )),
        Failure::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESET: &str = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:6808: Connection reset by peer. This is typically caused by a remote worker hanging or bugs in the application.";
    const SLOW: &str = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1500ms for recv operation to complete";

    #[test]
    fn messages_are_sorted_before_and_after_they_are_worded() {
        for (message, kind) in [
            (RESET, Failure::PeerGone),
            (SLOW, Failure::TimedOut),
            ("[/a/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:4711", Failure::PeerGone),
            ("[/a/gloo/pair.cc:1] Application timeout caused pair closure", Failure::TimedOut),
        ] {
            assert_eq!(failure(message), kind, "{message}");
            assert_eq!(failure(&worded(message).unwrap()), kind, "{message}");
        }
        assert_eq!(failure("mat1 and mat2 shapes cannot be multiplied"), Failure::Other);
        assert_eq!(failure("Failed to recv, got 0 bytes. Connection was likely closed."), Failure::PeerGone);
    }

    #[test]
    fn the_wording_keeps_the_address_and_the_cause() {
        assert_eq!(
            worded(&format!("Internal torch error: {RESET}\nframe #0 ...")).unwrap(),
            "the connection to another rank broke (Read error [10.0.0.2]:6808: Connection reset by peer): that rank or its machine has ended; what it said last tells why"
        );
        assert!(worded(SLOW).unwrap().contains("(Timed out waiting 1500ms for recv operation to complete)"));
        assert_eq!(worded("mat1 and mat2 shapes cannot be multiplied"), None);
    }
}
