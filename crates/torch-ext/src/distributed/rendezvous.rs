//! The rendezvous: all ranks register in a store that rank 0 serves, with their addresses.

use std::ffi::c_char;
use std::net::IpAddr;
use std::os::fd::IntoRawFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use crate::distributed::network::{self, format_seconds, host_name};
use crate::error::{Error, c_string, check, take_string};

/// The store in C++.
#[repr(C)]
pub(super) struct RawStore {
    _opaque: [u8; 0],
}

unsafe extern "C" {
    fn bpx_store_open(
        host: *const c_char,
        port: u16,
        listener: i32,
        timeout_ms: i64,
        name: *const c_char,
        out: *mut *mut RawStore,
    ) -> *mut c_char;
    fn bpx_store_enter(store: *mut RawStore, rank: i64, text: *const c_char) -> *mut c_char;
    fn bpx_store_members(store: *mut RawStore, size: i64, timeout_ms: i64, out: *mut *mut c_char) -> *mut c_char;
    fn bpx_store_missing(store: *mut RawStore, size: i64, out: *mut *mut c_char) -> *mut c_char;
    fn bpx_store_free(store: *mut RawStore);
}

/// How a process joins the others.
#[derive(Debug, Clone, Copy)]
pub struct Rendezvous<'a> {
    /// Host name or address of the machine of rank 0, which every rank can reach.
    pub host: &'a str,
    /// Port of the store of rank 0.
    pub port: u16,
    /// Rank of this process, below `world_size`.
    pub rank: usize,
    /// Number of processes.
    pub world_size: usize,
    /// How long to wait for the other ranks.
    pub timeout: Duration,
    /// Network interface that Gloo uses, or several separated by commas. `None`: the interfaces in
    /// the variable GLOO_SOCKET_IFNAME, or else the interface that connects to rank 0.
    pub interface: Option<&'a str>,
    /// Name of this launch, which differs from that of all other launches.
    pub name: &'a str,
}

/// The store, and the address of this process.
#[derive(Debug)]
pub(super) struct TcpStore {
    raw: NonNull<RawStore>,
    /// Network interfaces, separated by commas; empty to use only the address.
    pub(super) interfaces: String,
    /// The address of this process.
    pub(super) address: IpAddr,
}

impl Drop for TcpStore {
    fn drop(&mut self) {
        // SAFETY: made by bpx_store_open, freed once.
        unsafe { bpx_store_free(self.raw.as_ptr()) }
    }
}

