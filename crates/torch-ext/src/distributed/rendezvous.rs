//! Meeting at the store: who is there, and where each can be reached.

use std::ffi::c_char;
use std::net::IpAddr;
use std::os::fd::IntoRawFd;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use crate::distributed::network::{self, host_name, seconds};
use crate::error::{Error, c_string, check, take};

/// The C++ side's store.
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

/// Where a process meets the others, and as whom.
#[derive(Debug, Clone, Copy)]
pub struct Rendezvous<'a> {
    /// The machine of rank 0, by a name or address that every rank can use.
    pub host: &'a str,
    /// The port that rank 0 serves the store at.
    pub port: u16,
    /// This process, below `world_size`.
    pub rank: usize,
    /// How many processes there are.
    pub world_size: usize,
    /// How long to wait for the others.
    pub timeout: Duration,
    /// The network interface that Gloo uses, or several separated by commas. `None` for
    /// GLOO_SOCKET_IFNAME, else the one that leads to rank 0.
    pub interface: Option<&'a str>,
    /// Equal for the processes of one attempt, and for no others.
    pub name: &'a str,
}

/// The store, and where this process can be reached.
#[derive(Debug)]
pub(super) struct TcpStore {
    raw: NonNull<RawStore>,
    /// Comma-separated; empty for the address alone.
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
    // c10d takes zero for "no limit".
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX).max(1)
}

impl TcpStore {
    /// Waits until all ranks have met, and makes sure that each can reach the others.
    pub(super) fn open(at: &Rendezvous<'_>, begun: Instant) -> Result<Self, Error> {
        if at.rank >= at.world_size {
            return Err(Error(format!("rank {} is not below the world size {}", at.rank, at.world_size)));
        }
        let from_environment = std::env::var("GLOO_SOCKET_IFNAME").unwrap_or_default();
        let interfaces = at.interface.filter(|name| !name.is_empty()).unwrap_or(&from_environment).to_owned();
        require_interfaces(&interfaces)?;
        let listener = match at.rank {
            0 => network::listen(at.host, at.port)?.into_raw_fd(),
            _ => -1,
        };
        let route = network::reach(at.host, at.port, at.rank, begun, at.timeout)?;
        let host = c_string(&route.to.ip().to_string())?;
        let name = c_string(if at.name.is_empty() { "backpack" } else { at.name })?;
        let mut raw = std::ptr::null_mut();
        // SAFETY: strings that outlive the call; the socket's descriptor becomes the store's.
        check(unsafe {
            bpx_store_open(host.as_ptr(), at.port, listener, millis(left(at, begun)), name.as_ptr(), &mut raw)
        })
        .map_err(|error| lost(at, &error))?;
        let Some(raw) = NonNull::new(raw) else { return Err(Error("libtorch made no store".to_owned())) };
        let store = TcpStore { raw, interfaces, address: route.from };
        store.meet(at, begun)?;
        Ok(store)
    }

    pub(super) fn as_ptr(&self) -> *mut RawStore {
        self.raw.as_ptr()
    }

    fn meet(&self, at: &Rendezvous<'_>, begun: Instant) -> Result<(), Error> {
        let host = host_name();
        // Named interfaces are the user's own choice.
        let unreachable = self.interfaces.is_empty() && self.address.is_loopback();
        let text = c_string(&format!("{host} {unreachable}"))?;
        let size = at.world_size as i64;
        let mut members = std::ptr::null_mut();
        // SAFETY: a live store, a string that outlives the call; on success the shim stored a
        // string that is ours.
        let members = unsafe {
            check(bpx_store_enter(self.as_ptr(), at.rank as i64, text.as_ptr())).map_err(|error| lost(at, &error))?;
            check(bpx_store_members(self.as_ptr(), size, millis(left(at, begun)), &mut members))
                .map_err(|error| self.not_all(at, &error))?;
            take(members)
        };
        let members: Vec<(&str, bool)> =
            members.lines().filter_map(|line| line.split_once(' ')).map(|(host, own)| (host, own == "true")).collect();
        let elsewhere = members.iter().any(|(other, _)| *other != host);
        let stuck = members.iter().enumerate().find(|(_, (_, unreachable))| *unreachable);
        match stuck {
            Some((rank, (on, _))) if elsewhere => Err(Error(format!(
                "rank {rank} on {on} could be reached by processes of its own machine only ({} leads to a loopback address there): give the nodes' common network interface (distributed.interface), or the address of rank 0's machine as other nodes see it (MASTER_ADDR)",
                at.host
            ))),
            _ => Ok(()),
        }
    }

    /// Who is missing, after the time is up.
    fn not_all(&self, at: &Rendezvous<'_>, error: &Error) -> Error {
        let mut missing = std::ptr::null_mut();
        // SAFETY: as above.
        let missing = unsafe {
            match check(bpx_store_missing(self.as_ptr(), at.world_size as i64, &mut missing)) {
                Ok(()) => take(missing),
                Err(_) => return lost(at, error),
            }
        };
        let missing: Vec<&str> = missing.split_whitespace().collect();
        let (shown, more) = missing.split_at(missing.len().min(8));
        let joined = at.world_size - missing.len();
        Error(format!(
            "{joined} of {} ranks joined at {}:{} within {}; missing: {}{}: look there for errors, and check that all were given this address and world size",
            at.world_size,
            at.host,
            at.port,
            seconds(at.timeout),
            shown.join(", "),
            if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) }
        ))
    }
}

fn left(at: &Rendezvous<'_>, begun: Instant) -> Duration {
    // A moment for what is only waiting for its turn.
    at.timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(500))
}

/// The store, or the way to it, went away.
fn lost(at: &Rendezvous<'_>, error: &Error) -> Error {
    Error(format!(
        "rank {} lost rank 0 at {}:{} while joining: rank 0 has ended, see its message ({error})",
        at.rank, at.host, at.port
    ))
}

fn require_interfaces(names: &str) -> Result<(), Error> {
    let present = network::interfaces()?;
    for name in names.split(',').filter(|name| !name.is_empty()) {
        if !present.iter().any(|(there, _)| there == name) {
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
