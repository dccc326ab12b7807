//! Tracks the requests of each connection, and whether the client reads the answers.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use super::table::{InFlight, Peer};

/// Wraps services in [`Tracked`].
#[derive(Clone, Copy, Debug, Default)]
pub struct TrackLayer;

impl<S> Layer<S> for TrackLayer {
    type Service = Tracked<S>;

    fn layer(&self, inner: S) -> Tracked<S> {
        Tracked(inner)
    }
}

/// Tracks each request at its connection, the [`Peer`] in the request's extensions.
#[derive(Clone, Copy, Debug)]
pub struct Tracked<S>(S);

impl<S, B, R> Service<Request<B>> for Tracked<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<TrackedBody<R>>;
    type Error = S::Error;
    type Future = TrackedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let in_flight = request.extensions().get::<Peer>().map(|peer| peer.activity.begin());
        TrackedFuture { answer: self.0.call(request), in_flight }
    }
}

pin_project! {
    /// The future of a tracked answer.
    pub struct TrackedFuture<F> {
        #[pin]
        answer: F,
        in_flight: Option<InFlight>,
    }
}

impl<F: Future<Output = Result<Response<R>, E>>, R, E> Future for TrackedFuture<F> {
    type Output = Result<Response<TrackedBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(cx));
        let in_flight = this.in_flight.take();
        Poll::Ready(answer.map(|answer| answer.map(|body| TrackedBody { body, in_flight })))
    }
}

pin_project! {
    /// The body of a tracked answer; the request ends with it.
    pub struct TrackedBody<B> {
        #[pin]
        body: B,
        in_flight: Option<InFlight>,
    }
}

impl<B: Body> Body for TrackedBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let blocked =
            |now| this.in_flight.as_ref().into_iter().for_each(|request| request.blocked(now));
        // hyper polls for more once it has sent the piece before.
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
