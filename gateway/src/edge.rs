//! What is done for every request of a client before and after its own way.

use std::sync::Arc;

use arc_swap::ArcSwap;
use forebay_config::{Gateway, Limits};
use http::{Request, Response};
use hyper::body::Incoming;

use crate::api::{Api, ErrorShape};
use crate::body::Body;
use crate::clients::Clients;
use crate::context::Client;
use crate::drain::Drain;
use crate::proxy::Proxy;
use crate::refusal::Refusal;
use crate::tls::Tls;

/// Everything that connections share.
pub(crate) struct Edge {
    pub(crate) clients: Arc<Clients>,
    pub(crate) tls: Option<Arc<Tls>>,
    proxy: Proxy,
    drain: Drain,
    settings: ArcSwap<Settings>,
}

/// The configuration's part in it, swapped whole.
struct Settings {
    limits: Arc<Limits>,
}

/// The other end of a connection.
pub(crate) struct Peer {
    pub(crate) client: Client,
}

impl Edge {
    pub(crate) fn new(
        gateway: &Gateway,
        tls: Option<Arc<Tls>>,
        proxy: Proxy,
        drain: Drain,
    ) -> Arc<Self> {
        let settings = ArcSwap::from_pointee(Settings::new(gateway));
        Arc::new(Self { clients: Clients::new(), tls, proxy, drain, settings })
    }

    pub(crate) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.settings.load().limits)
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Answers one request, whatever it is.
    pub(crate) async fn serve(&self, request: Request<Incoming>, peer: &Peer) -> Response<Body> {
        let settings = self.settings.load();
        let most = settings.limits.header_count;
        drop(settings);
        if request.headers().len() > usize::from(most) {
            let shape = Api::of(request.uri().path()).map_or(ErrorShape::OpenAi, Api::errors);
            return Refusal::TooManyHeaders(most).response(shape);
        }
        self.proxy.serve(request, peer.client).await
    }
}

impl Settings {
    fn new(gateway: &Gateway) -> Self {
        Self { limits: Arc::new(gateway.limits.clone()) }
    }
}
