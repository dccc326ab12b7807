//! A request that is known to be one, on its way to an answer: by its pool, or by the fallback when
//! that one can't serve it in time. Nothing has gone out to the client until either has answered.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::answer::api::Api;
use crate::exchange::attempt::{Exchange, Outcome};
use crate::exchange::ours::Ours;
use crate::exchange::outgoing::{Outgoing, Rights};
use crate::exchange::record::Record;
use crate::pool::Ticket;
use crate::pool::queue::Request;
use crate::read::edit::{Edits, edit};
use crate::read::scan::Scan;
use crate::route::{To, Way};

/// What the client asked, as often as it has to be sent.
pub(crate) struct Asked {
    pub(crate) api: Api,
    pub(crate) parts: Parts,
    pub(crate) body: Bytes,
    pub(crate) scan: Scan,
    pub(crate) request: Request,
    /// Until when the client itself waits, where it says so.
    pub(crate) gives_up: Option<Instant>,
    /// Cancelled when the gateway waits no longer.
    pub(crate) ending: CancellationToken,
}

impl Asked {
    /// Dropping it leaves the queue or the endpoint at once.
    pub(crate) async fn answered(self, way: Way, record: Record) -> Outcome {
        let Way { first, fallback, .. } = way;
        let Some(fallback) = fallback else { return self.at(&first, record).run().await };
        let mut exchange = self.at(&first, record);
        exchange.ticket.may_go_elsewhere(fallback.after);
        let outcome = exchange.run().await;
        let Some(refusal) = outcome.result.as_ref().err().filter(|it| it.for_want_of_room()) else {
            return outcome;
        };
        let (pool, other) = (&first.pool.name, &fallback.to.pool.name);
        tracing::debug!(%pool, %refusal, "falls back to {other}");
        first.pool.metrics.fell_back();
        self.at(&fallback.to, outcome.record).run().await
    }

    fn at(&self, to: &To, mut record: Record) -> Exchange {
        let pool = Arc::clone(&to.pool);
        let settings = pool.settings();
        record.routed(&pool);
        record.context.served.clone_from(&to.served);
        let edits = Edits {
            model: to.served.as_deref(),
            ask_usage: self.api.usage_on_request(),
            drop_priority: !settings.allow_priority,
        };
        let edited = edit(&self.body, &self.scan, &edits);
        let rights = Rights {
            priority: settings.allow_priority,
            keyed: record.context.keyed,
            authorization: pool.key.get(),
        };
        let model = to.known_name(record.context.model.as_deref()).map(str::to_owned);
        let ours = Ours { key: rights.key(), model };
        let mut request = self.request.clone();
        request.deadline = record.context.accepted + settings.upstream.request_timeout;
        let mut ticket = Ticket::new(request);
        ticket.model(to.served.as_deref().or(record.context.model.as_deref()));
        ticket.gives_up(self.gives_up);
        Exchange {
            outgoing: Outgoing::new(self.parts.clone(), edited.body, rights),
            ours,
            api: self.api,
            ticket,
            record,
            strip_usage: edited.strip_usage,
            ending: self.ending.clone(),
            pool,
        }
    }
}
