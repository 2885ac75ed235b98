//! A watchdog that exits a process without progress, so that a stalled collective or disk does not
//! occupy a job until its time limit.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::distributed::world::World;
use crate::time::human_duration;

/// Exit code of a stalled process. It is that of the command `timeout`.
const EXIT_STALLED: i32 = 124;

/// A thread that exits the process if it makes no progress. Dropping the watchdog stops the thread.
#[derive(Debug)]
pub(crate) struct Watchdog {
    progress: Arc<Mutex<ProgressMark>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The latest progress of the process. Its lock is held for a few loads and stores.
#[derive(Debug)]
struct ProgressMark {
    /// Number of progress reports.
    reports: u64,
    step: u64,
    operation: &'static str,
}

impl Watchdog {
    /// Starts a watchdog that exits the process with code 124 after `timeout` without progress.
    ///
    /// It first prints an error with the current step and operation. A timeout of 0 disables it.
    /// Time during which the process is suspended does not count.
    ///
    /// # Errors
    /// Returns an error if the thread cannot be started.
    pub(crate) fn start(world: &World, timeout: Duration) -> std::io::Result<Self> {
        let host = world.host.clone();
        let rank = if world.size > 1 { format!("rank {}: ", world.rank) } else { String::new() };
        Self::watch(timeout, move |progress| {
            write_to_stderr(format!(
                "error: {rank}no progress for {} on {host}: step {}, {}; another rank, the network or a disk may hang; resume from the last checkpoint with --resume auto, or raise run.watchdog_seconds if the run is only slow\n",
                human_duration(timeout.as_secs_f64()),
                progress.step,
                progress.operation,
            ));
            // Destructors do not run, because that of a communicator waits for the operation that
            // hangs.
            signal_hook::low_level::exit(EXIT_STALLED);
        })
    }

    fn watch(timeout: Duration, stalled: impl FnOnce(&ProgressMark) + Send + 'static) -> std::io::Result<Self> {
        let progress = Arc::new(Mutex::new(ProgressMark { reports: 0, step: 0, operation: "starting" }));
        if timeout.is_zero() {
            return Ok(Watchdog { progress, thread: None });
        }
        let (stop, stopped) = mpsc::channel();
        let watched = Arc::clone(&progress);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut timer = StallTimer::new(timeout);
            // Each wait counts as one tick, even if it took longer. A suspended process therefore
            // has fewer ticks.
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(timer.tick) {
                let reports = lock(&watched).reports;
                if timer.is_stalled(reports) {
                    return stalled(&lock(&watched));
                }
            }
        })?;
        Ok(Watchdog { progress, thread: Some((stop, thread)) })
    }

    /// Reports progress and sets the current operation, for instance "reading a batch".
    pub(crate) fn progress(&self, operation: &'static str) {
        let mut progress = lock(&self.progress);
        progress.reports += 1;
        progress.operation = operation;
    }

    /// Reports progress and sets the current step.
    pub(crate) fn step(&self, step: u64) {
        let mut progress = lock(&self.progress);
        progress.reports += 1;
        progress.step = step;
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // The thread waits only for this. A panic of the thread has already been reported.
            let _ = thread.join();
        }
    }
}

fn lock(progress: &Mutex<ProgressMark>) -> MutexGuard<'_, ProgressMark> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A counter of ticks without progress.
#[derive(Debug)]
struct StallTimer {
    tick: Duration,
    /// Number of ticks after which the process counts as stalled.
    limit: u32,
    ticks: u32,
    reports: u64,
}

impl StallTimer {
    fn new(timeout: Duration) -> Self {
        // One second, or a quarter of a timeout that is shorter than four seconds.
        let tick = Duration::from_secs(1).min(timeout / 4).max(Duration::from_millis(1));
        let limit = timeout.as_nanos().div_ceil(tick.as_nanos());
        StallTimer { tick, limit: u32::try_from(limit).unwrap_or(u32::MAX), ticks: 0, reports: 0 }
    }

