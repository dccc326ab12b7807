//! A server over real sockets, with short limits.

#![allow(clippy::unwrap_used, missing_docs, reason = "a test's own")]

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use forebay_base::listen::{Bounds, Listener, TrackLayer, Tracked, bind};
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tower::{Layer, Service};

/// Nothing here takes as long, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);
/// Longer than any test.
const LONG: Duration = Duration::from_secs(600);

fn bounds() -> Bounds {
    Bounds { connections: 8, head: LONG, idle: Some(LONG), write: LONG, multiplexed: false }
}

type Request = hyper::Request<hyper::body::Incoming>;
type Response = hyper::Response<Full<Bytes>>;

/// Answers each request with `size` bytes.
fn serve(bounds: Bounds, size: usize) -> SocketAddr {
    serve_and_report(bounds, size).0
}

/// The same; the channel reports each connection that the server has closed.
fn serve_and_report(bounds: Bounds, size: usize) -> (SocketAddr, Receiver<()>) {
    let (closed, reports) = channel();
    let socket = bind(SocketAddr::from(([127, 0, 0, 1], 0)), &bounds).unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut listener = Listener::new("test", socket, bounds).unwrap();
            let answer = move |_: Request| async move {
                Ok::<_, Infallible>(Response::new(Full::from(vec![b'x'; size])))
            };
            loop {
                let connection = listener.accept().await;
                let peer = connection.peer();
                let counted: Tracked<_> = TrackLayer.layer(tower::service_fn(answer));
                let service = tower::service_fn(move |mut request: Request| {
                    request.extensions_mut().insert(peer.clone());
                    counted.clone().call(request)
                });
                let service = TowerToHyperService::new(service);
                let mut http = http1::Builder::new();
                http.header_read_timeout(None);
                let served = http.serve_connection(TokioIo::new(connection), service);
                let closed = closed.clone();
                tokio::spawn(async move {
                    let _ = served.await;
                    let _ = closed.send(());
                });
            }
        });
    });
    (address, reports)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn get(mut stream: &TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").unwrap();
}

/// Reads an answer with a small body.
fn answer(mut stream: &TcpStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\nx") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// Waits until the other side closes; how much came until then.
fn closed(mut stream: &TcpStream) -> usize {
    let (mut count, mut buffer) = (0, vec![0; 1 << 16]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return count,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return count,
            Err(error) => panic!("not closed: {error}"),
        }
    }
}

#[test]
fn a_head_that_does_not_arrive_in_time_ends_its_connection() {
    let head = Duration::from_secs(3);
    let address = serve(Bounds { head, ..bounds() }, 1);
    let (silent, begun, asked) = (connect(address), connect(address), connect(address));
    (&begun).write_all(b"GET / HTTP/1.1\r\nhost: te").unwrap();
    get(&asked);
    assert!(answer(&asked).starts_with("HTTP/1.1 200 "));
    assert_eq!((closed(&silent), closed(&begun)), (0, 0));
    // Between requests another limit holds, until the next head begins.
    get(&asked);
    answer(&asked);
    (&asked).write_all(b"GET").unwrap();
    assert_eq!(closed(&asked), 0);
}

#[test]
fn an_idle_connection_is_closed() {
    let address = serve(Bounds { idle: Some(Duration::from_millis(100)), ..bounds() }, 1);
    let asked = connect(address);
    get(&asked);
    answer(&asked);
    assert_eq!(closed(&asked), 0);
}

#[test]
fn a_client_that_does_not_take_its_answer_is_cut_off() {
    let size = 64 << 20;
    let (address, closes) =
        serve_and_report(Bounds { write: Duration::from_secs(3), ..bounds() }, size);
    let reads = connect(address);
    get(&reads);
    let mute = connect(address);
    get(&mute);
    let mut taken = vec![0; size];
    (&reads).read_exact(&mut taken).unwrap();
    // The second reads nothing until the server has closed its connection.
    closes.recv_timeout(PATIENCE).expect("the server closes it");
    assert!(closed(&mute) < size, "the answer is cut off");
}

#[test]
fn silent_connections_keep_no_client_out() {
    let address = serve(bounds(), 1);
    let kept: Vec<_> = (0..100).map(|_| connect(address)).collect();
    let asks = connect(address);
    get(&asks);
    assert!(answer(&asks).starts_with("HTTP/1.1 200 "));
    for stream in &kept[..90] {
        assert_eq!(closed(stream), 0, "it made way");
    }
    get(&asks);
    answer(&asks);
}
