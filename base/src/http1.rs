//! One HTTP/1 request on a connection of its own.
//!
//! hyper returns a sender and a connection that has to be polled. Here the body polls it:
//! no task outlives the exchange, and dropping the body closes the connection.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

type Driver<B> = Pin<Box<http1::Connection<TokioIo<TcpStream>, B>>>;

/// Sends `request` over `stream` and waits for the head of the response.
///
/// # Errors
/// The connection broke, or the response is not HTTP.
pub async fn send<B>(
    stream: TcpStream,
    request: Request<B>,
) -> hyper::Result<Response<DrivenBody<B>>>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let mut driver = Some(Box::pin(connection));
    let response = {
        let mut response = std::pin::pin!(sender.send_request(request));
        poll_fn(|cx| {
            drive(&mut driver, cx);
            response.as_mut().poll(cx)
        })
        .await?
    };
    Ok(response.map(|body| DrivenBody { body, driver }))
}

/// A response's body, which drives the connection that it comes on.
pub struct DrivenBody<B: Body + 'static> {
    body: Incoming,
    /// `None` once the connection is over.
    driver: Option<Driver<B>>,
}

/// Polls the connection. Its errors reach the response or its body.
fn drive<B>(driver: &mut Option<Driver<B>>, cx: &mut Context<'_>)
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if let Some(connection) = driver
        && connection.as_mut().poll(cx).is_ready()
    {
        *driver = None;
    }
}

impl<B> Body for DrivenBody<B>
where
    B: Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // The connection first; and once more when the body has nothing, or a wake-up is lost:
        // taking from the body makes room for what the connection reads.
        for _ in 0..2 {
            drive(&mut self.driver, cx);
            if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
                return Poll::Ready(frame);
            }
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Empty};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with `answer`. Returns the body that the client got, and the number of bytes
    /// that it sent later.
    async fn exchange(answer: Vec<u8>, take: bool) -> (Option<hyper::Result<Bytes>>, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let client = async move {
            let stream = TcpStream::connect(address).await.expect("it listens");
            let request = Request::get("/").header("host", "a").body(Empty::<Bytes>::new());
            let response = send(stream, request.expect("a request")).await.expect("a head");
            assert_eq!(response.status(), 200);
            match take {
                true => Some(response.into_body().collect().await.map(|body| body.to_bytes())),
                false => None,
            }
        };
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut head = [0; 1024];
            assert!(stream.read(&mut head).await.expect("a head") > 0);
            let _ = stream.write_all(&answer).await;
            if answer.ends_with(b"cut") {
                return 0;
            }
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            rest.len()
        };
        tokio::join!(client, server)
    }

    #[tokio::test]
    async fn a_body_drives_its_connection_to_the_end() {
        let long = vec![b'x'; 4 << 20];
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", long.len());
        let (body, rest) = exchange([head.as_bytes(), &long].concat(), true).await;
        assert_eq!(body.expect("taken").expect("whole").len(), long.len());
        assert_eq!(rest, 0, "the client has closed");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_an_error() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\ncut".to_vec();
        let (body, _) = exchange(answer, true).await;
        assert!(body.expect("taken").is_err());
    }

    #[tokio::test]
    async fn dropping_the_body_closes_the_connection() {
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n".to_vec();
        let (body, rest) = exchange(answer, false).await;
        assert!(body.is_none());
        assert_eq!(rest, 0);
    }
}
