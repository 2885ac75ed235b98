//! The process and its machine: device, CPU threads, memory, signals, time limit and watchdog.

pub(crate) mod cpu_topology;
pub(crate) mod device;
pub(crate) mod gpu_count;
pub(crate) mod memory;
pub(crate) mod signals;
pub(crate) mod threads;
pub(crate) mod time_limit;
pub(crate) mod watchdog;
