//! The admin port while somebody holds thousands of its connections open.

use std::io::{Read, Write};
use std::net::TcpStream;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{Forebay, connect, eventually, get, status};

const CONNECTIONS: usize = 2_000;

/// This test's own connections, beside those of the ones next to it.
fn raise_the_limit() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    let need = soft.max(hard.min(3 * CONNECTIONS as u64));
    setrlimit(Resource::RLIMIT_NOFILE, need, hard).expect("up to the hard limit");
}

#[test]
fn connections_that_ask_nothing_are_closed_and_keep_nobody_out_meanwhile() {
    raise_the_limit();
    let forebay = Forebay::dev(&[]);
    let open: Vec<TcpStream> = (0..CONNECTIONS)
        .map(|n| {
            let mut stream = connect(forebay.admin);
            let begun: &[u8] = if n % 2 == 0 { b"" } else { b"GET /metrics HTTP/1.1\r\nhost: lo" };
            // It may have made way already.
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
    eventually("all are closed", || open.iter().filter(|it| is_open(it)).count() == 0);
    assert_eq!(status(&get(forebay.admin, "/healthz")), 200);
}
