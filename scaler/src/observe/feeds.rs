//! The feeds of all gateways, and the last report of each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_base::trouble::Trouble;
use forebay_config::Millis;
use forebay_discovery::{Change, Changes};
use forebay_signals::follower::{Event, follow};
use forebay_signals::{PoolSignals, Token, View};
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

/// Time before a gateway that was never connected is reported as silent. In one process the scaler
/// connects to its gateway before the gateway listens.
const SETTLED: Duration = Duration::from_secs(1);

/// The gateways to read: fixed ones, and discovered ones.
pub struct Gateways {
    /// Base URLs of admin ports.
    pub fixed: Vec<String>,
    /// Discovered ones, as they come and go.
    pub found: Option<Changes>,
    /// The bearer token to send them.
    pub token: Option<Token>,
}

/// A change of one gateway, or of the list of gateways.
pub(crate) enum GatewayChange {
    /// An event of a gateway's feed, by the gateway's number.
    Feed(usize, Event<PoolSignals>),
    /// A change of the list.
    List(Change),
}

/// The pools that a change affects.
pub(crate) enum Touched {
    /// Every pool.
    All,
    /// These.
    Pools(Vec<String>),
}

/// The last report of one gateway on one pool.
pub(crate) struct LastReport<'a> {
    /// The number of the gateway.
    pub(crate) gateway: usize,
    /// The random name of its process.
    pub(crate) sender: &'a str,
    /// How long that process has run; `None` if it does not report it.
    pub(crate) up_for: Option<Millis>,
    pub(crate) signals: Option<&'a PoolSignals>,
    /// Time since its feed was lost, or since it was listed without being heard; `None` while it is
    /// connected. A connected gateway without `signals` has no request for this pool.
    pub(crate) silent_for: Option<Millis>,
}

/// The feeds of all gateways.
pub(crate) struct Feeds {
    streams: SelectAll<BoxStream<'static, GatewayChange>>,
    gateways: BTreeMap<usize, Gateway>,
    next: usize,
    token: Option<Token>,
    /// URLs of discovered gateways, by the name that discovery gave.
    found: BTreeMap<String, String>,
}

/// A gateway as this scaler hears it.
pub(crate) struct GatewayFeed<'a> {
    pub(crate) url: &'a str,
    /// Whether it is fixed, or discovery lists it.
    pub(crate) listed: bool,
    /// How long it has been silent, if it is.
    pub(crate) silent_for: Option<Millis>,
    /// Whether it said goodbye: it counts no longer, until it is heard again.
    pub(crate) stopped: bool,
}

struct Gateway {
    url: String,
    fixed: bool,
    /// Whether it is fixed, or discovery still lists it.
    listed: bool,
    view: Option<Arc<View<PoolSignals>>>,
    /// How long its process had run when it was first heard, and that moment.
    up: Option<(Duration, Instant)>,
    /// The time since which it is silent, at first that of its addition; `None` while it reports.
    lost: Option<Instant>,
    /// Its silence, as it was logged.
    silence: Trouble,
    /// It said goodbye, and does not count until it is heard again.
    gone: bool,
    end: AbortHandle,
}

impl Feeds {
    pub(crate) fn new(gateways: Gateways) -> Self {
        let mut feeds = Self {
            streams: SelectAll::new(),
            gateways: BTreeMap::new(),
            next: 0,
            token: gateways.token,
            found: BTreeMap::new(),
        };
        for url in gateways.fixed {
            feeds.add(url, true);
        }
        if let Some(found) = gateways.found {
            feeds.streams.push(found.map(GatewayChange::List).boxed());
        }
        // Without gateways the stream would end.
        feeds.streams.push(stream::pending().boxed());
        feeds
    }

    fn add(&mut self, url: String, fixed: bool) {
        if self.gateways.values().any(|gateway| gateway.url == url) {
            return;
        }
        let listed = true;
        let at = self.next;
        self.next += 1;
        let feed = follow::<PoolSignals>(format!("{url}/signals"), self.token.clone());
        let (end, registration) = AbortHandle::new_pair();
        let feed =
            Abortable::new(feed, registration).map(move |event| GatewayChange::Feed(at, event));
        self.streams.push(feed.boxed());
        let (view, up, lost) = (None, None, Some(Instant::now()));
        let (silence, gone) = (Trouble::default(), false);
        self.gateways
            .insert(at, Gateway { url, fixed, listed, view, up, lost, silence, gone, end });
    }

    fn keep(&mut self, urls: &BTreeSet<&String>) {
        for gateway in self.gateways.values_mut() {
            gateway.listed = gateway.fixed || urls.contains(&gateway.url);
        }
        self.prune();
    }

