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

use anyhow::{Context, Result, ensure};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser};
use signal_hook::consts::{SIGCHLD, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use trainer::{DeviceKind, Stop};

use crate::args::config::ConfigArgs;
use crate::commands::bench::BenchCommand;
use crate::commands::launch::children::Children;
use crate::commands::launch::exit_status::summarize;
use crate::commands::train::Train;

/// Run train or bench as several processes on this machine
///
/// Each process uses one GPU, or an equal share of the CPU cores. If the processes use GPUs, more
/// processes than visible GPUs are an error. Every line of output is prefixed with the rank of its
/// process, as in [0]. SIGINT, SIGTERM and SIGUSR1 are forwarded to all processes. If one process fails, the
/// others are stopped. The exit code is that of the processes, or of the first one that failed
/// (128 + n after signal n).
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
        let config = self.check_command();
        let nproc = usize::from(self.nproc);
        // The configuration is read only if the ranks may be too many.
        if let Some(gpus) = trainer::visible_gpus().filter(|&gpus| gpus < nproc)
            && let Some(device) = config.device()
        {
            check_gpus(nproc, device, gpus, torch_ext::cuda_is_installed())?;
        }
        let signals = receive_signals(stop)?;
        let port = choose_port(self.port)?;
        let exits = Children::start(&self.command, nproc, port)?.wait(&signals)?;
        let (code, error) = summarize(&exits);
        if let Some(error) = error {
            let _ = writeln!(io::stderr(), "error: {error}");
        }
        Ok(ExitCode::from(code))
    }

    /// Exits here if every rank would exit at once: after wrong usage, or to print the help.
    /// Otherwise returns the configuration arguments of the ranks.
    fn check_command(&self) -> ConfigArgs {
        if self.command.first().is_some_and(|name| name != "train" && name != "bench" && !is_flag(name)) {
            wrong_usage("only train and bench can be launched");
        }
        let program = [OsString::from("backpack")];
        let parsed =
            RankCommand::try_parse_from(program.iter().chain(&self.command)).unwrap_or_else(|error| error.exit());
        let (world, config) = match parsed {
            RankCommand::Train(train) => (train.world, train.config),
            RankCommand::Bench(bench) => (bench.world, bench.run),
        };
        if world.is_given() {
            wrong_usage("launch sets the rank, the world size, the local rank and the address of rank 0 itself");
        }
        config
    }
}

/// Checks that each of `nproc` ranks can use a different GPU, if the ranks use GPUs. Without any GPU,
/// each rank reports the error itself.
///
/// # Errors
/// If `device` selects GPUs and there are fewer than `nproc`.
fn check_gpus(nproc: usize, device: DeviceKind, gpus: usize, cuda_is_installed: bool) -> Result<()> {
    let uses_gpus = match device {
        DeviceKind::Cpu => false,
        DeviceKind::Cuda => gpus > 0,
        DeviceKind::Auto => gpus > 0 && cuda_is_installed,
    };
    ensure!(
        !uses_gpus || nproc <= gpus,
        "cannot launch {nproc} processes on {gpus} visible GPU(s) (CUDA_VISIBLE_DEVICES): each process needs a different GPU; pass --nproc {gpus}, or train on the CPU with --set run.device=cpu"
    );
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_ranks_than_gpus_are_refused_unless_they_use_the_cpu() {
        let check = |nproc, device, gpus, cuda| check_gpus(nproc, device, gpus, cuda).map_err(|e| e.to_string());
        for (device, gpus, cuda) in [
            (DeviceKind::Cpu, 1, true),
            (DeviceKind::Auto, 0, true),
            (DeviceKind::Auto, 1, false),
            (DeviceKind::Auto, 4, true),
            (DeviceKind::Cuda, 0, true),
            (DeviceKind::Cuda, 8, true),
        ] {
            assert_eq!(check(4, device, gpus, cuda), Ok(()), "{device:?}, {gpus}, {cuda}");
        }
        for device in [DeviceKind::Cuda, DeviceKind::Auto] {
            let error = check(4, device, 2, true).unwrap_err();
            assert!(
                error.starts_with("cannot launch 4 processes on 2 visible GPU(s)") && error.contains("--nproc 2"),
                "{error}"
            );
        }
    }
}
