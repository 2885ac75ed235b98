//! Signals that stop a run after the current step.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

/// A flag that SIGINT, SIGTERM and SIGUSR1 set. The run then stops after the current step.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    requested: Arc<AtomicBool>,
    /// Installed signal handlers.
    handlers: Vec<SigId>,
}

impl Stop {
    /// Installs the signal handlers.
    ///
    /// `main` calls this first, because a signal that arrives earlier terminates the process. A
    /// second SIGTERM or SIGINT exits immediately with code 128 + signal number. In a Slurm step
    /// only a second SIGINT does.
    pub fn install() -> io::Result<Self> {
        let mut stop = Stop::default();
        // With a handler, a write beyond the file-size limit returns an error, as on a full disk.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        // This flag excludes SIGUSR1: a SIGTERM after Slurm's SIGUSR1 counts as the first one.
        let terminated = Arc::new(AtomicBool::new(false));
        // Slurm stops a task with two consecutive SIGTERMs: slurmd sends one to the task, and one
        // to srun, which forwards it. SIGKILL follows after KillWait.
        let in_slurm_step = std::env::var_os("SLURM_STEP_ID").is_some();
        for signal in [SIGINT, SIGTERM] {
            // This handler runs before the one that sets the flag, so only the second signal exits.
            if signal == SIGINT || !in_slurm_step {
                let exit_on_second =
                    signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&terminated))?;
                stop.handlers.push(exit_on_second);
            }
            stop.handlers.push(signal_hook::flag::register(signal, Arc::clone(&terminated))?);
        }
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            stop.handlers.push(signal_hook::flag::register(signal, Arc::clone(&stop.requested))?);
        }
        Ok(stop)
    }

    /// Restores the default action: the next signal terminates the process. If a signal has already
    /// arrived, the process exits here.
    pub fn restore_default_action(&self) -> io::Result<()> {
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            let always = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, always)?;
        }
        self.exit_if_requested();
        Ok(())
    }

    /// Removes the handlers, for a command that has installed other ones. If a signal has already
    /// arrived, the process exits here.
    pub fn uninstall(&self) {
        for &handler in &self.handlers {
            signal_hook::low_level::unregister(handler);
        }
        self.exit_if_requested();
    }

    fn exit_if_requested(&self) {
        if self.requested() {
            std::process::exit(128 + SIGTERM);
        }
    }

    /// Returns whether a signal has requested a stop.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Relaxed)
    }
}
