//! The admin port while one client holds thousands of its connections open.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{Forebay, connect, eventually, get, status};

const CONNECTIONS: usize = 2_000;

/// Makes room for this test's own connections, and for those of tests in the same process.
fn raise_the_limit() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let need = soft.max(hard.min(3 * CONNECTIONS as u64));
    setrlimit(Resource::RLIMIT_NOFILE, need, hard).expect("up to the hard limit");
}

#[test]
fn connections_without_a_request_are_closed_and_keep_no_client_out() {
    raise_the_limit();
    let forebay = Forebay::dev(&[]);
    let open: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|n| {
            let mut stream = connect(forebay.admin);
            let begun: &[u8] = if n % 2 == 0 { b"" } else { b"GET /metrics HTTP/1.1\r\nhost: lo" };
            // It may be closed already, to make way.
            let _ = stream.write_all(begun);
            if n % 100 == 0 {
                for path in ["/healthz", "/readyz", "/metrics"] {
                    assert_eq!(status(&get(forebay.admin, path)), 200, "{path} after {n}");
                }
            }
            stream
        })
        .collect();
    let closed = forebay.metric("forebay_listener_closed_connections_total{listener=\"admin\"}");
    assert!(closed.is_some_and(|closed| closed >= 1_000.0), "{closed:?} made way");
    for stream in &open {
        stream.set_nonblocking(true).expect("a socket");
    }
    let is_open = |mut stream: &TcpStream| {
        let read = stream.read(&mut [0]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    };
    eventually("all are closed", || open.iter().filter(|stream| is_open(stream)).count() == 0);
    assert_eq!(status(&get(forebay.admin, "/healthz")), 200);
}
