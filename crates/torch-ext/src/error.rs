//! The error type, messages of libtorch in one line, and helpers for calls into C++.

use std::ffi::{CStr, CString, c_char};
use std::fmt;

use tch::Tensor;
use torch_sys::C_tensor;

/// Why a call failed, in one line: the message of libtorch without its backtrace, or a message of
/// this crate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error(pub(crate) String);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Error {}

/// Converts errors of tch, including those of a backward pass.
impl From<tch::TchError> for Error {
    fn from(error: tch::TchError) -> Self {
        Error::from_libtorch(&error.to_string())
    }
}

impl Error {
    pub(crate) fn from_libtorch(message: &str) -> Self {
        Error(explain_network_error(message).unwrap_or_else(|| format!("libtorch: {}", first_line(message))))
    }
}

/// Returns the first line of a libtorch message. The other lines are a C++ backtrace.
pub(crate) fn first_line(message: &str) -> &str {
    message.lines().next().unwrap_or_default().trim()
}

/// Returns the first line of a panic's message, given the panic's payload. It is `no message` for a
/// payload that is not text. The methods of tch that return no `Result` panic with the messages of
/// libtorch.
pub fn panic_text(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    first_line(text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message")).to_owned()
}

/// The cause of a failed collective operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CollectiveFailure {
    /// A connection is closed: another rank or its machine has stopped.
    PeerGone,
    /// Another rank did not respond in time: it hangs or cannot be reached.
    TimedOut,
    /// Another cause, for example an error in this process.
    Other,
}

impl CollectiveFailure {
    /// Finds the cause in an error message of this crate or of a backward pass of tch.
    pub fn from_message(message: &str) -> Self {
        let any = |parts: &[&str]| parts.iter().any(|part| message.contains(part));
        if any(&["Application timeout", "Timed out", "timed out", "Timeout", "timeout"]) {
            CollectiveFailure::TimedOut
        } else if any(&["Connection closed", "Connection reset", "Connection was", "Broken pipe", "Socket closed"]) {
            CollectiveFailure::PeerGone
        } else {
            CollectiveFailure::Other
        }
    }
}

/// Rewrites a network error of Gloo for a user; `None` for other messages. The originals begin with
/// a line of Gloo's source and refer to logs that do not exist here.
fn explain_network_error(message: &str) -> Option<String> {
    let line = first_line(message);
    // `[/path/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:6808: Connection ...`
    let cause = line.split_once("/gloo/")?.1.split_once("] ")?.1;
    let cause = cause.split(". ").next().unwrap_or(cause);
    match CollectiveFailure::from_message(cause) {
        CollectiveFailure::PeerGone => Some(format!(
            "the connection to another rank broke ({cause}): that rank or its machine has stopped; see its last message"
        )),
        CollectiveFailure::TimedOut => Some(format!(
            "another rank did not respond ({cause}): it hangs, needs more than the timeout, or its machine cannot be reached"
        )),
        CollectiveFailure::Other => None,
    }
}

unsafe extern "C" {
    fn free(pointer: *mut std::ffi::c_void);
}

/// Copies and frees a C string that the shim allocated.
pub(crate) fn take_string(text: *mut c_char) -> String {
    // SAFETY: the shim returns strings made by strdup, which are null-terminated and freed once,
    // here.
    unsafe {
        let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
        free(text.cast());
        owned
    }
}

/// Converts what a shim function returned: null on success, or an error message.
pub(crate) fn check(message: *mut c_char) -> Result<(), Error> {
    if message.is_null() {
        return Ok(());
    }
    Err(Error::from_libtorch(&take_string(message)))
}

/// Converts text for C++.
pub(crate) fn c_string(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error(format!("{text:?} contains a zero byte")))
}

/// Returns the borrowed C++ handle of a tensor, which is valid while the tensor lives.
pub(crate) fn handle(tensor: &Tensor) -> *mut C_tensor {
    tensor.as_ptr().cast_mut()
}

/// Returns the borrowed C++ handle of a tensor, or null for `None`.
pub(crate) fn handle_or_null(tensor: Option<&Tensor>) -> *mut C_tensor {
    tensor.map_or(std::ptr::null_mut(), handle)
}

/// Returns the borrowed C++ handles of several tensors.
pub(crate) fn handles(tensors: &[Tensor]) -> Vec<*mut C_tensor> {
    tensors.iter().map(handle).collect()
}

/// Returns the tensor that the shim function `call` stores through its pointer.
pub(crate) fn new_tensor(call: impl FnOnce(*mut *mut C_tensor) -> *mut c_char) -> Result<Tensor, Error> {
    let mut tensor = std::ptr::null_mut();
    check(call(&mut tensor))?;
    // SAFETY: every shim function that returns no message has stored a tensor, which is now ours.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESET: &str = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error [10.0.0.2]:6808: Connection reset by peer. This is typically caused by a remote worker hanging or bugs in the application.";
    const SLOW: &str = "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1500ms for recv operation to complete";

    #[test]
    fn a_panic_is_described_by_its_first_line() {
        assert_eq!(panic_text(&"first\nsecond"), "first");
        assert_eq!(panic_text(&"of a String".to_owned()), "of a String");
        assert_eq!(panic_text(&7), "no message");
    }

    #[test]
    fn causes_are_found_in_original_and_rewritten_messages() {
        for (message, failure) in [
            (RESET, CollectiveFailure::PeerGone),
            (SLOW, CollectiveFailure::TimedOut),
            ("[/a/gloo/pair.cc:547] Connection closed by peer [127.0.0.1]:4711", CollectiveFailure::PeerGone),
            ("[/a/gloo/pair.cc:1] Application timeout caused pair closure", CollectiveFailure::TimedOut),
        ] {
            assert_eq!(CollectiveFailure::from_message(message), failure, "{message}");
            let rewritten = explain_network_error(message).unwrap();
            assert_eq!(CollectiveFailure::from_message(&rewritten), failure, "{rewritten}");
        }
        let other = "mat1 and mat2 shapes cannot be multiplied";
        assert_eq!(CollectiveFailure::from_message(other), CollectiveFailure::Other);
        let closed = "Failed to recv, got 0 bytes. Connection was likely closed.";
        assert_eq!(CollectiveFailure::from_message(closed), CollectiveFailure::PeerGone);
    }

    #[test]
    fn rewritten_messages_keep_the_address_and_the_cause() {
        assert_eq!(
            explain_network_error(&format!("Internal torch error: {RESET}\nframe #0 ...")).unwrap(),
            "the connection to another rank broke (Read error [10.0.0.2]:6808: Connection reset by peer): that rank or its machine has stopped; see its last message"
        );
        let slow = explain_network_error(SLOW).unwrap();
        assert!(slow.contains("(Timed out waiting 1500ms for recv operation to complete)"), "{slow}");
        assert_eq!(explain_network_error("mat1 and mat2 shapes cannot be multiplied"), None);
    }
}