    /// Drops gateways that are neither listed nor connected. One that is no longer listed counts while
    /// it reports, since it may have streams to finish.
    fn prune(&mut self) {
        self.gateways.retain(|_, gateway| {
            let connected = gateway.lost.is_none() && !gateway.gone;
            let stays = gateway.listed || connected;
            if !stays {
                gateway.end.abort();
                tracing::debug!("the gateway at {} is no longer listed", gateway.url);
            }
            stays
        });
    }

    /// The next change. Cancel-safe; never `None`.
    pub(crate) async fn next(&mut self) -> Option<GatewayChange> {
        self.streams.next().await
    }

    /// Applies a change; returns the pools to decide on anew.
    pub(crate) fn take(&mut self, change: GatewayChange) -> Touched {
        match change {
            GatewayChange::Feed(at, Event::Update { view, touched }) => {
                self.event(at, Event::Update { view, touched: Vec::new() });
                return Touched::Pools(touched);
            }
            GatewayChange::Feed(at, event) => self.event(at, event),
            GatewayChange::List(change) => self.list(change),
        }
        Touched::All
    }

    fn list(&mut self, change: Change) {
        match change {
            Change::All(all) => {
                let url = |address| format!("http://{address}");
                let addressed =
                    all.into_iter().filter_map(|(name, member)| Some((name, url(member.address?))));
                self.found = addressed.collect();
            }
            Change::Put(name, member) => {
                match member.address {
                    Some(address) => self.found.insert(name, format!("http://{address}")),
                    None => self.found.remove(&name),
                };
            }
            Change::Gone(name) => {
                self.found.remove(&name);
            }
            Change::Trouble(why) => {
                return tracing::warn!("scaler.gatewayDiscovery: {why}; the known gateways stay");
            }
        }
        let found = std::mem::take(&mut self.found);
        self.keep(&found.values().collect());
        for url in found.values() {
            self.add(url.clone(), false);
        }
        self.found = found;
    }

    fn event(&mut self, at: usize, event: Event<PoolSignals>) {
        let Some(gateway) = self.gateways.get_mut(&at) else { return };
        match event {
            Event::Update { view, .. } => {
                if gateway.view.as_ref().is_none_or(|last| last.sender != view.sender) {
                    let up = view.up_millis.map(Duration::from_millis);
                    gateway.up = up.map(|up| (up, Instant::now()));
                }
                gateway.view = Some(view);
                gateway.lost = None;
                gateway.gone = false;
                if gateway.silence.ends() {
                    tracing::info!("the gateway at {} reports again", gateway.url);
                }
            }
            Event::Goodbye => {
                gateway.view = None;
                gateway.gone = true;
                self.prune();
            }
            Event::Lost { .. } | Event::Short { .. } if gateway.gone => {}
            // The gateway may be well: this process is short of something. Nothing scales down
            // meanwhile, and the gateway's demand does not fade.
            Event::Short { .. } => gateway.lost = Some(Instant::now()),
            Event::Lost { error } => {
                let since = *gateway.lost.get_or_insert_with(Instant::now);
                let settled = gateway.view.is_some() || since.elapsed() >= SETTLED;
                if settled && gateway.silence.begins(&error) {
                    let url = &gateway.url;
                    tracing::warn!(
                        "the gateway at {url} is silent, so nothing scales down: {error}"
                    );
                }
                self.prune();
            }
        }
    }

