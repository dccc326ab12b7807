//! `/metrics`: made beside the port's thread, and handed out piece by piece.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval};

/// Scrapes at once. Each holds a text of its own, which may be of many megabytes.
const AT_ONCE: usize = 8;
/// How long a scrape may take to be read.
const READ_TIME: Duration = Duration::from_secs(60);
/// So much is handed to the connection at a time.
const PIECE: usize = 64 << 10;

/// Every figure of this process.
pub(crate) fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let mut builder = PrometheusBuilder::new();
    for (name, buckets) in forebay_gateway::BUCKETS.iter().chain(forebay_scaler::BUCKETS) {
        builder = builder
            .set_buckets_for_metric(Matcher::Full((*name).to_owned()), buckets)
            .with_context(|| format!("buckets of {name}"))?;
    }
    let handle = builder.install_recorder().context("metrics")?;
    forebay_bounds::describe();
    forebay_gateway::describe();
    forebay_scaler::describe();
    Ok(handle)
}

/// Answers scrapes.
#[derive(Clone)]
pub(crate) struct Scrape {
    handle: PrometheusHandle,
    more: Arc<dyn Fn() -> String + Send + Sync>,
    places: Arc<Semaphore>,
}

impl Scrape {
    /// Of these figures, and of what `more` tells at each scrape.
    pub(crate) fn new(
        handle: PrometheusHandle,
        more: impl Fn() -> String + Send + Sync + 'static,
    ) -> Self {
        Self { handle, more: Arc::new(more), places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    pub(crate) async fn answer(&self) -> Response {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            let headers = [(header::RETRY_AFTER, "1")];
            let why = format!("{AT_ONCE} scrapes are being read; try again\n");
            return (StatusCode::SERVICE_UNAVAILABLE, headers, why).into_response();
        };
        let scrape = self.clone();
        let text = spawn_blocking(move || scrape.handle.render() + &(scrape.more)()).await;
        match text {
            Ok(text) => {
                let kind = HeaderValue::from_static("text/plain; version=0.0.4");
                let headers =
                    [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, text.len().into())];
                (headers, in_pieces(text.into(), place)).into_response()
            }
            Err(error) => {
                let why = format!("the figures can't be rendered: {error}\n");
                (StatusCode::INTERNAL_SERVER_ERROR, why).into_response()
            }
        }
    }

    /// Histograms are folded also when nobody scrapes; without it they grow.
    pub(crate) async fn upkeep(&self) {
        let mut ticks = interval(Duration::from_secs(5));
        loop {
            ticks.tick().await;
            let handle = self.handle.clone();
            let _ = spawn_blocking(move || handle.run_upkeep()).await;
        }
    }
}

/// The text as it is taken, which keeps its place until then.
fn in_pieces(text: Bytes, place: OwnedSemaphorePermit) -> Body {
    let until = Instant::now() + READ_TIME;
    Body::from_stream(stream::try_unfold((text, place), move |(mut text, place)| async move {
        if text.is_empty() {
            return Ok(None);
        }
        if Instant::now() > until {
            return Err("the scrape was not read in time");
        }
        let piece = text.split_to(text.len().min(PIECE));
        Ok(Some((piece, (text, place))))
    }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::advance;

    use super::*;

    fn scrape(more: &str) -> Scrape {
        let more = more.to_owned();
        Scrape::new(PrometheusBuilder::new().build_recorder().handle(), move || more.clone())
    }

    #[tokio::test]
    async fn a_scrape_is_whole_and_keeps_its_place_until_it_is_read() {
        let text = "x".repeat(3 * PIECE + 1);
        let scrape = scrape(&text);
        let mut answers = Vec::new();
        for _ in 0..AT_ONCE {
            answers.push(scrape.answer().await);
        }
        assert_eq!(scrape.answer().await.status(), StatusCode::SERVICE_UNAVAILABLE);
        let answer = answers.pop().expect("some");
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], text.len().to_string());
        assert_eq!(answer.into_body().collect().await.expect("whole").to_bytes(), text);
        assert_eq!(scrape.answer().await.status(), StatusCode::OK, "one was read");
    }

    #[tokio::test]
    async fn a_scrape_that_is_read_too_slowly_is_broken_off() {
        let mut body = scrape(&"x".repeat(2 * PIECE)).answer().await.into_body();
        body.frame().await.expect("a piece").expect("in time");
        tokio::time::pause();
        advance(READ_TIME + Duration::from_secs(1)).await;
        assert!(body.frame().await.expect("an end").is_err());
    }
}
