//! The `backpack` binary: argument parsing and printing. What it does is in the crates.

mod args;
mod commands;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions
mod docs_tests;
mod output;

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use trainer::Stop;

/// Train Backpack language models from raw text to an exported model, and look inside them.
#[derive(Debug, Parser)]
#[command(name = "backpack", version = VERSION, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    PrepareData(commands::prepare_data::PrepareData),
    VerifyData(commands::verify_data::VerifyData),
    Train(commands::train::Train),
    Launch(commands::launch::Launch),
    Bench(commands::bench::BenchCommand),
    Eval(commands::eval::Eval),
    Generate(commands::generate::Generate),
    Export(commands::export::Export),
    Import(commands::import::Import),
    Dump(commands::dump::Dump),
    Senses(commands::senses::SensesCommand),
    Control(commands::control::Control),
    Serve(commands::serve::Serve),
    Plan(commands::plan::PlanCommand),
    Plot(commands::plot::Plot),
    Status(commands::status::StatusCommand),
    Doctor(commands::doctor::Doctor),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
}

/// With the revision of the sources, where they are a git checkout.
pub(crate) const VERSION: &str = env!("BACKPACK_VERSION");

/// Stopped early with a checkpoint saved, ready to resume.
const STOPPED: u8 = 85;

fn main() -> ExitCode {
    // Before anything else: a signal that comes earlier would end the process.
    let stop = Stop::install();
    torch_ext::keep_freed_memory();
    std::panic::set_hook(Box::new(report_panic));
    let arguments = Cli::parse();
    let ready = commands::launch::parent_death::end_with_launcher().and(stop.map_err(anyhow::Error::from));
    match ready.and_then(|stop| run(arguments.command, &stop)) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "{}{}", args::distributed::error_prefix(), one_line(&format!("{error:#}")));
            if args::distributed::is_one_of_several() {
                // The threads that served the other ranks still run: nothing is torn down under them.
                torch_ext::distributed::exit_now(1);
            }
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, stop: &Stop) -> Result<ExitCode> {
    // Training stops at the end of a step, the launcher hands signals on, and the explorer answers
    // what was asked; everything else ends at once.
    if !matches!(command, Command::Train(_) | Command::Launch(_) | Command::Serve(_)) {
        stop.restore_default_action()?;
    }
    match command {
        Command::PrepareData(c) => c.run(),
        Command::VerifyData(c) => c.run(),
        Command::Train(c) => return c.run(stop),
        Command::Launch(c) => return c.run(stop),
        Command::Bench(c) => c.run(),
        Command::Eval(c) => c.run(),
        Command::Generate(c) => c.run(),
        Command::Export(c) => c.run(),
        Command::Import(c) => c.run(),
        Command::Dump(c) => c.run(),
        Command::Senses(c) => c.run(),
        Command::Control(c) => c.run(),
        Command::Serve(c) => c.run(stop),
        Command::Plan(c) => c.run(),
        Command::Plot(c) => c.run(),
        Command::Status(c) => c.run(),
        Command::Doctor(c) => c.run(),
        Command::Completions(c) => c.run(),
        Command::Man(c) => c.run(),
    }?;
    Ok(ExitCode::SUCCESS)
}

/// A reader that went away, as `head` does, is no error.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// libtorch's refusals surface as panics of tch's short-hand methods; a lack of memory is
/// the one that users meet. One line, like every other error.
fn report_panic(info: &std::panic::PanicHookInfo<'_>) {
    let _ = writeln!(io::stderr(), "{}{}", args::distributed::error_prefix(), panic_message(info));
    std::process::exit(1);
}

pub(crate) fn panic_message(info: &std::panic::PanicHookInfo<'_>) -> String {
    let what = torch_ext::panic_text(info.payload());
    let place = info.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
    format!("internal failure: {what}{place}; if this is not a lack of memory, please report it with the command")
}
