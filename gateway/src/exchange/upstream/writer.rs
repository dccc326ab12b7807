//! A request on its way to a replica.

use std::io::{self, IoSlice};
use std::iter::once;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::Method;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use crate::exchange::outgoing::Outgoing;
use crate::text::rope::Rope;
use crate::text::stack::StackText;

/// The room for a head, in bytes. A longer one costs another allocation.
const TYPICAL_HEAD: usize = 1024;
/// The slices that are written at once. An edited body has a few.
const SLICES: usize = 16;

/// The head of a request to the replica that is called `host`, as bytes.
pub(super) fn head(request: &Outgoing<'_>, host: &str) -> Vec<u8> {
    let mut head = Vec::with_capacity(TYPICAL_HEAD);
    let method = request.method();
    for part in [method.as_str(), " ", request.path(), " HTTP/1.1\r\nhost: ", host, "\r\n"] {
        head.extend_from_slice(part.as_bytes());
    }
    request.each_header(|name, value| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            head.extend_from_slice(part);
        }
    });
    let length = request.body().len();
    // A request without a length has no body. Methods that expect a body get a length of zero.
    if length > 0 || matches!(*method, Method::POST | Method::PUT | Method::PATCH) {
        let mut digits = StackText::<20>::new();
        digits.number(length as u64);
        for part in [b"content-length: ", digits.as_bytes(), b"\r\n"] {
            head.extend_from_slice(part);
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// A head and a body, of which a part is written.
pub(super) struct RequestWriter<'a> {
    head: &'a [u8],
    body: &'a Rope,
    written: usize,
}

impl<'a> RequestWriter<'a> {
    pub(super) fn new(head: &'a [u8], body: &'a Rope) -> Self {
        Self { head, body, written: 0 }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.written == self.head.len() + self.body.len()
    }

    /// Writes on until everything is written.
    pub(super) fn poll(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while !self.is_complete() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let mut count = 0;
            let mut skip = self.written;
            for piece in once(self.head).chain(self.body.slices().map(|slice| &**slice)) {
                if skip >= piece.len() {
                    skip -= piece.len();
                    continue;
                }
                let Some(slice) = slices.get_mut(count) else { break };
                *slice = IoSlice::new(&piece[skip..]);
                (skip, count) = (0, count + 1);
            }
            let written = Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..count]);
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.written += count,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The part that is not written, with its own share of the body.
    pub(super) fn rest(&self) -> RequestRest {
        RequestRest { head: self.head.to_vec(), body: self.body.clone(), written: self.written }
    }
}

/// The rest of a request whose answer has begun.
pub(super) struct RequestRest {
    head: Vec<u8>,
    body: Rope,
    written: usize,
}

impl RequestRest {
    pub(super) fn poll(
        &mut self,
        stream: &mut TcpStream,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { head, body, written } = self;
        let mut writer = RequestWriter { head, body, written: *written };
        let sent = writer.poll(stream, cx);
        *written = writer.written;
        sent
    }
}

#[cfg(test)]
mod tests {

    use bytes::Bytes;
    use http::Request;

    use super::*;
    use crate::exchange::outgoing::{OutgoingHead, Rights};
    use crate::read::head::ClientHead;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_head_states_a_length_where_a_body_is_expected() {
        let head = |method: Method, path: &str, body: &'static str| {
            let request = Request::builder().method(method).uri(path).header("x-a", "b");
            let request = request.header("traceparent", PARENT);
            let parts = request.body(()).expect("valid").into_parts().0;
            let body = Rope::from(Bytes::from_static(body.as_bytes()));
            let head = ClientHead::known(parts);
            let outgoing = Outgoing::new(OutgoingHead::own(head), body, Rights::default());
            String::from_utf8(super::head(&outgoing, "[::1]:80")).expect("text")
        };
        let rest = format!(
            "HTTP/1.1\r\nhost: [::1]:80\r\nx-a: b\r\ntraceparent: {PARENT}\r\n\
             x-forwarded-for: 10.0.0.1\r\n"
        );
        assert_eq!(head(Method::GET, "http://a", ""), format!("GET / {rest}\r\n"));
        let get = format!("GET /a?b=c {rest}content-length: 3\r\n\r\n");
        assert_eq!(head(Method::GET, "/a?b=c", "abc"), get);
        let post = format!("POST /a {rest}content-length: 0\r\n\r\n");
        assert_eq!(head(Method::POST, "http://a/a", ""), post);
    }
}
