//! Requests of probes, on a connection that can be kept for the next one.
//!
//! An idle endpoint costs one such request every few seconds for as long as it is idle. `wire` reads
//! the answers, as it reads those to clients' requests: no task and no codec stays beside the socket.
//! Between its requests in `rounds.rs` a kept connection is not known to the runtime.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_base::dial::{DialError, dial};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::{MAX_ANSWER, ProbeError, Target};
use crate::net::dial::LONGEST_IDLE;
use crate::net::file_shares::{FilePermit, UPSTREAM_FILES};
use crate::wire::WireError;
use crate::wire::head::{HeadReader, ResponseStart};

/// The usual size of an answer.
const USUAL: usize = 1 << 10;

/// A request of a probe.
pub(super) struct ProbeRequest {
    pub(super) path: &'static str,
    /// The JSON to post; the request is a `GET` without it.
    body: Option<String>,
}

/// A connection to an endpoint without a request under way.
pub(super) struct ProbeConnection {
    stream: TcpStream,
    used: Instant,
    /// Its place among the connections to replicas, while it is kept.
    place: Option<FilePermit>,
}

/// A kept connection that the runtime does not watch. Its reads and writes don't wait.
pub(super) struct ParkedConnection {
    stream: std::net::TcpStream,
    used: Instant,
    place: FilePermit,
}

/// A complete answer: its status and its body.
pub(super) type Answer = (StatusCode, Bytes);

/// Reads one answer.
pub(super) struct AnswerReader {
    head: HeadReader,
    started: Option<ResponseStart>,
    body: BytesMut,
}

impl Default for AnswerReader {
    fn default() -> Self {
        // No header is of use beyond the framing.
        let head = HeadReader::passing(|_| false);
        Self { head, started: None, body: BytesMut::new() }
    }
}

impl AnswerReader {
    /// Takes the next bytes of the answer to a request of this method, or none at the connection's
    /// end. Returns the answer once it is complete, and whether its connection can carry another
    /// request.
    ///
    /// # Errors
    /// It is not valid, or not whole.
    fn feed(&mut self, bytes: &[u8], method: &Method) -> Result<Option<(Answer, bool)>, WireError> {
        match &mut self.started {
            None if bytes.is_empty() => return Err(WireError::Cut),
            None => self.started = self.head.feed(bytes, method)?,
            Some(ResponseStart { body, .. }) if bytes.is_empty() => body.close(None),
            Some(ResponseStart { body, .. }) => body.feed(bytes),
        }
        let Some(ResponseStart { head, body, keep_alive }) = &mut self.started else {
            return Ok(None);
        };
        if let Some(data) = body.take() {
            self.body.extend_from_slice(&data);
        }
        if let Some(error) = body.take_error() {
            return Err(error);
        }
        let complete = body.is_over();
        if !complete && self.body.len() <= MAX_ANSWER {
            return Ok(None);
        }
        let keeps = *keep_alive && complete && !body.has_excess();
        Ok(Some(((head.status, std::mem::take(&mut self.body).freeze()), keeps)))
    }
}

impl ProbeRequest {
    pub(super) fn get(path: &'static str) -> Self {
        Self { path, body: None }
    }

    pub(super) fn post(path: &'static str, body: &Value) -> Self {
        Self { path, body: Some(body.to_string()) }
    }

    fn method(&self) -> Method {
        if self.body.is_some() { Method::POST } else { Method::GET }
    }

    /// The request as it is sent.
    fn bytes(&self, target: &Target) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(256);
        self.write(target, &mut bytes);
        bytes
    }

    /// Appends the request as it is sent.
    fn write(&self, target: &Target, bytes: &mut Vec<u8>) {
        for part in
            [self.method().as_str(), " ", self.path, " HTTP/1.1\r\nhost: ", &target.host, "\r\n"]
        {
            bytes.extend_from_slice(part.as_bytes());
        }
        if let Some(key) = &target.key {
            bytes.extend_from_slice(b"authorization: ");
            bytes.extend_from_slice(key.as_bytes());
            bytes.extend_from_slice(b"\r\n");
        }
        if let Some(body) = &self.body {
            // Writing to a vector does not fail.
            let _ = write!(
                bytes,
                "content-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            );
        }
        bytes.extend_from_slice(b"\r\n");
        bytes.extend_from_slice(self.body.as_deref().unwrap_or_default().as_bytes());
    }
}

impl ProbeConnection {
    pub(super) async fn open(address: SocketAddr, within: Duration) -> Result<Self, ProbeError> {
        let stream = dial(address, within).await.map_err(|error| match error {
            DialError::Shortage { resource, .. } => ProbeError::Shortage(resource),
            error => ProbeError::Unreachable(error.to_string()),
        })?;
        Ok(Self { stream, used: Instant::now(), place: None })
    }

    /// Sends a request and waits for its answer. Also returns the connection if it can be kept.
    pub(super) async fn ask(
        mut self,
        target: &Target,
        request: &ProbeRequest,
        within: Duration,
    ) -> Result<(Answer, Option<Self>), ProbeError> {
        let path = request.path;
        let silent = |_| ProbeError::Silent(format!("no answer to {path} within {within:?}"));
        let exchange = timeout(within, self.exchange(target, request)).await.map_err(silent)?;
        let (answer, keeps) = exchange.map_err(|error| ProbeError::Broken(error.to_string()))?;
        if answer.1.len() > MAX_ANSWER {
            return Err(ProbeError::Broken(format!(
                "the answer to {path} has more than {MAX_ANSWER} bytes"
            )));
        }
        self.used = Instant::now();
        if keeps && self.place.is_none() {
            self.place = UPSTREAM_FILES.spare_place();
        }
        let kept = keeps && self.place.is_some();
        Ok((answer, kept.then_some(self)))
    }

