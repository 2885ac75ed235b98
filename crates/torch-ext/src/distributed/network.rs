//! Names, addresses and connections.

use std::ffi::c_char;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Error, check, take};

unsafe extern "C" {
    fn bpx_interfaces(out: *mut *mut c_char) -> *mut c_char;
}

/// The name of this machine.
pub fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// The network interfaces of this machine that are up, each with its first address, in the
/// kernel's order.
///
/// # Errors
/// When the kernel does not say.
pub fn interfaces() -> Result<Vec<(String, String)>, Error> {
    let mut text = std::ptr::null_mut();
    // SAFETY: on success the shim stored a string that is ours.
    let text = unsafe {
        check(bpx_interfaces(&mut text))?;
        take(text)
    };
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    Ok(pairs.map(|(name, address)| (name.to_owned(), address.to_owned())).collect())
}

/// The address that the name of this machine stands for; `None` where it has none of its own.
pub fn own_address() -> Option<IpAddr> {
    let found = (host_name().as_str(), 0).to_socket_addrs().ok()?;
    // What cannot be bound belongs to another machine.
    found.map(|address| address.ip()).find(|address| TcpListener::bind((*address, 0)).is_ok())
}

/// A socket that listens at `port`: on the loopback interface if `host` is there, since
/// whoever reaches the store may write to it; else on all.
pub(super) fn listen(host: &str, port: u16) -> Result<TcpListener, Error> {
    let listener = match loopback(host) {
        Some(address) => TcpListener::bind((address, port)),
        // Dual-stack where the kernel has IPv6.
        None => TcpListener::bind(("::", port)).or_else(|error| match error.kind() {
            io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => Err(error),
            _ => TcpListener::bind(("0.0.0.0", port)),
        }),
    };
    listener.map_err(|error| {
        let (here, why) = (host_name(), first_cause(&error));
        let way_out = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "another program, perhaps an earlier run, has this port: end it, or choose another port (MASTER_PORT)"
            }
            _ => "choose another port (MASTER_PORT)",
        };
        Error(format!("rank 0 cannot listen at port {port} of {here} ({why}): {way_out}"))
    })
}

/// The loopback address that a name or number stands for by its looks.
pub(super) fn loopback(host: &str) -> Option<IpAddr> {
    if host == "localhost" {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    host.parse::<IpAddr>().ok().filter(IpAddr::is_loopback)
}

/// The far and the near end of a connection.
#[derive(Debug)]
pub(super) struct Interface {
    pub(super) to: SocketAddr,
    pub(super) from: IpAddr,
}

/// Connects to `host:port`, trying again until `deadline`: the one who listens there may be
/// started later.
pub(super) fn reach(host: &str, port: u16, rank: usize, begun: Instant, timeout: Duration) -> Result<Interface, Error> {
    let mut pause = Duration::from_millis(20);
    loop {
        let left = timeout.saturating_sub(begun.elapsed());
        let failed = match try_to_reach(host, port, left.max(Duration::from_millis(100))) {
            Ok(route) => return Ok(route),
            Err(error) => error,
        };
        if timeout.saturating_sub(begun.elapsed()) <= pause {
            return Err(Error(format!(
                "rank {rank} on {} could not reach rank 0 at {host}:{port} within {} ({}): check that rank 0 runs, and the address and port (MASTER_ADDR, MASTER_PORT)",
                host_name(),
                seconds(timeout),
                first_cause(&failed)
            )));
        }
        sleep(pause);
        // Seconds at most: thousands of ranks may be asking.
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

fn try_to_reach(host: &str, port: u16, timeout: Duration) -> io::Result<Interface> {
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let addresses: Vec<SocketAddr> = match loopback(host) {
        Some(address) => vec![(address, port).into()],
        None => (host, port).to_socket_addrs()?.collect(),
    };
    for to in &addresses {
        // An address that swallows what is sent to it leaves time for the others.
        let share = timeout.min(Duration::from_secs(10));
        match TcpStream::connect_timeout(to, share) {
            Ok(connection) => return Ok(Interface { to: *to, from: connection.local_addr()?.ip() }),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// `Connection refused (os error 111)` without the number.
fn first_cause(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

/// `2.5 s`, `900 s`.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{} s", (duration.as_secs_f64() * 10.0).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_its_looks() {
        for host in ["localhost", "127.0.0.1", "127.0.1.1", "::1"] {
            assert!(loopback(host).is_some_and(|address| address.is_loopback()), "{host}");
        }
        for host in ["node1", "10.0.0.1", "::", ""] {
            assert_eq!(loopback(host), None, "{host}");
        }
    }

    #[test]
    fn this_machine_has_a_name_and_interfaces() {
        assert!(!host_name().is_empty());
        assert!(interfaces().unwrap().contains(&("lo".to_owned(), "127.0.0.1".to_owned())));
    }

    #[test]
    fn who_comes_late_is_waited_for() {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let late = std::thread::spawn(move || {
            sleep(Duration::from_millis(150));
            listen("localhost", port).unwrap()
        });
        let route = reach("localhost", port, 1, Instant::now(), Duration::from_secs(20)).unwrap();
        assert!(route.from.is_loopback());
        assert_eq!(late.join().unwrap().local_addr().unwrap(), route.to);
    }

    #[test]
    fn durations_are_said_shortly() {
        assert_eq!(seconds(Duration::from_secs(900)), "900 s");
        assert_eq!(seconds(Duration::from_millis(2540)), "2.5 s");
    }
}