    /// The last report of every gateway on a pool.
    pub(crate) fn reports<'a>(&'a self, pool: &str) -> Vec<LastReport<'a>> {
        let report = |(at, gateway): (&usize, &'a Gateway)| LastReport {
            gateway: *at,
            sender: gateway.view.as_ref().map_or("", |view| &view.sender),
            up_for: gateway.up.map(|(up, heard)| (up + heard.elapsed()).into()),
            signals: gateway
                .view
                .as_ref()
                .and_then(|view| view.pools.get(pool))
                .map(|pool| &**pool),
            silent_for: gateway.lost.map(|lost| lost.elapsed().into()),
        };
        self.gateways.iter().filter(|(_, gateway)| !gateway.gone).map(report).collect()
    }

    /// Every gateway, also those that said goodbye.
    pub(crate) fn states(&self) -> impl Iterator<Item = GatewayFeed<'_>> {
        self.gateways.values().map(|gateway| GatewayFeed {
            url: &gateway.url,
            listed: gateway.listed,
            silent_for: gateway.lost.filter(|_| !gateway.gone).map(|lost| lost.elapsed().into()),
            stopped: gateway.gone,
        })
    }

    /// The number of connected gateways.
    pub(crate) fn alive(&self) -> u32 {
        let alive = self.gateways.values().filter(|g| g.view.is_some() && g.lost.is_none());
        alive.count() as u32
    }

    /// The number of gateways that are listed and not heard.
    pub(crate) fn silent(&self) -> u32 {
        self.gateways.values().filter(|g| g.listed && !g.gone && g.lost.is_some()).count() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_discovery::Member;

    fn feeds(fixed: &[&str]) -> Feeds {
        Feeds::new(Gateways {
            fixed: fixed.iter().map(|url| (*url).to_owned()).collect(),
            found: None,
            token: None,
        })
    }

    fn urls(feeds: &Feeds) -> Vec<&str> {
        feeds.gateways.values().map(|gateway| gateway.url.as_str()).collect()
    }

    fn at(n: u8) -> (String, Member) {
        (format!("gateway-{n}"), Member::at(([127, 0, 0, n], 9900).into()))
    }

    #[test]
    fn gateways_come_and_go_with_the_list_and_fixed_ones_stay() {
        let mut feeds = feeds(&["http://127.0.0.9:9900"]);
        feeds.take(GatewayChange::List(Change::All(vec![at(1), at(2)])));
        assert_eq!(urls(&feeds).len(), 3);
        let (name, _) = at(1);
        feeds.take(GatewayChange::List(Change::Gone(name)));
        assert_eq!(urls(&feeds), ["http://127.0.0.9:9900", "http://127.0.0.2:9900"]);
        feeds.take(GatewayChange::List(Change::Trouble("the API server is away".into())));
        assert_eq!(urls(&feeds).len(), 2, "what is known stays");
        let (name, member) = at(3);
        feeds.take(GatewayChange::List(Change::Put(name, member)));
        assert_eq!(urls(&feeds).len(), 3);
    }

    #[test]
    fn a_gateway_that_is_no_longer_listed_counts_until_it_is_silent() {
        for end in [Event::Goodbye, Event::Lost { error: "closed".to_owned() }] {
            let mut feeds = feeds(&[]);
            let (name, member) = at(1);
            feeds.take(GatewayChange::List(Change::All(vec![(name.clone(), member.clone())])));
            let (sender, pools) = ("a".to_owned(), BTreeMap::new());
            let view = Arc::new(View { sender, seq: 0, up_millis: None, gateways: None, pools });
            feeds.take(GatewayChange::Feed(0, Event::Update { view, touched: Vec::new() }));
            feeds.take(GatewayChange::List(Change::Gone(name.clone())));
            assert_eq!(feeds.reports("p").len(), 1, "it has streams to finish");
            assert!(!feeds.gateways[&0].end.is_aborted());
            feeds.take(GatewayChange::List(Change::Put(name.clone(), member)));
            assert_eq!(feeds.gateways.len(), 1, "listed anew, it is the same");
            feeds.take(GatewayChange::List(Change::Gone(name)));
            let ended = feeds.gateways[&0].end.clone();
            feeds.take(GatewayChange::Feed(0, end));
            assert!(feeds.gateways.is_empty() && ended.is_aborted());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_this_process_lacks_the_means_to_reach_does_not_grow_stale() {
        let mut feeds = feeds(&["http://127.0.0.9:9900"]);
        let (sender, pools) = ("a".to_owned(), BTreeMap::new());
        let view = Arc::new(View { sender, seq: 0, up_millis: None, gateways: None, pools });
        feeds.take(GatewayChange::Feed(0, Event::Update { view, touched: Vec::new() }));
        feeds.take(GatewayChange::Feed(0, Event::Lost { error: "reset".to_owned() }));
        let minute = std::time::Duration::from_secs(60);
        tokio::time::advance(minute).await;
        assert_eq!(feeds.reports("p")[0].silent_for.map(|span| span.get()), Some(60_000));
        feeds
            .take(GatewayChange::Feed(0, Event::Short { error: "too many open files".to_owned() }));
        assert_eq!(feeds.reports("p")[0].silent_for.map(|span| span.get()), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn the_age_of_a_process_grows_over_reconnects_and_is_that_of_the_process_heard_last() {
        let mut feeds = feeds(&["http://127.0.0.9:9900"]);
        let mut heard = |sender: &str, up: Option<u64>| {
            let (sender, pools) = (sender.to_owned(), BTreeMap::new());
            let view = Arc::new(View { sender, seq: 0, up_millis: up, gateways: None, pools });
            feeds.take(GatewayChange::Feed(0, Event::Update { view, touched: Vec::new() }));
            feeds.reports("p")[0].up_for
        };
        assert_eq!(heard("a", Some(7_000)), Some(Millis::from_secs(7)));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(heard("a", Some(10_000)), Some(Millis::from_secs(10)), "a new connection");
        assert_eq!(heard("b", Some(1_000)), Some(Millis::from_secs(1)), "a restart");
        assert_eq!(heard("c", None), None, "an older version");
    }

    #[test]
    fn a_gateway_that_is_listed_and_was_never_heard_is_reported_as_silent() {
        let mut feeds = feeds(&[]);
        feeds.take(GatewayChange::List(Change::All(vec![at(1)])));
        let reports = feeds.reports("p");
        assert_eq!(reports.len(), 1);
        assert!(reports[0].silent_for.is_some() && reports[0].signals.is_none());
    }
}