    async fn exchange(
        &mut self,
        target: &Target,
        request: &ProbeRequest,
    ) -> Result<(Answer, bool), WireError> {
        self.stream.write_all(&request.bytes(target)).await?;
        let method = request.method();
        let mut reader = AnswerReader::default();
        let mut buffer = BytesMut::with_capacity(USUAL);
        loop {
            buffer.clear();
            self.stream.read_buf(&mut buffer).await?;
            if let Some(answer) = reader.feed(&buffer, &method)? {
                return Ok(answer);
            }
        }
    }

    /// Takes it out of the runtime's hands; `None` if it is not kept, or that fails.
    pub(super) fn park(self) -> Option<ParkedConnection> {
        let (stream, place) = (self.stream.into_std().ok()?, self.place?);
        Some(ParkedConnection { stream, used: self.used, place })
    }
}

impl AsFd for ParkedConnection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl ParkedConnection {
    /// Sends a request.
    ///
    /// # Errors
    /// The connection is closed, or can't take the whole request at once.
    pub(super) fn send(
        &mut self,
        target: &Target,
        request: &ProbeRequest,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        buffer.clear();
        request.write(target, buffer);
        if self.stream.write(buffer)? < buffer.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Reads what has come of the answer to a `GET`. Returns it once it is complete, and whether the
    /// connection can carry another request.
    ///
    /// # Errors
    /// It is not valid, or not whole.
    pub(super) fn receive(
        &mut self,
        reader: &mut AnswerReader,
        buffer: &mut [u8],
        now: Instant,
    ) -> Result<Option<(Answer, bool)>, WireError> {
        loop {
            let size = match self.stream.read(buffer) {
                Ok(size) => size,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if let Some(answer) = reader.feed(&buffer[..size], &Method::GET)? {
                self.used = now;
                return Ok(Some(answer));
            }
        }
    }

    /// Whether it has been used so recently that a server does not close it for being idle.
    pub(super) fn is_fresh(&self) -> bool {
        self.used.elapsed() < LONGEST_IDLE
    }

    /// Gives it back to the runtime; `None` if that fails.
    pub(super) fn unpark(self) -> Option<ProbeConnection> {
        let stream = TcpStream::from_std(self.stream).ok()?;
        Some(ProbeConnection { stream, used: self.used, place: Some(self.place) })
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const SOON: Duration = Duration::from_secs(30);

    fn target(address: SocketAddr) -> Target {
        Target { address, host: address.to_string().into(), key: None }
    }

    /// A replica that sends one of these answers to each request of its only connection, and then
    /// closes it.
    async fn replica(answers: &'static [&'static str]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a probe");
            let mut request = [0; 1024];
            for answer in answers {
                let size = stream.read(&mut request).await.expect("a request");
                assert!(request[..size].ends_with(b"\r\n\r\n"), "one request at a time");
                for part in answer.split_inclusive('|') {
                    let part = part.trim_end_matches('|');
                    stream.write_all(part.as_bytes()).await.expect("sent");
                    tokio::task::yield_now().await;
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn a_complete_answer_leaves_its_connection_for_the_next_request() {
        let answers = &[
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
            "HTTP/1.1 503 Service|Unavailable\r\nContent-Len|gth: 5\r\n\r\n12|345",
        ];
        let address = replica(answers).await;
        let connection = ProbeConnection::open(address, SOON).await.expect("it listens");
        let answer = connection.ask(&target(address), &ProbeRequest::get("/health"), SOON).await;
        let (answer, kept) = answer.expect("an answer");
        assert_eq!(answer, (StatusCode::OK, Bytes::new()));
        let answer =
            kept.expect("kept").ask(&target(address), &ProbeRequest::get("/v1/models"), SOON).await;
        let (answer, kept) = answer.expect("an answer");
        assert_eq!(answer, (StatusCode::SERVICE_UNAVAILABLE, "12345".into()));
        let parked = kept.expect("kept").park().expect("parked");
        assert!(parked.is_fresh(), "an idle connection is not closed as soon");
    }

    #[tokio::test]
    async fn a_connection_is_not_kept_unless_its_answer_shows_that_it_can_be() {
        for (answer, body) in [
            ("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 1\r\n\r\nx", "x"),
            ("HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx", "x"),
            ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n and", "x"),
            ("HTTP/1.1 200 OK\r\n\r\nx", "x"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxHTTP/1.1", "x"),
        ] {
            let address = replica(vec![answer].leak()).await;
            let connection = ProbeConnection::open(address, SOON).await.expect("it listens");
            let answered =
                connection.ask(&target(address), &ProbeRequest::get("/health"), SOON).await;
            let (got, kept) = answered.expect("an answer");
            assert_eq!(got, (StatusCode::OK, body.into()), "{answer}");
            assert!(kept.is_none(), "{answer}");
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_not_valid_or_not_whole_is_broken() {
        for answer in [
            "",
            "HTTP/1.1 2",
            "SSH-2.0-x\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nx",
            "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
        ] {
            let address = replica(vec![answer].leak()).await;
            let connection = ProbeConnection::open(address, SOON).await.expect("it listens");
            let answered =
                connection.ask(&target(address), &ProbeRequest::get("/health"), SOON).await;
            assert!(matches!(answered, Err(ProbeError::Broken(_))), "{answer}");
        }
    }
}