    /// Counts one tick and returns whether the process is stalled. `reports` is the number of
    /// progress reports so far.
    fn is_stalled(&mut self, reports: u64) -> bool {
        self.ticks = if reports == self.reports { self.ticks + 1 } else { 0 };
        self.reports = reports;
        self.ticks >= self.limit
    }
}

/// Writes a line to stderr, for at most two seconds, because the reader of stderr may hang.
fn write_to_stderr(line: String) {
    let (sender, receiver) = mpsc::channel();
    let writer = std::thread::Builder::new().spawn(move || {
        let _ = std::io::stderr().write_all(line.as_bytes());
        let _ = sender.send(());
    });
    if writer.is_ok() {
        let _ = receiver.recv_timeout(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    #[test]
    fn ticks_are_counted_until_progress_is_reported() {
        let mut timer = StallTimer::new(Duration::from_secs(3));
        assert_eq!((timer.tick, timer.limit), (Duration::from_millis(750), 4));
        assert_eq!([0, 0, 0].map(|reports| timer.is_stalled(reports)), [false; 3]);
        assert_eq!([1, 1, 1, 1].map(|reports| timer.is_stalled(reports)), [false; 4]);
        assert!(timer.is_stalled(1));
        assert_eq!(StallTimer::new(Duration::from_secs(1_800)).limit, 1_800);
    }

    #[test]
    fn stall_is_reported_with_step_and_operation() {
        let (sender, receiver) = mpsc::channel();
        let watchdog = Watchdog::watch(Duration::from_millis(50), move |progress| {
            sender.send((progress.step, progress.operation)).unwrap();
        });
        let watchdog = watchdog.unwrap();
        watchdog.step(7);
        watchdog.progress("reducing gradients");
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), (7, "reducing gradients"));
    }

    #[test]
    fn progress_and_drop_prevent_a_report() {
        let (sender, receiver) = mpsc::channel::<()>();
        let watchdog = Watchdog::watch(Duration::from_secs(60), move |_| sender.send(()).unwrap()).unwrap();
        watchdog.progress("a step");
        drop(watchdog);
        // The thread has ended, so the sender is dropped.
        assert_eq!(receiver.recv_timeout(Duration::from_secs(20)), Err(RecvTimeoutError::Disconnected));
        let off = Watchdog::watch(Duration::ZERO, |_| unreachable!()).unwrap();
        off.progress("nothing");
        assert!(off.thread.is_none());
    }

    const CHILD: &str = "BACKPACK_TEST_WATCHDOG";

    /// The process that the next test stalls. Without the variable it does nothing.
    #[test]
    fn child() {
        if std::env::var_os(CHILD).is_some() {
            let world = World { rank: 1, size: 2, ..World::alone() };
            let watchdog = Watchdog::start(&world, Duration::from_secs(3)).unwrap();
            watchdog.step(12);
            watchdog.progress("waiting for the other ranks");
            eprintln!("watching");
            std::thread::sleep(Duration::from_secs(60));
        }
    }

    fn signal(child: &Child, name: &str) {
        assert!(Command::new("kill").args([format!("-{name}"), child.id().to_string()]).status().unwrap().success());
    }

    #[test]
    fn stalled_process_exits_with_124_and_suspended_time_does_not_count() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "runtime::watchdog::tests::child", "--nocapture"]).env(CHILD, "1");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "watching"));
        signal(&child, "STOP");
        std::thread::sleep(Duration::from_secs(4));
        signal(&child, "CONT");
        let continued = Instant::now();
        let error = lines.find(|line| line.starts_with("error: ")).unwrap();
        assert!(error.starts_with("error: rank 1: no progress for 3s on "), "{error}");
        assert!(error.contains(": step 12, waiting for the other ranks; another rank"), "{error}");
        // At most one of the four ticks had passed before the process was suspended.
        assert!(continued.elapsed() > Duration::from_millis(1_400), "{:?}", continued.elapsed());
        assert_eq!(child.wait().unwrap().code(), Some(EXIT_STALLED));
    }
}
