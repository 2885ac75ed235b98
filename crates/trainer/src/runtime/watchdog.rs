//! Ends a process in which nothing goes forward any more, so that a stalled collective or
//! disk does not hold a whole job until its time is over.

use std::io::Write;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::distributed::world::World;
use crate::time::human_duration;

/// The exit code of `timeout`, which a stalled process is ended with.
const STALLED: i32 = 124;

/// A thread that waits for signs of progress. Dropping it ends the watch.
#[derive(Debug)]
pub struct Watchdog {
    seen: Arc<Mutex<ProgressMark>>,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

/// The last sign of progress. The lock is held for a few loads and stores.
#[derive(Debug)]
struct ProgressMark {
    signs: u64,
    step: u64,
    what: &'static str,
}

impl Watchdog {
    /// Ends this process with exit code 124, after a line that says where it stood, when
    /// there is no sign of progress for `timeout`; 0 watches nothing. Only time in which
    /// this process could run counts: one that was suspended is not ended on waking.
    ///
    /// # Errors
    /// When the system starts no thread.
    pub fn start(world: &World, timeout: Duration) -> std::io::Result<Self> {
        let host = world.host.clone();
        let rank = if world.size > 1 { format!("rank {}: ", world.rank) } else { String::new() };
        Self::watch(timeout, move |seen| {
            say(format!(
                "error: {rank}nothing has gone forward for {} on {host}: step {}, {}; another rank, the network or a disk may hang; the last checkpoint is whole: go on with --resume auto, or raise run.watchdog_seconds if it is only slow\n",
                human_duration(timeout.as_secs_f64()),
                seen.step,
                seen.what,
            ));
            // No destructors: those of a communicator wait for what hangs.
            signal_hook::low_level::exit(STALLED);
        })
    }

    fn watch(timeout: Duration, stalled: impl FnOnce(&ProgressMark) + Send + 'static) -> std::io::Result<Self> {
        let seen = Arc::new(Mutex::new(ProgressMark { signs: 0, step: 0, what: "starting" }));
        if timeout.is_zero() {
            return Ok(Watchdog { seen, thread: None });
        }
        let (stop, stopped) = mpsc::channel();
        let watched = Arc::clone(&seen);
        let thread = std::thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
            let mut silence = StallTimer::new(timeout);
            // Each wait counts as one tick, however long it really took: a suspended process
            // misses ticks.
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(silence.tick) {
                let signs = lock(&watched).signs;
                if silence.lasts(signs) {
                    return stalled(&lock(&watched));
                }
            }
        })?;
        Ok(Watchdog { seen, thread: Some((stop, thread)) })
    }

    /// Something went forward; from here on the process is busy with `what`, for instance
    /// "reading a batch".
    pub fn progress(&self, what: &'static str) {
        let mut seen = lock(&self.seen);
        seen.signs += 1;
        seen.what = what;
    }

    /// From here on the process is in this step.
    pub fn step(&self, step: u64) {
        let mut seen = lock(&self.seen);
        seen.signs += 1;
        seen.step = step;
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            drop(stop);
            // It waits for nothing but this; a panic of it has been reported.
            let _ = thread.join();
        }
    }
}

fn lock(seen: &Mutex<ProgressMark>) -> MutexGuard<'_, ProgressMark> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts ticks without a sign.
#[derive(Debug)]
struct StallTimer {
    tick: Duration,
    limit: u32,
    ticks: u32,
    signs: u64,
}

impl StallTimer {
    fn new(timeout: Duration) -> Self {
        // A second, or a quarter of a timeout that is shorter than four.
        let tick = Duration::from_secs(1).min(timeout / 4).max(Duration::from_millis(1));
        let limit = timeout.as_nanos().div_ceil(tick.as_nanos());
        StallTimer { tick, limit: u32::try_from(limit).unwrap_or(u32::MAX), ticks: 0, signs: 0 }
    }

    /// Takes note of a tick and of the signs so far; whether the silence was too long.
    fn lasts(&mut self, signs: u64) -> bool {
        self.ticks = if signs == self.signs { self.ticks + 1 } else { 0 };
        self.signs = signs;
        self.ticks >= self.limit
    }
}

/// Writes to stderr, but not for ever: who reads it may be what hangs.
fn say(line: String) {
    let (done, written) = mpsc::channel();
    let writer = std::thread::Builder::new().spawn(move || {
        let _ = std::io::stderr().write_all(line.as_bytes());
        let _ = done.send(());
    });
    if writer.is_ok() {
        let _ = written.recv_timeout(Duration::from_secs(2));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    #[test]
    fn silence_counts_ticks_and_any_sign_breaks_it() {
        let mut silence = StallTimer::new(Duration::from_secs(3));
        assert_eq!((silence.tick, silence.limit), (Duration::from_millis(750), 4));
        assert_eq!([0, 0, 0].map(|signs| silence.lasts(signs)), [false; 3]);
        assert_eq!([1, 1, 1, 1].map(|signs| silence.lasts(signs)), [false; 4]);
        assert!(silence.lasts(1));
        assert_eq!(StallTimer::new(Duration::from_secs(1_800)).limit, 1_800);
    }

    #[test]
    fn a_stall_is_told_with_its_place() {
        let (tell, told) = mpsc::channel();
        let watchdog = Watchdog::watch(Duration::from_millis(50), move |seen| {
            tell.send((seen.step, seen.what)).unwrap();
        });
        let watchdog = watchdog.unwrap();
        watchdog.step(7);
        watchdog.progress("reducing gradients");
        assert_eq!(told.recv_timeout(Duration::from_secs(20)).unwrap(), (7, "reducing gradients"));
    }

    #[test]
    fn progress_and_the_end_of_the_watch_keep_it_quiet() {
        let (tell, told) = mpsc::channel::<()>();
        let watchdog = Watchdog::watch(Duration::from_secs(60), move |_| tell.send(()).unwrap()).unwrap();
        watchdog.progress("a step");
        drop(watchdog);
        // The thread is gone, and with it the sender.
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Err(RecvTimeoutError::Disconnected));
        let off = Watchdog::watch(Duration::ZERO, |_| unreachable!()).unwrap();
        off.progress("nothing");
        assert!(off.thread.is_none());
    }

    const CHILD: &str = "BACKPACK_TEST_WATCHDOG";

    /// Not a test by itself: the process that the next one stalls.
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
    fn a_stalled_process_exits_with_124_and_a_suspended_one_only_later() {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "watchdog::tests::child", "--nocapture"]).env(CHILD, "1");
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "watching"));
        signal(&child, "STOP");
        std::thread::sleep(Duration::from_secs(4));
        signal(&child, "CONT");
        let woken = Instant::now();
        let said = lines.find(|line| line.starts_with("error: ")).unwrap();
        assert!(said.starts_with("error: rank 1: nothing has gone forward for 3s on "), "{said}");
        assert!(said.contains(": step 12, waiting for the other ranks; another rank"), "{said}");
        // Of its four ticks, one at most was over.
        assert!(woken.elapsed() > Duration::from_millis(1_400), "{:?}", woken.elapsed());
        assert_eq!(child.wait().unwrap().code(), Some(STALLED));
    }
}
