//! `/metrics`: rendered beside the port's thread, and handed out piece by piece.
//!
//! Memory is bounded: a few scrapes at once. A client that reads slowly keeps no other from its
//! figures: the scrape that has been read for longest makes way for a new one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use metrics_process::Collector;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use super::recorder::Figures;
use crate::reload::CONFIGURATION;

/// Scrapes at once. Each holds a text of its own, which may have many megabytes.
const AT_ONCE: usize = 8;
/// How long a scrape may take to be read.
const READ_TIME: Duration = Duration::from_secs(60);
/// Bytes that are handed to the connection at a time.
const PIECE: usize = 64 << 10;

/// Installs the recorder for all metrics of this process.
pub(crate) fn install_metrics() -> anyhow::Result<Figures> {
    let bounds = forebay_gateway::BUCKETS.iter().chain(forebay_scaler::BUCKETS).copied();
    let figures = Figures::new(bounds);
    let set = metrics::set_global_recorder(figures.clone());
    set.map_err(|error| anyhow::anyhow!("metrics: {error}"))?;
    forebay_base::describe();
    forebay_gateway::describe();
    forebay_scaler::describe();
    forebay_telemetry::describe();
    let commit = env!("FOREBAY_COMMIT").trim_start_matches([' ', '(']).trim_end_matches(')');
    forebay_base::set_build_info(env!("CARGO_PKG_VERSION"), commit);
    forebay_base::loaded(CONFIGURATION);
    Collector::default().describe();
    Ok(figures)
}

/// Answers scrapes.
#[derive(Clone)]
pub(crate) struct Scrape {
    figures: Figures,
    more: Arc<dyn Fn(&mut String) + Send + Sync>,
    renders: Arc<Semaphore>,
    readings: Arc<Readings>,
}

impl Scrape {
    /// Shows the figures, and the text that `more` adds at each scrape.
    pub(crate) fn new(
        figures: Figures,
        more: impl Fn(&mut String) + Send + Sync + 'static,
    ) -> Self {
        let renders = Arc::new(Semaphore::new(AT_ONCE));
        Self { figures, more: Arc::new(more), renders, readings: Arc::default() }
    }

    pub(crate) async fn answer(&self) -> Response {
        let Ok(_permit) = Arc::clone(&self.renders).try_acquire_owned() else {
            let headers = [(header::RETRY_AFTER, "1")];
            let why = format!("{AT_ONCE} scrapes are being rendered; try again\n");
            return (StatusCode::SERVICE_UNAVAILABLE, headers, why).into_response();
        };
        let scrape = self.clone();
        let text = spawn_blocking(move || {
            Collector::default().collect();
            let mut text = String::new();
            scrape.figures.render(&mut text);
            (scrape.more)(&mut text);
            text
        });
        let text = text.await;
        match text {
            Ok(text) => {
                let kind = HeaderValue::from_static("text/plain; version=0.0.4");
                let headers =
                    [(header::CONTENT_TYPE, kind), (header::CONTENT_LENGTH, text.len().into())];
                (headers, in_pieces(self.readings.begin(text.into()))).into_response()
            }
            Err(error) => {
                let why = format!("the figures can't be rendered: {error}\n");
                (StatusCode::INTERNAL_SERVER_ERROR, why).into_response()
            }
        }
    }
}

/// The texts that clients read now, the oldest first.
#[derive(Default)]
struct Readings(Mutex<VecDeque<Arc<Rest>>>);

/// The rest of a text; `None` when it has made way for another.
type Rest = Mutex<Option<Bytes>>;

/// One text that a client reads, until this is dropped.
struct Reading {
    readings: Arc<Readings>,
    rest: Arc<Rest>,
}

impl Readings {
    fn begin(self: &Arc<Self>, text: Bytes) -> Reading {
        let rest = Arc::new(Mutex::new(Some(text)));
        let mut all = self.0.lock();
        all.push_back(Arc::clone(&rest));
        if all.len() > AT_ONCE
            && let Some(oldest) = all.pop_front()
        {
            // Frees its memory also if its client never reads on.
            oldest.lock().take();
        }
        Reading { readings: Arc::clone(self), rest }
    }
}

impl Reading {
    /// The next piece, empty at the end; `None` if the text has made way for another.
    fn next(&self) -> Option<Bytes> {
        let mut rest = self.rest.lock();
        let rest = rest.as_mut()?;
        Some(rest.split_to(rest.len().min(PIECE)))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.readings.0.lock().retain(|rest| !Arc::ptr_eq(rest, &self.rest));
    }
}

/// The body that hands out a text as its client reads it.
fn in_pieces(reading: Reading) -> Body {
    let until = Instant::now() + READ_TIME;
    Body::from_stream(stream::try_unfold(reading, move |reading| async move {
        if Instant::now() > until {
            return Err("the scrape was not read in time");
        }
        match reading.next() {
            Some(piece) if piece.is_empty() => Ok(None),
            Some(piece) => Ok(Some((piece, reading))),
            None => Err("the scrape made way for a newer one"),
        }
    }))
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::time::advance;

    use super::*;

    fn scrape(more: &str) -> Scrape {
        let more = more.to_owned();
        Scrape::new(Figures::new([]), move |text| text.push_str(&more))
    }

    #[tokio::test]
    async fn slow_readers_make_way_for_a_new_scrape_the_oldest_first() {
        let text = "x".repeat(3 * PIECE + 1);
        let scrape = scrape(&text);
        let mut slow = Vec::new();
        for _ in 0..AT_ONCE {
            let mut body = scrape.answer().await.into_body();
            body.frame().await.expect("a piece").expect("in time");
            slow.push(body);
        }
        let answer = scrape.answer().await;
        assert_eq!(answer.headers()[header::CONTENT_LENGTH], text.len().to_string());
        assert_eq!(answer.into_body().collect().await.expect("whole").to_bytes(), text);
        assert!(slow.remove(0).collect().await.is_err(), "the oldest made way");
        for body in slow {
            assert!(body.collect().await.is_ok(), "the others go on");
        }
        assert!(scrape.readings.0.lock().is_empty());
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
