//! The `backpack` binary: parses the arguments, calls the library crates and prints the results.

mod args;
mod commands;
#[cfg(test)]
#[allow(clippy::unwrap_used)] // helpers of tests; clippy exempts only test functions
mod docs_tests;
mod exit;
mod output;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory, Parser, Subcommand};
use trainer::Stop;

/// Train Backpack language models, from raw text to an exported model, and inspect their senses
#[derive(Debug, Parser)]
#[command(name = "backpack", version = env!("BACKPACK_VERSION"), propagate_version = true)]
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

fn main() -> ExitCode {
    // First, because an earlier signal would end the process.
    let stop = Stop::install();
    torch_ext::keep_freed_memory();
    std::panic::set_hook(Box::new(exit::report_panic));
    let arguments = Cli::parse();
    let ready = commands::launch::parent_death::exit_with_launcher().and(stop.map_err(anyhow::Error::from));
    match ready.and_then(|stop| run(arguments.command, &stop)) {
        Ok(code) => code,
        Err(error) => exit::report_error(&error),
    }
}

fn run(command: Command, stop: &Stop) -> Result<ExitCode> {
    // A signal ends every other command at once. Training stops at the end of a step, the launcher
    // forwards signals, and the server answers the pending requests.
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
        Command::Completions(c) => c.run(&mut Cli::command()),
        Command::Man(c) => c.run(Cli::command()),
    }?;
    Ok(ExitCode::SUCCESS)
}
