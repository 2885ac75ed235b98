//! Ends a rank when its launcher ends.

use std::env;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Environment variable that holds the process id of a rank's launcher.
pub(crate) const LAUNCHER_PID: &str = "BACKPACK_LAUNCHER";

/// If `launch` started this process, makes the kernel kill it when the launcher ends for any
/// reason.
///
/// # Errors
/// If the launcher has already ended.
pub(crate) fn exit_with_launcher() -> Result<()> {
    let Ok(launcher) = env::var(LAUNCHER_PID) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL)).context("cannot set the parent death signal")?;
    // The launcher may have ended before that call.
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    ensure!(
        launcher == parent.to_string(),
        "{LAUNCHER_PID} is {launcher}, but the parent process is {parent}: the launcher has ended, or the variable was set by hand"
    );
    Ok(())
}
