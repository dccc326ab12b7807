//! Ports, leased to replicas.
//!
//! vLLM binds its port up to a minute after its start, so a port that is free may already be
//! assigned. A lease lasts as long as the replica's processes. Three things keep leases apart:
//!
//! - Within this target, the set of leased ports.
//! - Between all Forebay processes on the machine, an abstract socket address named after the port.
//!   The supervisor's end of the tether is bound to it, so the kernel frees the address exactly when
//!   the supervisor is gone, even if Forebay was killed and the replica is still stopping. Like
//!   ports, these addresses belong to a network namespace.
//! - Towards all other programs, a test bind.
//!
//! Ports are used in turn, so that a port that was just freed is not leased again at once.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// The ports of a range.
#[derive(Clone, Debug)]
pub(super) struct Ports(Arc<Mutex<PortRange>>);

/// A port that only the holder uses until this is dropped.
#[derive(Debug)]
pub(super) struct PortLease {
    port: u16,
    range: Arc<Mutex<PortRange>>,
}

#[derive(Debug)]
struct PortRange {
    first: u16,
    last: u16,
    /// The start of the next search, counted from the first port.
    next: u32,
    leased: HashSet<u16>,
    /// Ports that were leased before: connections to earlier replicas may linger there.
    used: HashSet<u16>,
}

impl Ports {
    /// The ports from `first` to `last`, searched from `offset`. A random offset is best: other
    /// Forebay processes use the same range.
    pub(super) fn new((first, last): (u16, u16), offset: u32) -> Self {
        let (leased, used) = (HashSet::new(), HashSet::new());
        Self(Arc::new(Mutex::new(PortRange { first, last, next: offset, leased, used })))
    }

    /// Leases a free port. The pair is the tether; its second end, the supervisor's, carries the
    /// lease between Forebay processes.
    ///
    /// # Errors
    /// No port of the range is free, or sockets cannot be had.
    pub(super) fn lease(&self) -> io::Result<(PortLease, UnixStream, UnixStream)> {
        let mut range = self.0.lock();
        let (ours, theirs) = UnixStream::pair()?;
        let candidates = range.candidates();
        let unused = candidates.iter().filter(|port| is_free(**port, false));
        let lingering =
            candidates.iter().filter(|port| range.used.contains(port) && is_free(**port, true));
        // The search is lazy: usually the first port will do.
        for port in unused.chain(lingering).copied() {
            // The pair can be bound only once, so this comes after the test of the port.
            let name = SockAddr::unix(format!("\0forebay-port-{port}"))?;
            match SockRef::from(&theirs).bind(&name) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                Err(error) => return Err(error),
            }
            range.take(port);
            return Ok((PortLease { port, range: self.0.clone() }, ours, theirs));
        }
        let message = format!("no port from {} to {} is free", range.first, range.last);
        Err(io::Error::new(io::ErrorKind::AddrInUse, message))
    }
}

impl Ports {
    /// Leases the port of a replica that another process started, even outside the range. Its
    /// supervisor already holds the lease between processes.
    pub(super) fn adopt(&self, port: u16) -> PortLease {
        let mut range = self.0.lock();
        range.leased.insert(port);
        range.used.insert(port);
        PortLease { port, range: self.0.clone() }
    }
}

impl PortLease {
    /// The address where the replica is to listen.
    pub(super) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        self.range.lock().leased.remove(&self.port);
    }
}

impl PortRange {
    /// Every port that is not leased, in order from the last lease on.
    fn candidates(&self) -> Vec<u16> {
        let count = (u32::from(self.last) + 1).saturating_sub(u32::from(self.first));
        (0..count)
            .filter_map(|step| {
                let offset = (u64::from(self.next) + u64::from(step)) % u64::from(count);
                u16::try_from(u64::from(self.first) + offset).ok()
            })
            .filter(|port| !self.leased.contains(port))
            .collect()
    }

    fn take(&mut self, port: u16) {
        self.leased.insert(port);
        self.used.insert(port);
        self.next = u32::from(port - self.first) + 1;
    }
}

