//! Load that goes on while processes change: clients that notice anything report it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::support::{PATIENCE, chat, connect, eventually, status};

/// Everything that came wrong while something went on.
#[derive(Clone, Default)]
pub(crate) struct Load {
    pub(crate) done: Arc<AtomicBool>,
    pub(crate) served: Arc<AtomicU32>,
    pub(crate) failed: Arc<Mutex<Vec<String>>>,
}

impl Load {
    /// Does something again and again.
    pub(crate) fn run(
        &self,
        what: &'static str,
        mut once: impl FnMut() -> Result<(), String> + Send + 'static,
    ) -> JoinHandle<()> {
        let load = self.clone();
        std::thread::spawn(move || {
            while !load.done.load(Ordering::Relaxed) {
                match once() {
                    Ok(()) => drop(load.served.fetch_add(1, Ordering::Relaxed)),
                    Err(why) => load.failed.lock().expect("whole").push(format!("{what}: {why}")),
                }
            }
        })
    }

    /// Until so many more were served.
    pub(crate) fn pass(&self, count: u32) {
        let before = self.served.load(Ordering::Relaxed);
        eventually("the load goes on", || self.served.load(Ordering::Relaxed) - before >= count);
    }
}

pub(crate) fn new_connection(address: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// A request on a connection of its own.
pub(crate) fn short(address: SocketAddr, request: &[u8], wanted: &str) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = new_connection(address).map_err(text)?;
    stream.write_all(request).map_err(text)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(text)?;
    if status(&answer) == 200 && answer.contains(wanted) { Ok(()) } else { Err(answer) }
}

/// Requests on one connection, for as long as the server keeps it.
pub(crate) struct KeptAlive {
    pub(crate) address: SocketAddr,
    pub(crate) stream: Option<BufReader<TcpStream>>,
}

impl KeptAlive {
    pub(crate) fn ask(&mut self) -> Result<(), String> {
        let text = |error: std::io::Error| error.to_string();
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => BufReader::new(new_connection(self.address).map_err(text)?),
        };
        let request = String::from_utf8(chat(false, 2)).expect("text");
        let request = request.replace("connection: close\r\n", "");
        stream.get_mut().write_all(request.as_bytes()).map_err(text)?;
        let (mut length, mut kept, mut first) = (0, true, String::new());
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).map_err(text)? == 0 {
                return Err("closed before an answer".to_owned());
            }
            if line == "\r\n" {
                break;
            }
            let lower = line.to_ascii_lowercase();
            if let Some(value) = lower.strip_prefix("content-length: ") {
                length = value.trim().parse().expect("a number");
            }
            kept &= lower.trim_end() != "connection: close";
            if first.is_empty() {
                first = line;
            }
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).map_err(text)?;
        if !first.starts_with("HTTP/1.1 200") {
            return Err(first);
        }
        self.stream = kept.then_some(stream);
        Ok(())
    }
}

/// Sends the preface of a gRPC client, and reads the server's answer to it.
pub(crate) fn greets_http2(address: SocketAddr) -> Result<(), String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = new_connection(address).map_err(text)?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").map_err(text)?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).map_err(text)?;
    if head[3] == 4 { Ok(()) } else { Err(format!("{head:?}")) }
}

/// A stream that has begun; the thread returns all of it.
pub(crate) fn stream(address: SocketAddr, tokens: u32) -> JoinHandle<String> {
    let mut stream = connect(address);
    stream.write_all(&chat(true, tokens)).expect("sent");
    let mut first = [0; 1];
    stream.read_exact(&mut first).expect("it begins");
    std::thread::spawn(move || {
        let mut rest = String::from_utf8_lossy(&first).into_owned();
        let _ = stream.read_to_string(&mut rest);
        rest
    })
}

pub(crate) fn assert_whole(stream: JoinHandle<String>) {
    let text = stream.join().expect("read");
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("data: [DONE]"), "{text}");
    assert!(text.ends_with("0\r\n\r\n"), "cut off: {text}");
}
