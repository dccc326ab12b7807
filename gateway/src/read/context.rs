//! What every step of a request's way knows of it, its body apart.

use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use tokio::time::Instant;

use crate::answer::api::Api;
use crate::answer::refusal::Refusal;
use crate::net::socket::ClientSocket;
use crate::read::request_id;

/// The other end of one client connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) socket: ClientSocket,
    /// `None` where the system does not tell.
    pub(crate) address: Option<IpAddr>,
}

/// One request. Filled in step by step: what is not known yet is `None`.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// When its head had been read.
    pub(crate) accepted: Instant,
    pub(crate) client: Client,
    /// Its `x-request-id`, the client's own or one made at the edge.
    pub(crate) id: Arc<str>,
    pub(crate) method: http::Method,
    pub(crate) path: String,
    pub(crate) api: Option<Api>,
    /// `anonymous` without keys.
    pub(crate) tenant: Arc<str>,
    /// The tenant showed a key of ours, which goes no further.
    pub(crate) keyed: bool,
    /// As the client named it.
    pub(crate) model: Option<String>,
    /// As the replicas know it, where that is another name.
    pub(crate) served: Option<String>,
    /// An event stream was asked for.
    pub(crate) stream: bool,
}

/// Longest name of a model that is looked up, told and logged, in bytes.
const LONGEST_NAME: usize = 256;

impl RequestContext {
    pub(crate) fn new(parts: &Parts, client: Client) -> Self {
        let id = parts.headers.get(request_id::REQUEST_ID).and_then(|id| id.to_str().ok());
        Self {
            accepted: Instant::now(),
            client,
            id: id.unwrap_or_default().into(),
            method: parts.method.clone(),
            path: parts.uri.path().to_owned(),
            api: Api::of(parts.uri.path()),
            tenant: Arc::from("anonymous"),
            keyed: false,
            model: None,
            served: None,
            stream: false,
        }
    }

    /// The model that the client names; an empty name is none, as it is for vLLM.
    pub(crate) fn asks_for(&mut self, model: Option<String>) -> Result<(), Refusal> {
        if model.as_ref().is_some_and(|name| name.len() > LONGEST_NAME) {
            return Err(Refusal::LongModel(LONGEST_NAME));
        }
        self.model = model.filter(|name| !name.is_empty());
        Ok(())
    }
}
