//! Signals that ask a run to stop.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::SigId;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1, SIGXFSZ};

/// A flag that SIGINT, SIGTERM and SIGUSR1 raise: the run stops after the step it is in.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    /// What is installed.
    handlers: Vec<SigId>,
}

impl Stop {
    /// Installs the handlers. First thing in `main`: a signal that comes before would end
    /// the process. A second SIGTERM or SIGINT exits at once, with 128 + its number; in a Slurm
    /// step only SIGINT does.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn install() -> io::Result<Self> {
        let mut stop = Stop::default();
        // A write past the file-size limit is then an error like that of a full disk.
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        // Not the same flag: a SIGTERM after Slurm's SIGUSR1 is the first of its kind.
        let terminated = Arc::new(AtomicBool::new(false));
        // Slurm ends a task by two SIGTERMs in a row, slurmd's and that of srun, which got one
        // too; SIGKILL follows after its KillWait in any case.
        let in_slurm_step = std::env::var_os("SLURM_STEP_ID").is_some();
        for signal in [SIGINT, SIGTERM] {
            // Checked before the next line's handler raises the flag, so only the second exits.
            if signal == SIGINT || !in_slurm_step {
                let second =
                    signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&terminated))?;
                stop.handlers.push(second);
            }
            stop.handlers.push(signal_hook::flag::register(signal, Arc::clone(&terminated))?);
        }
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            stop.handlers.push(signal_hook::flag::register(signal, Arc::clone(&stop.flag))?);
        }
        Ok(stop)
    }

    /// From now on the first signal ends the process, as it does without handlers; one that
    /// came already does so here.
    ///
    /// # Errors
    /// When the system refuses a handler.
    pub fn restore_default_action(&self) -> io::Result<()> {
        for signal in [SIGINT, SIGTERM, SIGUSR1] {
            let always = Arc::new(AtomicBool::new(true));
            signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, always)?;
        }
        self.exit_if_requested();
        Ok(())
    }

    /// Takes the handlers away, for a command that has installed its own before; a signal
    /// that came already ends the process here.
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

    /// Whether a stop was asked for.
    pub fn requested(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}
