//! The processes of `backpack launch`: starts the ranks, forwards signals to them, and kills those
//! that remain after a failure.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use signal_hook::consts::SIGCHLD;

use super::exit_status::{ChildExit, TIMEOUT_AFTER_EXIT, TIMEOUT_AFTER_FAILURE};
use super::parent_death::LAUNCHER_PID;
use super::prefix_output::{copy_with_prefix, write_stderr, write_stdout};

/// Time between two checks whether a rank has installed its signal handlers.
const SIGNAL_POLL: Duration = Duration::from_millis(20);
/// Time that a rank gets to install its signal handlers. The dynamic loader alone takes a fraction
/// of a second.
const SIGNAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to wait for the last output of ranks that have exited.
const OUTPUT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest time to wait for a signal.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The process of one rank.
struct ChildRank {
    child: Child,
    pid: Pid,
    /// How the rank exited; unset while it runs.
    exit: Option<ChildExit>,
    /// Signals to forward, each with the time of its arrival.
    pending_signals: VecDeque<(Signal, Instant)>,
}

/// The ranks of this launcher. Dropping it kills those that still run.
pub(crate) struct Children {
    ranks: Vec<ChildRank>,
    /// Ranks in the order in which they exited.
    exit_order: Vec<usize>,
    /// Disconnected when all output has been written.
    output: Receiver<()>,
}

impl Children {
    /// Starts `count` copies of this program with `arguments`. Rank 0 listens on `port`. Must be
    /// called from the main thread, because the kernel kills the ranks when the calling thread
    /// ends.
    ///
    /// # Errors
    /// If a rank cannot be started. Those that were started are killed.
    pub(crate) fn start(arguments: &[OsString], count: usize, port: u16) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find the file of this program")?;
        let (output_open, output) = mpsc::channel();
        let mut children = Children { ranks: Vec::with_capacity(count), exit_order: Vec::new(), output };
        for rank in 0..count {
            let mut command = Command::new(&program);
            command.args(arguments).env(LAUNCHER_PID, std::process::id().to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            for (name, number) in
                [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", count)]
            {
                command.env(name, number.to_string());
            }
            // A separate process group, so that Ctrl-C reaches only the launcher, which forwards
            // it.
            command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn();
            let child = child.with_context(|| format!("cannot start rank {rank} of {count}"))?;
            children
                .add(rank, child, &output_open)
                .with_context(|| format!("cannot read the output of rank {rank}"))?;
        }
        Ok(children)
    }

    /// Adds a rank and starts the threads that copy its output. Each holds a clone of `output_open`
    /// until the rank has closed its output.
    fn add(&mut self, rank: usize, mut child: Child, output_open: &Sender<()>) -> Result<()> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let pid = Pid::from_child(&child);
        self.ranks.push(ChildRank { child, pid, exit: None, pending_signals: VecDeque::new() });
        let spawn = |name: &str, copy: Box<dyn FnOnce() + Send>| -> io::Result<()> {
            let output_open = output_open.clone();
            let thread = thread::Builder::new().name(format!("{name} of rank {rank}"));
            thread.spawn(move || {
                copy();
                drop(output_open);
            })?;
            Ok(())
        };
        if let Some(stdout) = stdout {
            spawn("stdout", Box::new(move || copy_with_prefix(rank, stdout, write_stdout)))?;
        }
        if let Some(stderr) = stderr {
            spawn("stderr", Box::new(move || copy_with_prefix(rank, stderr, write_stderr)))?;
        }
        Ok(())
    }

