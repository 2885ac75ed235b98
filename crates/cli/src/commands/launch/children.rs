//! The processes of `backpack launch`: started together, told every signal, ended together.

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

use super::exit_status::{ChildExit, GRACE_AFTER_END, GRACE_AFTER_FAILURE};
use super::parent_death::LAUNCHER;
use super::prefix_output::{relay, to_stderr, to_stdout};

/// Between two looks at a rank that does not take its signal yet.
const SIGNAL_PAUSE: Duration = Duration::from_millis(20);
/// For a rank to install its handlers; the loader alone takes a part of a second.
const SIGNAL_PATIENCE: Duration = Duration::from_secs(10);
/// For the last lines of ranks that have ended.
const LINES_PATIENCE: Duration = Duration::from_secs(2);

struct ChildRank {
    child: Child,
    pid: Pid,
    end: Option<ChildExit>,
    /// Signals to hand on, each with the time it came.
    signals: VecDeque<(Signal, Instant)>,
}

/// Local ranks that run. Dropping them ends those that still do.
pub(crate) struct Children {
    ranks: Vec<ChildRank>,
    /// Ranks in the order in which they ended.
    order: Vec<usize>,
    /// Closed when the last line of the last rank is out.
    lines: Receiver<()>,
}

impl Children {
    /// Starts `count` copies of this program with `arguments`, rank 0 to listen on `port`.
    /// From the thread that stays to the end: the kernel ends the ranks with it.
    ///
    /// # Errors
    /// When one cannot be started; none is left behind.
    pub(crate) fn start(arguments: &[OsString], count: usize, port: u16) -> Result<Self> {
        let program = std::env::current_exe().context("this program's own file cannot be found")?;
        let (writing, lines) = mpsc::channel();
        let mut started = Children { ranks: Vec::with_capacity(count), order: Vec::new(), lines };
        for rank in 0..count {
            let mut command = Command::new(&program);
            command.args(arguments).env(LAUNCHER, std::process::id().to_string());
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            for (name, number) in
                [("RANK", rank), ("LOCAL_RANK", rank), ("WORLD_SIZE", count), ("LOCAL_WORLD_SIZE", count)]
            {
                command.env(name, number.to_string());
            }
            // A group of its own: Ctrl-C reaches the launcher alone, which hands it on.
            command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn();
            let child = child.with_context(|| format!("rank {rank} of {count} cannot be started"))?;
            started.take_up(rank, child, &writing).with_context(|| format!("rank {rank} cannot be looked after"))?;
        }
        Ok(started)
    }

    fn take_up(&mut self, rank: usize, mut child: Child, writing: &Sender<()>) -> Result<()> {
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let pid = Pid::from_child(&child);
        self.ranks.push(ChildRank { child, pid, end: None, signals: VecDeque::new() });
        let read = |name: &str, copy: Box<dyn FnOnce() + Send>| -> io::Result<()> {
            let writing = writing.clone();
            let thread = thread::Builder::new().name(format!("{name} of rank {rank}"));
            thread.spawn(move || {
                copy();
                drop(writing);
            })?;
            Ok(())
        };
        if let Some(stdout) = stdout {
            read("stdout", Box::new(move || relay(rank, stdout, to_stdout)))?;
        }
        if let Some(stderr) = stderr {
            read("stderr", Box::new(move || relay(rank, stderr, to_stderr)))?;
        }
        Ok(())
    }

