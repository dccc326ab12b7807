//! Notes on each connection when it is in a request, and whether its client takes the answer.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::seat::{Flight, Peer};

/// Makes [`Counted`] services.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountedLayer;

impl<S> Layer<S> for CountedLayer {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted(inner)
    }
}

/// Counts requests at their connections, which are in their extensions as [`Peer`]s.
#[derive(Clone, Copy, Debug)]
pub struct Counted<S>(S);

impl<S, B, R> Service<Request<B>> for Counted<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<Watched<R>>;
    type Error = S::Error;
    type Future = Answering<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let flight = request.extensions().get::<Peer>().map(|peer| peer.seat.begin());
        Answering { answer: self.0.call(request), flight }
    }
}

pin_project! {
    /// An answer on its way.
    pub struct Answering<F> {
        #[pin]
        answer: F,
        flight: Option<Flight>,
    }
}

impl<F: Future<Output = Result<Response<R>, E>>, R, E> Future for Answering<F> {
    type Output = Result<Response<Watched<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx));
        let flight = this.flight.take();
        Poll::Ready(answer.map(|answer| answer.map(|body| Watched { body, flight })))
    }
}

pin_project! {
    /// An answer's body; the request ends with it.
    pub struct Watched<B> {
        #[pin]
        body: B,
        flight: Option<Flight>,
    }
}

impl<B: Body> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let blocked = |now| this.flight.as_ref().into_iter().for_each(|it| it.blocked(now));
        // Asked for more: what was given before is on its way.
        blocked(None);
        let frame = ready!(this.body.poll_frame(cx));
        if frame.is_some() {
            blocked(Some(Instant::now()));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
