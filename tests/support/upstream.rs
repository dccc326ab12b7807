//! An upstream that plays a test's script, byte by byte, and keeps the requests that it receives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

/// One step of the answer to a request. Without `Close` the connection waits for the next request.
#[derive(Clone)]
pub enum Step {
    Send(Vec<u8>),
    /// Sends nothing until the other side closes.
    Hang,
    Close,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub head: String,
    pub body: Vec<u8>,
}

impl Received {
    pub fn path(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Runs until the test's process ends. It answers the gateway's probes and does not keep them.
pub struct Upstream {
    pub address: SocketAddr,
    received: Arc<Mutex<Vec<Received>>>,
    hang_ups: Arc<AtomicUsize>,
}

type Script = Arc<dyn Fn(&Received) -> Vec<Step> + Send + Sync>;

impl Upstream {
    /// Serves the model `sim`.
    pub fn start(script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static) -> Self {
        Self::serving(r#"{"data":[{"id":"sim"}]}"#, script)
    }

    /// `models` answers `/v1/models`.
    pub fn serving(
        models: &'static str,
        script: impl Fn(&Received) -> Vec<Step> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let (received, hang_ups) = (Arc::default(), Arc::default());
        let upstream =
            Self { address, received: Arc::clone(&received), hang_ups: Arc::clone(&hang_ups) };
        let script: Script = Arc::new(script);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (script, received) = (Arc::clone(&script), Arc::clone(&received));
                let hang_ups = Arc::clone(&hang_ups);
                std::thread::spawn(move || serve(stream, models, &script, &received, &hang_ups));
            }
        });
        upstream
    }

    /// The requests so far.
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of connections that the other side closed during `Step::Hang`.
    pub fn hang_ups(&self) -> usize {
        self.hang_ups.load(SeqCst)
    }
}

fn serve(
    mut stream: TcpStream,
    models: &str,
    script: &Script,
    received: &Mutex<Vec<Received>>,
    hang_ups: &AtomicUsize,
) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    loop {
        let request = read(&mut stream)?;
        if request.head.starts_with("GET /health ") {
            stream.write_all(&plain(200, "")).ok()?;
            continue;
        }
        if request.head.starts_with("GET /v1/models ") {
            stream.write_all(&plain(200, models)).ok()?;
            continue;
        }
        if request.head.starts_with("GET /metrics ") {
            stream.write_all(&plain(404, "")).ok()?;
            continue;
        }
        received.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
        for step in script(&request) {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).ok()?,
                Step::Hang => {
                    let closed = stream.read(&mut [0; 1]).map_or(true, |read| read == 0);
                    hang_ups.fetch_add(usize::from(closed), SeqCst);
                    return None;
                }
                Step::Close => return None,
            }
        }
    }
}

fn read(stream: &mut TcpStream) -> Option<Received> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 1 << 16]);
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        bytes.extend_from_slice(&buffer[..read]);
    };
    let mut request =
        Received { head: String::from_utf8_lossy(&bytes[..end]).into_owned(), body: Vec::new() };
    let length = request.header("content-length").map_or(0, |n| n.parse().expect("a number"));
    request.body = bytes.split_off(end);
    while request.body.len() < length {
        let read = stream.read(&mut buffer).ok().filter(|read| *read > 0)?;
        request.body.extend_from_slice(&buffer[..read]);
    }
    Some(request)
}

/// A plain JSON answer.
pub fn plain(status: u16, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// The head of an event stream, as uvicorn sends it.
pub fn stream_head() -> Vec<u8> {
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
      transfer-encoding: chunked\r\n\r\n"
        .to_vec()
}

/// One chunk of a stream; an empty one is its end.
pub fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}