    /// Waits until all have ended, hands on each signal that comes, and ends what stays
    /// behind. Gives the order in which they ended, and how.
    pub(crate) fn wait(mut self, signals: &Receiver<i32>) -> Result<Vec<(usize, ChildExit)>> {
        let mut limit: Option<Instant> = None;
        loop {
            self.reap()?;
            self.hand_on_signals();
            if self.order.len() == self.ranks.len() {
                break;
            }
            let now = Instant::now();
            if let Some(grace) = self.grace() {
                limit = Some(limit.map_or(now + grace, |limit| limit.min(now + grace)));
            }
            if limit.is_some_and(|limit| limit <= now) {
                self.kill_all()?;
                break;
            }
            let waiting = self.ranks.iter().any(|rank| !rank.signals.is_empty());
            let pause = if waiting { SIGNAL_PAUSE } else { Duration::from_secs(60) };
            let pause = limit.map_or(pause, |limit| pause.min(limit - now));
            // A child's end is a signal too, and needs no more than the next turn.
            if let Ok(number) = signals.recv_timeout(pause)
                && number != SIGCHLD
                && let Some(signal) = Signal::from_named_raw(number)
            {
                let running = self.ranks.iter_mut().filter(|rank| rank.end.is_none());
                running.for_each(|rank| rank.signals.push_back((signal, now)));
            }
        }
        self.wait_for_lines();
        let end = |&rank: &usize| Some((rank, self.ranks[rank].end?));
        Ok(self.order.iter().filter_map(end).collect())
    }

    /// Notes which ranks have ended.
    fn reap(&mut self) -> Result<()> {
        let mut ended = Vec::new();
        for (number, rank) in self.ranks.iter_mut().enumerate().filter(|(_, rank)| rank.end.is_none()) {
            if let Some(status) = rank.child.try_wait().context("a rank cannot be waited for")? {
                rank.end = Some(end_of(status));
                ended.push(number);
            }
        }
        // Of several at once, one that a signal ended is the cause and the others its victims.
        ended.sort_by_key(|&number| !matches!(self.ranks[number].end, Some(ChildExit::Signal(_))));
        self.order.append(&mut ended);
        Ok(())
    }

    /// How long the others may go on after those that have ended.
    fn grace(&self) -> Option<Duration> {
        let ends = || self.ranks.iter().filter_map(|rank| rank.end);
        if ends().any(|end| end.is_failure()) {
            Some(GRACE_AFTER_FAILURE)
        } else {
            ends().next().map(|_| GRACE_AFTER_END)
        }
    }

    /// Hands each rank its next signal, once it has a handler: without, the signal would
    /// end it.
    fn hand_on_signals(&mut self) {
        for rank in self.ranks.iter_mut().filter(|rank| rank.end.is_none()) {
            if let Some(&(signal, since)) = rank.signals.front()
                && (catches(rank.pid, signal) || since.elapsed() > SIGNAL_PATIENCE)
            {
                rank.signals.pop_front();
                // It fails for what has just ended, which the next turn sees.
                let _ = kill_process(rank.pid, signal);
            }
        }
    }

    /// Ends what still runs, at once.
    fn kill_all(&mut self) -> Result<()> {
        for number in 0..self.ranks.len() {
            let rank = &mut self.ranks[number];
            if rank.end.is_none() {
                // Not yet waited for, so the number is still this rank's.
                let _ = kill_process_group(rank.pid, Signal::KILL);
                rank.child.wait().context("a rank cannot be waited for")?;
                rank.end = Some(ChildExit::Killed);
                self.order.push(number);
            }
        }
        Ok(())
    }

    /// The last lines of the ranks come before the launcher's own.
    fn wait_for_lines(&self) {
        let _ = self.lines.recv_timeout(LINES_PATIENCE);
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        // What fails here has been tried before.
        let _ = self.kill_all();
    }
}

fn end_of(status: ExitStatus) -> ChildExit {
    match (status.code(), status.signal()) {
        (Some(code), _) => ChildExit::Code(code as u8),
        (None, signal) => ChildExit::Signal(signal.unwrap_or_default()),
    }
}

/// Whether the process has a handler for the signal; also when the kernel does not say.
fn catches(pid: Pid, signal: Signal) -> bool {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
    let caught = caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    caught.is_none_or(|mask| mask & (1 << (signal.as_raw() - 1)) != 0)
}
