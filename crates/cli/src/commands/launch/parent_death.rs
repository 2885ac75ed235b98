//! The bond between `backpack launch` and the processes that it starts.

use std::env;

use anyhow::{Context, Result, ensure};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// The variable that gives a rank the process id of its launcher.
pub(crate) const LAUNCHER: &str = "BACKPACK_LAUNCHER";

/// Lets a rank end with its launcher, even when that is killed: the kernel sees to it.
///
/// # Errors
/// When the launcher is gone already.
pub(crate) fn end_with_launcher() -> Result<()> {
    let Ok(launcher) = env::var(LAUNCHER) else {
        return Ok(());
    };
    set_parent_process_death_signal(Some(Signal::KILL)).context("the launcher's death cannot be watched")?;
    // It may have died before that line.
    let parent = getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    ensure!(
        launcher == parent.to_string(),
        "{LAUNCHER} is {launcher}, but process {parent} started this one: the launcher is gone, or the variable was set by hand"
    );
    Ok(())
}
