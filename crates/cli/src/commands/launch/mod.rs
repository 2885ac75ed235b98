//! The command `launch`: starts several ranks on this machine and supervises them.

mod children;
mod exit_status;
pub(crate) mod parent_death;
mod prefix_output;

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::thread;

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use trainer::Stop;

use crate::commands::bench::BenchCommand;
use crate::commands::launch::children::Children;
use crate::commands::launch::exit_status::summarize;
use crate::commands::train::Train;

/// Run train or bench as several processes on this machine
///
/// Each process uses one GPU, or an equal share of the CPU cores. Every line of output is prefixed
/// with the rank of its process, as in [0]. SIGINT, SIGTERM and SIGUSR1 are forwarded to all
/// processes. If one process fails, the others are stopped. The exit code is that of the processes,
/// or of the first one that failed (128 + n after signal n).
///
/// Example: backpack launch --nproc 4 -- train --config configs/owt/small.toml
#[derive(Debug, Args)]
pub(crate) struct Launch {
    /// Number of processes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    nproc: u16,
    /// Port of the loopback interface that rank 0 listens on [default: a free port]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// Command to run, with its arguments
    #[arg(last = true, required = true, value_name = "train ...|bench ...")]
    command: Vec<OsString>,
}

// The command line of a rank. clap would print a comment with three slashes as the description of
// the program.
#[derive(Debug, Parser)]
#[command(name = "backpack", about = "Commands that can be launched", disable_help_subcommand = true)]
#[command(version = env!("BACKPACK_VERSION"), propagate_version = true)]
enum RankCommand {
    Train(Train),
    Bench(BenchCommand),
}

impl Launch {
    /// Runs the ranks and returns their common exit code.
    pub(crate) fn run(self, stop: &Stop) -> Result<ExitCode> {
        self.check_command();
        let signals = receive_signals(stop)?;
        let port = choose_port(self.port)?;
        let exits = Children::start(&self.command, self.nproc.into(), port)?.wait(&signals)?;
        let (code, error) = summarize(&exits);
        if let Some(error) = error {
            let _ = writeln!(io::stderr(), "error: {error}");
        }
        Ok(ExitCode::from(code))
    }

    /// Exits here if every rank would exit at once: after wrong usage, or to print the help.
    fn check_command(&self) {
        if self.command.first().is_some_and(|name| name != "train" && name != "bench" && !is_flag(name)) {
            wrong_usage("only train and bench can be launched");
        }
        let program = [OsString::from("backpack")];
        let parsed =
            RankCommand::try_parse_from(program.iter().chain(&self.command)).unwrap_or_else(|error| error.exit());
        let world = match parsed {
            RankCommand::Train(train) => train.world,
            RankCommand::Bench(bench) => bench.world,
        };
        if world.is_given() {
            wrong_usage("launch sets the rank, the world size, the local rank and the address of rank 0 itself");
        }
    }
}

fn is_flag(argument: &OsString) -> bool {
    argument.as_encoded_bytes().starts_with(b"-")
}

fn wrong_usage(message: &str) -> ! {
    RankCommand::command().error(ErrorKind::InvalidValue, message).exit()
}

/// Starts to receive the signals to forward, and SIGCHLD. A signal that came earlier ends the
/// program.
fn receive_signals(stop: &Stop) -> Result<Receiver<i32>> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGCHLD]).context("cannot install the signal handlers")?;
    stop.uninstall();
    let (sender, receiver) = mpsc::channel();
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || signals.forever().try_for_each(|signal| sender.send(signal)))?;
    Ok(receiver)
}

/// Returns the requested port if it is free, or any free port.
fn choose_port(requested: Option<u16>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, requested.unwrap_or(0)));
    let listener = listener.with_context(|| match requested {
        Some(port) => format!("cannot listen on port {port} of the loopback interface: choose another --port"),
        None => "cannot listen on any port of the loopback interface".to_owned(),
    })?;
    Ok(listener.local_addr()?.port())
}
