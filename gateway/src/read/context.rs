//! The facts about a request that every step of its way shares. Its body is elsewhere.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use forebay_config::ANONYMOUS;
use http::HeaderValue;
use http::uri::PathAndQuery;
use tokio::time::Instant;

use crate::answer::api::{Api, REALTIME};
use crate::answer::refusal::Refusal;
use crate::net::clock;
use crate::net::socket::ClientSocket;
use crate::read::head::ClientHead;
use crate::read::known_headers::SESSION;
use crate::read::request_id::RequestId;
use crate::read::trace::RequestTrace;

/// The other end of one client connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    pub(crate) socket: ClientSocket,
    /// `None` if the system does not report it.
    pub(crate) address: Option<IpAddr>,
}

/// The facts about one request, filled in step by step. A fact that is not known yet is `None`.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// The time at which its head was complete.
    pub(crate) accepted: Instant,
    pub(crate) client: Client,
    /// Its `x-request-id`: the client's own, or one made at the edge.
    pub(crate) id: RequestId,
    pub(crate) trace: RequestTrace,
    pub(crate) method: http::Method,
    /// The path with its query; `None` for a target without a path.
    target: Option<PathAndQuery>,
    pub(crate) api: Option<Api>,
    /// The tenant's name; `anonymous` without a key.
    pub(crate) tenant: Arc<str>,
    /// The gateway checks keys, so the client's key goes no further.
    pub(crate) keyed: bool,
    /// The model's name as the client sent it.
    pub(crate) model: Option<Arc<str>>,
    /// The client asks for an event stream.
    pub(crate) stream: bool,
    /// The client's `x-session-id`, if the request is traced.
    pub(crate) session_id: Option<HeaderValue>,
}

/// The longest name of a model that is looked up and logged, in bytes.
const LONGEST_NAME: usize = 256;

impl RequestContext {
    pub(crate) fn new(head: &ClientHead, client: Client) -> Self {
        static NO_TENANT: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(ANONYMOUS));
        let parts = &head.parts;
        let traced = head.own.trace.tracer().is_some();
        let session_id = traced.then(|| parts.headers.get(SESSION).cloned()).flatten();
        Self {
            accepted: clock::now(),
            client,
            id: head.own.id.clone(),
            trace: head.own.trace.clone(),
            method: parts.method.clone(),
            target: parts.uri.path_and_query().cloned(),
            api: Api::of(parts.uri.path()),
            tenant: Arc::clone(&NO_TENANT),
            keyed: false,
            model: None,
            stream: false,
            session_id,
        }
    }

    /// The operation that the client asks for, by OpenTelemetry's conventions; `None` if it is not one of
    /// a model.
    pub(crate) fn operation(&self) -> Option<&'static str> {
        let session = || (self.path() == REALTIME).then_some("realtime");
        self.api.map(Api::operation).or_else(session)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.as_ref().map_or("", PathAndQuery::path)
    }

    /// Sets the model that the client names. An empty name counts as none, as it does for vLLM.
    pub(crate) fn set_model(&mut self, model: Option<Arc<str>>) -> Result<(), Refusal> {
        if model.as_ref().is_some_and(|name| name.len() > LONGEST_NAME) {
            return Err(Refusal::LongModel(LONGEST_NAME));
        }
        self.model = model.filter(|name| !name.is_empty());
        Ok(())
    }
}