    /// Waits until all ranks have exited, and forwards each signal that arrives. After the first
    /// exit, kills the ranks that do not exit in time. Returns the ranks in the order in which they
    /// exited.
    pub(crate) fn wait(mut self, signals: &Receiver<i32>) -> Result<Vec<(usize, ChildExit)>> {
        let mut deadline: Option<Instant> = None;
        loop {
            self.reap()?;
            self.forward_signals();
            if self.exit_order.len() == self.ranks.len() {
                break;
            }
            let now = Instant::now();
            if let Some(timeout) = self.timeout_of_remaining() {
                deadline = Some(deadline.map_or(now + timeout, |deadline| deadline.min(now + timeout)));
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                self.kill_all()?;
                break;
            }
            let has_pending = self.ranks.iter().any(|rank| !rank.pending_signals.is_empty());
            let wait = if has_pending { SIGNAL_POLL } else { MAX_WAIT };
            let wait = deadline.map_or(wait, |deadline| wait.min(deadline - now));
            // SIGCHLD needs no action: the next iteration reaps the child.
            if let Ok(number) = signals.recv_timeout(wait)
                && number != SIGCHLD
                && let Some(signal) = Signal::from_named_raw(number)
            {
                let running = self.ranks.iter_mut().filter(|rank| rank.exit.is_none());
                running.for_each(|rank| rank.pending_signals.push_back((signal, now)));
            }
        }
        self.wait_for_output();
        let exit = |&rank: &usize| Some((rank, self.ranks[rank].exit?));
        Ok(self.exit_order.iter().filter_map(exit).collect())
    }

    /// Records which ranks have exited.
    fn reap(&mut self) -> Result<()> {
        let mut exited = Vec::new();
        for (number, rank) in self.ranks.iter_mut().enumerate().filter(|(_, rank)| rank.exit.is_none()) {
            if let Some(status) = rank.child.try_wait().context("cannot wait for a rank")? {
                rank.exit = Some(child_exit(status));
                exited.push(number);
            }
        }
        // Of several at once, one that was killed by a signal is the cause of the other failures.
        exited.sort_by_key(|&number| !matches!(self.ranks[number].exit, Some(ChildExit::Signal(_))));
        self.exit_order.append(&mut exited);
        Ok(())
    }

    /// How long the remaining ranks may run after those that have exited; none if none has exited.
    fn timeout_of_remaining(&self) -> Option<Duration> {
        let exits = || self.ranks.iter().filter_map(|rank| rank.exit);
        if exits().any(|exit| exit.is_failure()) {
            Some(TIMEOUT_AFTER_FAILURE)
        } else {
            exits().next().map(|_| TIMEOUT_AFTER_EXIT)
        }
    }

    /// Sends each rank its next signal once the rank has a handler. Without a handler the signal
    /// would kill it.
    fn forward_signals(&mut self) {
        for rank in self.ranks.iter_mut().filter(|rank| rank.exit.is_none()) {
            if let Some(&(signal, since)) = rank.pending_signals.front()
                && (has_handler(rank.pid, signal) || since.elapsed() > SIGNAL_TIMEOUT)
            {
                rank.pending_signals.pop_front();
                // Fails if the rank has just exited, which the next iteration records.
                let _ = kill_process(rank.pid, signal);
            }
        }
    }

    /// Kills the ranks that still run.
    fn kill_all(&mut self) -> Result<()> {
        for number in 0..self.ranks.len() {
            let rank = &mut self.ranks[number];
            if rank.exit.is_none() {
                // The rank has not been reaped, so its process id is still valid.
                let _ = kill_process_group(rank.pid, Signal::KILL);
                rank.child.wait().context("cannot wait for a rank")?;
                rank.exit = Some(ChildExit::Killed);
                self.exit_order.push(number);
            }
        }
        Ok(())
    }

    /// Waits for the last output of the ranks, so that it precedes the launcher's own.
    fn wait_for_output(&self) {
        let _ = self.output.recv_timeout(OUTPUT_TIMEOUT);
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        // A destructor cannot report an error.
        let _ = self.kill_all();
    }
}

fn child_exit(status: ExitStatus) -> ChildExit {
    match (status.code(), status.signal()) {
        (Some(code), _) => ChildExit::Code(code as u8),
        (None, signal) => ChildExit::Signal(signal.unwrap_or_default()),
    }
}

/// Whether the process has a handler for the signal. True if /proc cannot be read.
fn has_handler(pid: Pid, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_none_or(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}
