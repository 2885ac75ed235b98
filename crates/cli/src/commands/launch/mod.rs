pub(crate) mod children;
pub(crate) mod exit_status;
pub(crate) mod parent_death;
pub(crate) mod prefix_output;

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

use crate::commands::launch::children::Children;
use crate::commands::launch::exit_status::verdict;
use crate::{Cli, Command};

/// Run train or bench as several processes on this machine, one a GPU or a share of its cores
///
/// Each line of a process comes with its rank before it: [0] ... SIGINT, SIGTERM and SIGUSR1
/// are handed on to all. When one fails, the others are ended, and its exit code (128 + the
/// number of a signal) is the launcher's.
/// Example: backpack launch --nproc 4 -- train --config configs/owt/small.toml
#[derive(Debug, Args)]
pub(crate) struct Launch {
    /// How many processes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    nproc: u16,
    /// The port of the loopback where rank 0 listens [default: a free one]
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    /// The command with its arguments
    #[arg(last = true, required = true, value_name = "train ...|bench ...")]
    command: Vec<OsString>,
}

impl Launch {
    pub(crate) fn run(self, stop: &Stop) -> Result<ExitCode> {
        self.check();
        let signals = take_signals(stop)?;
        let port = find_port(self.port)?;
        let ends = Children::start(&self.command, self.nproc.into(), port)?.wait(&signals)?;
        let (code, error) = verdict(&ends);
        if let Some(error) = error {
            let _ = writeln!(io::stderr(), "error: {error}");
        }
        Ok(ExitCode::from(code))
    }

    /// Ends the program here where every rank would, for wrong usage or to print its help.
    fn check(&self) {
        let program = [OsString::from("backpack")];
        let parsed = Cli::try_parse_from(program.iter().chain(&self.command)).unwrap_or_else(|error| error.exit());
        let world = match parsed.command {
            Command::Train(train) => train.world,
            Command::Bench(bench) => bench.world,
            _ => wrong_usage("only train and bench can be launched"),
        };
        if world.is_given() {
            wrong_usage("launch itself gives each process its rank, world size, local rank and rank 0's address");
        }
    }
}

fn wrong_usage(what: &str) -> ! {
    Cli::command().error(ErrorKind::InvalidValue, what).exit()
}

/// The signals to hand on, and the ends of children, as they come. From here on they are
/// this command's: one that came before ends the program.
fn take_signals(stop: &Stop) -> Result<Receiver<i32>> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGUSR1, SIGCHLD]).context("no handlers for signals")?;
    stop.uninstall();
    let (send, receive) = mpsc::channel();
    let thread = thread::Builder::new().name("signals".to_owned());
    thread.spawn(move || signals.forever().try_for_each(|signal| send.send(signal)))?;
    Ok(receive)
}

/// The port that was asked for, found free, or any that is.
fn find_port(asked: Option<u16>) -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, asked.unwrap_or(0)));
    let listener = listener.with_context(|| match asked {
        Some(port) => format!("port {port} of the loopback cannot be listened on: choose another --port"),
        None => "no port of the loopback can be listened on".to_owned(),
    })?;
    Ok(listener.local_addr()?.port())
}
