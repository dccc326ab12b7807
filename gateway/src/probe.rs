//! Asks endpoints whether they answer, from the moment they have an address.
//!
//! Every 100 ms while one starts or is out: vLLM refuses connections until it is up, and what is
//! held waits for this. Once a second while it serves, where its behaviour tells more.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::pool::Pool;

const STARTING: Duration = Duration::from_millis(100);
const READY_TICKS: u32 = 10;
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_ANSWER: usize = 4 << 20;

/// Probes one endpoint until it is dropped.
pub(crate) async fn probe(pool: Arc<Pool>, address: SocketAddr) {
    let mut ticks = interval(STARTING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut skipped, mut named) = (0, false);
    loop {
        ticks.tick().await;
        if pool.is_ready(address) && skipped < READY_TICKS {
            skipped += 1;
            continue;
        }
        skipped = 0;
        let outcome = get(address, "/health", None).await.map(|_| ());
        let answers = outcome.is_ok();
        if pool.probed(address, outcome) {
            tracing::debug!(pool = %pool.name, %address, answers, "probed");
        }
        if answers
            && !named
            && let Some(names) = served_names(&pool, address).await
        {
            pool.set_served(names);
            named = true;
        }
        if !answers {
            named = false;
        }
    }
}

async fn served_names(pool: &Pool, address: SocketAddr) -> Option<Vec<String>> {
    let body: serde_json::Value =
        serde_json::from_slice(&get(address, "/v1/models", pool.key.get()).await.ok()?).ok()?;
    let models = body["data"].as_array()?;
    Some(models.iter().filter_map(|model| model["id"].as_str().map(str::to_owned)).collect())
}

async fn get(address: SocketAddr, path: &str, key: Option<HeaderValue>) -> Result<Bytes, String> {
    timeout(PATIENCE, fetch(address, path, key))
        .await
        .unwrap_or_else(|_| Err(format!("no answer to {path} within {} s", PATIENCE.as_secs())))
}

async fn fetch(address: SocketAddr, path: &str, key: Option<HeaderValue>) -> Result<Bytes, String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let stream = TcpStream::connect(address).await.map_err(|error| text(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| text(&error))?;
    let mut request = Request::get(path)
        .header(header::HOST, address.to_string())
        .header(header::CONNECTION, "close")
        .body(Full::<Bytes>::default())
        .map_err(|error| text(&error))?;
    if let Some(key) = key {
        request.headers_mut().insert(header::AUTHORIZATION, key);
    }
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| text(&error))?;
        if !response.status().is_success() {
            return Err(format!("{path} answered {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| error.to_string())
    };
    // Both in one future: dropped together.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        answer = exchange.as_mut() => answer,
        _ = connection => exchange.await,
    }
}
