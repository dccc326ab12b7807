//! Answers to what the console asks.

use forebay_signals::PoolReplicas;

use super::Loop;
use crate::observe::feeds::GatewayFeed;
use crate::view::inquiry::{Inquiry, PoolDetail, endpoints};
use crate::view::overview::GatewayState;

impl Loop {
    /// Answers a question. Its sender may have left.
    pub(super) fn answer_inquiry(&self, inquiry: Inquiry) {
        match inquiry {
            Inquiry::Pool { pool, done } => {
                let _ = done.send(self.detail(&pool).map(Box::new));
            }
            Inquiry::Gateways { done } => {
                let state = |gateway: GatewayFeed<'_>| GatewayState {
                    url: gateway.url.to_owned(),
                    listed: gateway.listed,
                    silent_for: gateway.silent_for,
                    stopped: gateway.stopped,
                };
                let _ = done.send(self.feeds.states().map(state).collect());
            }
            Inquiry::Output { pool, replica, done } => {
                let managed = self.pools.iter().find(|managed| managed.pool.name == pool);
                let _ = done.send(managed.and_then(|managed| managed.target.output(&replica)));
            }
        }
    }

    fn detail(&self, pool: &str) -> Option<PoolDetail> {
        let managed = self.pools.iter().find(|managed| managed.pool.name == pool)?;
        let (endpoints, waiting) = endpoints(&self.feeds.reports(pool));
        let published = self.outputs.last.get(pool);
        Some(PoolDetail {
            published: published.cloned().unwrap_or_else(PoolReplicas::default),
            starts: managed.pool.start_times(),
            cold_start_phases: managed.pool.phases(),
            endpoints,
            waiting,
            has_output: managed.target.ends_its_replicas(),
        })
    }
}
