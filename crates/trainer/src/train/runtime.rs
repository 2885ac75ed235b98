//! The device, threads and limits of this process during a run.

use std::time::Duration;

use anyhow::{Context, Result};
use tch::Device;

use crate::config::Config;
use crate::distributed::world::World;
use crate::logging::sessions::HardwareInfo;
use crate::runtime::device::{device_type, select_device};
use crate::runtime::signals::Stop;
use crate::runtime::threads::{Threads, set_threads};
use crate::runtime::time_limit::{TimeLimit, slurm_time_left};
use crate::runtime::watchdog::Watchdog;
use crate::train::options::TrainOptions;

/// The device, threads and limits of this process during a run.
pub(crate) struct Runtime<'a> {
    pub(crate) device: Device,
    threads: Threads,
    pub(crate) time_limit: TimeLimit,
    pub(crate) watchdog: Watchdog,
    pub(crate) stop: &'a Stop,
}

impl<'a> Runtime<'a> {
    /// Selects device and threads, and starts the watchdog.
    ///
    /// # Errors
    /// The device or the threads are not available, or the watchdog thread cannot be started.
    pub(crate) fn start(config: &Config, options: &TrainOptions, stop: &'a Stop) -> Result<Self> {
        let world = &options.world;
        let time_limit = TimeLimit::new(options.time_limit, slurm_time_left());
        let threads = set_threads(config.run.threads, config.run.pin_threads, world.local)?;
        let device = select_device(config.run.device, world.local)?;
        // A dry run ends by itself, so it needs no watchdog. A timeout of 0 starts none.
        let timeout = if options.dry_run { 0 } else { config.run.watchdog_seconds };
        let watchdog = Watchdog::start(world, Duration::from_secs(timeout))
            .context("the watchdog thread cannot be started: check the limit on processes (ulimit -u)")?;
        Ok(Runtime { device, threads, time_limit, watchdog, stop })
    }

    /// Returns the hardware for the session record of a run.
    pub(crate) fn hardware(&self, world: &World) -> HardwareInfo {
        HardwareInfo {
            processes: world.size as u64,
            threads: self.threads.count,
            device: self.device_name(),
            host: world.host.clone(),
        }
    }

    /// Returns a log line about device and threads.
    pub(crate) fn describe(&self) -> String {
        format!("machine     {}, {}", self.device_name(), self.threads)
    }

    fn device_name(&self) -> &'static str {
        device_type(self.device.is_cuda())
    }
}