/// Whether no socket is bound to the port, on any IPv4 address.
///
/// Without `SO_REUSEADDR` the test also notices a socket that is bound and does not listen yet, like
/// vLLM's while it loads, and connections in TIME_WAIT. With `reuse` it ignores the latter: on ports
/// used before they are the last replica's.
fn is_free(port: u16, reuse: bool) -> bool {
    let bind = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(reuse)?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())
    };
    bind().is_ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// A range of `length` ports that nothing else uses: a different one for each test, and at a
    /// random place for each process, far below the ephemeral ports.
    fn range(length: u16) -> (u16, u16) {
        static RANGES: LazyLock<Mutex<(u16, u16)>> =
            LazyLock::new(|| Mutex::new((rand::random_range(0..700), 0)));
        let mut ranges = RANGES.lock();
        loop {
            ranges.1 += 1;
            let first = 11_000 + (ranges.0 + ranges.1) % 700 * 10;
            let last = first + length - 1;
            if (first..=last).all(|port| is_free(port, false)) {
                return (first, last);
            }
        }
    }

    fn leases(ports: &Ports, count: usize) -> Vec<(PortLease, UnixStream, UnixStream)> {
        (0..count).map(|_| ports.lease().unwrap()).collect()
    }

    fn numbers(leases: &[(PortLease, UnixStream, UnixStream)]) -> Vec<u16> {
        leases.iter().map(|lease| lease.0.port()).collect()
    }

    #[test]
    fn each_port_is_leased_once_until_none_is_left() {
        let (first, last) = range(4);
        let ports = Ports::new((first, last), 2);
        let held = leases(&ports, 4);
        assert_eq!(numbers(&held), [first + 2, last, first, first + 1]);
        let error = ports.lease().unwrap_err().to_string();
        assert_eq!(error, format!("no port from {first} to {last} is free"));
        drop(held);
        assert_eq!(numbers(&leases(&ports, 1)), [first + 2]);
    }

    #[test]
    fn a_freed_port_is_not_the_next_one() {
        let (first, last) = range(3);
        let ports = Ports::new((first, last), 0);
        let ran: Vec<_> = (0..4).map(|_| ports.lease().unwrap().0.port()).collect();
        assert_eq!(ran, [first, first + 1, last, first]);
    }

    #[test]
    fn a_port_that_something_listens_on_is_skipped() {
        let range = range(2);
        let _taken = TcpListener::bind(("127.0.0.1", range.0)).unwrap();
        assert_eq!(numbers(&leases(&Ports::new(range, 0), 1)), [range.1]);
    }

    #[test]
    fn a_port_that_is_bound_and_not_listened_on_yet_is_skipped() {
        let range = range(2);
        let vllm = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        vllm.set_reuse_address(true).unwrap();
        vllm.bind(&SocketAddr::from(([127, 0, 0, 1], range.0)).into()).unwrap();
        assert_eq!(numbers(&leases(&Ports::new(range, 0), 1)), [range.1]);
    }

    #[test]
    fn another_process_gets_other_ports_while_the_supervisor_lives() {
        let range = range(2);
        let (one, other) = (Ports::new(range, 0), Ports::new(range, 0));
        let (lease, mut ours, theirs) = one.lease().unwrap();
        assert_eq!(numbers(&leases(&other, 1)), [range.1]);
        // Forebay's end and lease are gone, the supervisor's end is not.
        drop(lease);
        ours.set_nonblocking(true).unwrap();
        assert_eq!(ours.read(&mut [0; 1]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!(numbers(&leases(&Ports::new(range, 0), 1)), [range.1]);
        drop(theirs);
        assert_eq!(ours.read(&mut [0; 1]).unwrap(), 0);
        assert_eq!(numbers(&leases(&Ports::new(range, 0), 1)), [range.0]);
    }

    #[test]
    fn lingering_connections_don_t_keep_the_only_port_from_its_next_replica() {
        let (port, _) = range(1);
        let ports = Ports::new((port, port), 0);
        drop(ports.lease().unwrap());
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        // The side that closes first keeps TIME_WAIT.
        drop((listener.accept().unwrap(), listener));
        drop(client);
        assert!(!is_free(port, false), "nothing lingers");
        assert_eq!(ports.lease().unwrap().0.port(), port);
    }

    proptest! {
        #[test]
        fn candidates_are_every_port_that_is_not_leased_once(
            first in 1_u16..=u16::MAX,
            length in 0_u16..50,
            next: u32,
            leased in proptest::collection::hash_set(0_u16..50, 0..20),
        ) {
            let last = first.saturating_add(length);
            let leased: HashSet<u16> =
                leased.iter().map(|step| first.saturating_add(*step)).collect();
            let range =
                PortRange { first, last, next, leased: leased.clone(), used: HashSet::new() };
            let mut found = range.candidates();
            found.sort_unstable();
            let expected: Vec<u16> = (first..=last).filter(|port| !leased.contains(port)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
