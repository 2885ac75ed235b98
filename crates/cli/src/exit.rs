//! Exit codes, and the error line of a failed command.

use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::process::ExitCode;

use crate::args::distributed::{error_prefix, is_distributed};

/// Exit code of a run that was stopped early with a checkpoint saved, ready to be resumed.
pub(crate) const EXIT_STOPPED: u8 = 85;

/// Prints the error as one line and returns the exit code. If the reader of the output has closed
/// it, as `head` does, the command has succeeded.
pub(crate) fn report_error(error: &anyhow::Error) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS;
    }
    let _ = writeln!(io::stderr(), "{}{}", error_prefix(), one_line(&format!("{error:#}")));
    if is_distributed() {
        // Threads that serve the other ranks still run, so nothing is dropped here.
        torch_ext::distributed::exit_now(1);
    }
    ExitCode::FAILURE
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Panic hook that prints one line, like every other error, and exits with code 1. The methods of
/// tch panic when libtorch fails; users see this mostly when the memory is exhausted.
pub(crate) fn report_panic(info: &PanicHookInfo<'_>) {
    let _ = writeln!(io::stderr(), "{}{}", error_prefix(), panic_message(info));
    if is_distributed() {
        // The destructors of CUDA would wait for collectives that other ranks do not join.
        torch_ext::distributed::exit_now(1);
    }
    std::process::exit(1);
}

/// The message of a panic with its source location.
pub(crate) fn panic_message(info: &PanicHookInfo<'_>) -> String {
    let text = torch_ext::panic_text(info.payload());
    let location = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
    format!("internal failure: {text}{location}; if memory is not exhausted, please report this with the command")
}
