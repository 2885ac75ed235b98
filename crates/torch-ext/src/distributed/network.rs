//! Host names, addresses and connections.

use std::ffi::c_char;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Error, check, take_string};

unsafe extern "C" {
    fn bpx_interfaces(out: *mut *mut c_char) -> *mut c_char;
}

/// Returns the host name of this machine.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// Returns the names of the network interfaces of this machine that are up, each with its first
/// address, in the order of the kernel.
///
/// # Errors
/// Returns an error if the system call fails.
pub fn interfaces() -> Result<Vec<(String, String)>, Error> {
    let mut text = std::ptr::null_mut();
    // SAFETY: on success, the shim has stored a string, which is now ours.
    let text = unsafe {
        check(bpx_interfaces(&mut text))?;
        take_string(text)
    };
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(name, address)| (name.to_owned(), address.to_owned())).collect())
}

/// Returns the address to which the host name of this machine resolves; `None` if it resolves to no
/// address of this machine.
pub fn local_address() -> Option<IpAddr> {
    let addresses = (host_name().as_str(), 0).to_socket_addrs().ok()?;
    // An address that cannot be bound belongs to another machine.
    addresses.map(|address| address.ip()).find(|address| TcpListener::bind((*address, 0)).is_ok())
}

/// Listens on `port`: on the loopback interface if `host` is a loopback address, because every
/// client of the store can write to it, otherwise on all interfaces.
pub(super) fn listen(host: &str, port: u16) -> Result<TcpListener, Error> {
    let listener = match loopback_address(host) {
        Some(address) => TcpListener::bind((address, port)),
        // This socket accepts IPv4, too, if the kernel supports IPv6.
        None => TcpListener::bind(("::", port)).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => TcpListener::bind(("0.0.0.0", port)),
        }),
    };
    listener.map_err(|error| {
        let (host, cause) = (host_name(), cause_without_code(&error));
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program, perhaps an earlier run, uses this port: stop it, or choose another port (MASTER_PORT)"
            }
            _ => "choose another port (MASTER_PORT)",
        };
        Error(format!("rank 0 cannot listen at port {port} of {host} ({cause}): {remedy}"))
    })
}

/// Returns the loopback address that `host`, a name or an address, denotes; `None` if it denotes
/// another address. Does not look up names: of all names, only `localhost` is recognized.
pub fn loopback_address(host: &str) -> Option<IpAddr> {
    if host == "localhost" {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    host.parse::<IpAddr>().ok().filter(IpAddr::is_loopback)
}

/// The two ends of a connection.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) remote: SocketAddr,
    pub(super) local: IpAddr,
}

/// Connects to `host:port`, where rank 0 listens. Retries until `timeout` after `begin`, because
/// rank 0 may be started later.
pub(super) fn connect(host: &str, port: u16, rank: usize, begin: Instant, timeout: Duration) -> Result<Route, Error> {
    let mut delay = Duration::from_millis(20);
    loop {
        let remaining = timeout.saturating_sub(begin.elapsed());
        let error = match try_connect(host, port, remaining.max(Duration::from_millis(100))) {
            Ok(route) => return Ok(route),
            Err(error) => error,
        };
        if timeout.saturating_sub(begin.elapsed()) <= delay {
            return Err(Error(format!(
                "rank {rank} on {} could not reach rank 0 at {host}:{port} within {} ({}): check that rank 0 runs, and the address and port (MASTER_ADDR, MASTER_PORT)",
                host_name(),
                format_seconds(timeout),
                cause_without_code(&error)
            )));
        }
        sleep(delay);
        // The delay grows, because thousands of ranks may be connecting.
        delay = (delay * 2).min(Duration::from_secs(1));
    }
}

fn try_connect(host: &str, port: u16, timeout: Duration) -> io::Result<Route> {
    let mut last_error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = match loopback_address(host) {
        Some(address) => vec![(address, port).into()],
        None => (host, port).to_socket_addrs()?.collect(),
    };
    for remote in &addresses {
        // An address that does not respond must leave time for the others.
        let share = timeout.min(Duration::from_secs(10));
        match TcpStream::connect_timeout(remote, share) {
            Ok(connection) => return Ok(Route { remote: *remote, local: connection.local_addr()?.ip() }),
            Err(error) => last_error = error,
        }
    }
    Err(last_error)
}

/// Returns the message of an error without its code: `Connection refused (os error 111)` becomes
/// `Connection refused`.
fn cause_without_code(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// Formats a duration in seconds: `2.5 s`, `900 s`.
pub(super) fn format_seconds(duration: Duration) -> String {
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_are_recognized_without_lookup() {
        for host in ["localhost", "127.0.0.1", "127.0.1.1", "::1"] {
            assert!(loopback_address(host).is_some_and(|address| address.is_loopback()), "{host}");
        }
        for host in ["node1", "10.0.0.1", "::", ""] {
            assert_eq!(loopback_address(host), None, "{host}");
        }
    }

    #[test]
    fn this_machine_has_a_host_name_and_interfaces() {
        assert!(!host_name().is_empty());
        assert!(interfaces().unwrap().contains(&("lo".to_owned(), "127.0.0.1".to_owned())));
    }

    #[test]
    fn connecting_waits_for_a_late_listener() {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let late = std::thread::spawn(move || {
            sleep(Duration::from_millis(150));
            listen("localhost", port).unwrap()
        });
        let route = connect("localhost", port, 1, Instant::now(), Duration::from_secs(20)).unwrap();
        assert!(route.local.is_loopback());
        assert_eq!(late.join().unwrap().local_addr().unwrap(), route.remote);
    }

    #[test]
    fn seconds_are_rounded_to_tenths() {
        assert_eq!(format_seconds(Duration::from_secs(900)), "900 s");
        assert_eq!(format_seconds(Duration::from_millis(2540)), "2.5 s");
    }
}