pub(super) fn millis(duration: Duration) -> i64 {
    // c10d interprets zero as "no limit".
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

impl TcpStore {
    /// Waits until all ranks have registered, and checks that each can reach the others.
    pub(super) fn open(rendezvous: &Rendezvous<'_>, begin: Instant) -> Result<Self, Error> {
        if rendezvous.rank >= rendezvous.world_size {
            return Err(Error(format!(
                "rank {} is not below the world size {}",
                rendezvous.rank, rendezvous.world_size
            )));
        }
        let from_environment = std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default();
        let interfaces = rendezvous.interface.filter(|name| !name.is_empty()).unwrap_or(&from_environment).to_owned();
        require_interfaces(&interfaces)?;
        let listener = match rendezvous.rank {
            0 => network::listen(rendezvous.host, rendezvous.port)?.into_raw_fd(),
            _ => -1,
        };
        let route = network::connect(rendezvous.host, rendezvous.port, rendezvous.rank, begin, rendezvous.timeout)?;
        let host = c_string(&route.remote.ip().to_string())?;
        let name = c_string(if rendezvous.name.is_empty() { "backpack" } else { rendezvous.name })?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: strings that outlive the call. The store becomes the owner of the socket.
        check(unsafe {
            bpx_store_open(
                host.as_ptr(),
                rendezvous.port,
                listener,
                millis(remaining(rendezvous, begin)),
                name.as_ptr(),
                &mut raw,
            )
        })
        .map_err(|error| lost(rendezvous, &error))?;
        let Some(raw) = NonNull::new(raw) else { return Err(Error("libtorch made no store".to_owned())) };
        let store = TcpStore { raw, interfaces, address: route.local };
        store.register(rendezvous, begin)?;
        Ok(store)
    }

    pub(super) fn as_ptr(&self) -> *mut RawStore {
        self.raw.as_ptr()
    }

    fn register(&self, rendezvous: &Rendezvous<'_>, begin: Instant) -> Result<(), Error> {
        let host = host_name();
        // Interfaces that the user has chosen are not checked.
        let unreachable = self.interfaces.is_empty() && self.address.is_loopback();
        let text = c_string(&format!("{host} {unreachable}"))?;
        let size = rendezvous.world_size as i64;
        let mut members = std::ptr::null_mut();
        // SAFETY: a live store, and a string that outlives the call. On success, the shim has
        // stored a string, which is now ours.
        let members = unsafe {
            check(bpx_store_enter(self.as_ptr(), rendezvous.rank as i64, text.as_ptr()))
                .map_err(|error| lost(rendezvous, &error))?;
            check(bpx_store_members(self.as_ptr(), size, millis(remaining(rendezvous, begin)), &mut members))
                .map_err(|error| self.missing_ranks(rendezvous, &error))?;
            take_string(members)
        };
        let members: Vec<(&str, bool)> =
            members.lines().filter_map(|line| line.split_once(' ')).map(|(host, own)| (host, own == "true")).collect();
        let several_hosts = members.iter().any(|(other, _)| *other != host);
        let local_only = members.iter().enumerate().find(|(_, (_, unreachable))| *unreachable);
        match local_only {
            Some((rank, (on, _))) if several_hosts => Err(Error(format!(
                "rank {rank} on {on} can be reached only from its own machine ({} resolves to a loopback address there): set the common network interface of the nodes (distributed.interface), or an address of rank 0's machine that other nodes can reach (MASTER_ADDR)",
                rendezvous.host
            ))),
            _ => Ok(()),
        }
    }

    /// Returns an error that names the ranks that have not registered in time.
    fn missing_ranks(&self, rendezvous: &Rendezvous<'_>, error: &Error) -> Error {
        let mut missing = std::ptr::null_mut();
        // SAFETY: a live store. On success, the shim has stored a string, which is now ours.
        let missing = unsafe {
            match check(bpx_store_missing(self.as_ptr(), rendezvous.world_size as i64, &mut missing)) {
                Ok(()) => take_string(missing),
                Err(_) => return lost(rendezvous, error),
            }
        };
        let missing: Vec<&str> = missing.split_whitespace().collect();
        let (shown, more) = missing.split_at(missing.len().min(8));
        let joined = rendezvous.world_size - missing.len();
        Error(format!(
            "{joined} of {} ranks joined at {}:{} within {}; missing: {}{}: check their logs, and that all ranks have this address and world size",
            rendezvous.world_size,
            rendezvous.host,
            rendezvous.port,
            format_seconds(rendezvous.timeout),
            shown.join(", "),
            if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) }
        ))
    }
}

fn remaining(rendezvous: &Rendezvous<'_>, begin: Instant) -> Duration {
    // A minimum, for operations that are about to complete.
    rendezvous.timeout.saturating_sub(begin.elapsed()).max(Duration::from_millis(500))
}

/// Returns the error for a lost connection to the store.
fn lost(rendezvous: &Rendezvous<'_>, error: &Error) -> Error {
    Error(format!(
        "rank {} lost rank 0 at {}:{} while joining: rank 0 has stopped; see its message ({error})",
        rendezvous.rank, rendezvous.host, rendezvous.port
    ))
}

fn require_interfaces(names: &str) -> Result<(), Error> {
    let present = network::interfaces()?;
    for name in names.split(',').filter(|name| !name.is_empty()) {
        if !present.iter().any(|(other, _)| other == name) {
            let present: Vec<&str> = present.iter().map(|(name, _)| name.as_str()).collect();
            return Err(Error(format!(
                "{} has no network interface {name:?} with an address: it has {} (distributed.interface)",
                host_name(),
                present.join(", ")
            )));
        }
    }
    Ok(())
}
