//! Every gateway's feed, and the last that each said.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_discovery::{Change, Changes};
use forebay_signals::follower::{Event, follow};
use forebay_signals::{PoolSignals, Token, View};
use futures_util::future::{AbortHandle, Abortable};
use futures_util::stream::{BoxStream, SelectAll};
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::observe::heard::Heard;

/// In one process the scaler looks for its gateway before that listens.
const SETTLED: Duration = Duration::from_secs(1);

/// Where gateways are: fixed ones, and those that are found.
pub struct Gateways {
    /// Base URLs of admin ports.
    pub fixed: Vec<String>,
    /// Others, as they come and go.
    pub found: Option<Changes>,
    /// Their bearer token.
    pub token: Option<Token>,
}

/// Something that happened to one gateway, or to the list of them.
pub(crate) enum News {
    /// A gateway's feed, by number.
    Feed(usize, Event<PoolSignals>),
    /// The list.
    List(Change),
}

/// What is to be decided on anew.
pub(crate) enum Touched {
    /// Every pool.
    All,
    /// These.
    Pools(Vec<String>),
}

/// What is read of all gateways.
pub(crate) struct Feeds {
    streams: SelectAll<BoxStream<'static, News>>,
    heard: BTreeMap<usize, Gateway>,
    next: usize,
    token: Option<Token>,
    /// Found ones by the name under which they were.
    found: BTreeMap<String, String>,
}

struct Gateway {
    url: String,
    fixed: bool,
    /// It is fixed, or among those that were found last.
    listed: bool,
    view: Option<Arc<View<PoolSignals>>>,
    /// Since when it is silent; from the beginning, until it is heard.
    lost: Option<Instant>,
    /// Its silence was told.
    told: bool,
    /// It said goodbye, and nothing of it counts until it is heard again.
    gone: bool,
    end: AbortHandle,
}

impl Feeds {
    pub(crate) fn new(gateways: Gateways) -> Self {
        let mut feeds = Self {
            streams: SelectAll::new(),
            heard: BTreeMap::new(),
            next: 0,
            token: gateways.token,
            found: BTreeMap::new(),
        };
        for url in gateways.fixed {
            feeds.add(url, true);
        }
        if let Some(found) = gateways.found {
            feeds.streams.push(found.map(News::List).boxed());
        }
        // Never at its end, whatever is in it.
        feeds.streams.push(stream::pending().boxed());
        feeds
    }

    fn add(&mut self, url: String, fixed: bool) {
        if self.heard.values().any(|gateway| gateway.url == url) {
            return;
        }
        let listed = true;
        let at = self.next;
        self.next += 1;
        let feed = follow::<PoolSignals>(format!("{url}/signals"), self.token.clone());
        let (end, registration) = AbortHandle::new_pair();
        let feed = Abortable::new(feed, registration).map(move |event| News::Feed(at, event));
        self.streams.push(feed.boxed());
        let (view, lost) = (None, Some(Instant::now()));
        let (told, gone) = (false, false);
        self.heard.insert(at, Gateway { url, fixed, listed, view, lost, told, gone, end });
    }

    fn keep(&mut self, urls: &BTreeSet<&String>) {
        for gateway in self.heard.values_mut() {
            gateway.listed = gateway.fixed || urls.contains(&gateway.url);
        }
        self.prune();
    }

    /// One that is no longer listed counts for as long as it speaks: it may have streams to finish.
    /// After that it can't be waited for.
    fn prune(&mut self) {
        self.heard.retain(|_, gateway| {
            let speaks = gateway.lost.is_none() && !gateway.gone;
            let stays = gateway.listed || speaks;
            if !stays {
                gateway.end.abort();
                tracing::debug!("the gateway at {} is no longer listed", gateway.url);
            }
            stays
        });
    }

    /// What happens next. Cancel-safe; never at its end.
    pub(crate) async fn next(&mut self) -> Option<News> {
        self.streams.next().await
    }

    pub(crate) fn take(&mut self, news: News) -> Touched {
        match news {
            News::Feed(at, Event::Update { view, touched }) => {
                self.event(at, Event::Update { view, touched: Vec::new() });
                return Touched::Pools(touched);
            }
            News::Feed(at, event) => self.event(at, event),
            News::List(change) => self.list(change),
        }
        Touched::All
    }

    fn list(&mut self, change: Change) {
        match change {
            Change::All(all) => {
                let url = |address| format!("http://{address}");
                let addressed =
                    all.into_iter().filter_map(|(name, it)| Some((name, url(it.address?))));
                self.found = addressed.collect();
            }
            Change::Put(name, it) => {
                match it.address {
                    Some(address) => self.found.insert(name, format!("http://{address}")),
                    None => self.found.remove(&name),
                };
            }
            Change::Gone(name) => {
                self.found.remove(&name);
            }
            Change::Trouble(why) => {
                return tracing::warn!("scaler.gatewayDiscovery: {why}; what is known stays");
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
        let Some(gateway) = self.heard.get_mut(&at) else { return };
        match event {
            Event::Update { view, .. } => {
                gateway.view = Some(view);
                gateway.lost = None;
                gateway.told = false;
                gateway.gone = false;
            }
            Event::Goodbye => {
                gateway.view = None;
                gateway.gone = true;
                self.prune();
            }
            Event::Lost { .. } | Event::Short { .. } if gateway.gone => {}
            // It may be well. For as long as that lasts nothing scales down, and its demand stays.
            Event::Short { .. } => gateway.lost = Some(Instant::now()),
            Event::Lost { error } => {
                let since = *gateway.lost.get_or_insert_with(Instant::now);
                let settled = gateway.view.is_some() || since.elapsed() >= SETTLED;
                if settled && !std::mem::replace(&mut gateway.told, true) {
                    let url = &gateway.url;
                    tracing::warn!("the gateway at {url} is silent ({error}): nothing scales down");
                }
                self.prune();
            }
        }
    }

    /// Every gateway's last word on a pool.
    pub(crate) fn words<'a>(&'a self, pool: &str) -> Vec<Heard<'a>> {
        let word = |(at, gateway): (&usize, &'a Gateway)| Heard {
            gateway: *at,
            sender: gateway.view.as_ref().map_or("", |view| &view.sender),
            signals: gateway
                .view
                .as_ref()
                .and_then(|view| view.pools.get(pool))
                .map(|pool| &**pool),
            lost_ms: gateway.lost.map(|lost| lost.elapsed().as_millis() as u64),
        };
        self.heard.iter().filter(|(_, gateway)| !gateway.gone).map(word).collect()
    }

    /// How many are connected.
    pub(crate) fn alive(&self) -> u32 {
        let alive = self.heard.values().filter(|g| g.view.is_some() && g.lost.is_none());
        alive.count() as u32
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
        feeds.heard.values().map(|gateway| gateway.url.as_str()).collect()
    }

    fn at(n: u8) -> (String, Member) {
        (format!("gateway-{n}"), Member::at(([127, 0, 0, n], 9900).into()))
    }

    #[test]
    fn gateways_come_and_go_with_the_list_and_fixed_ones_stay() {
        let mut feeds = feeds(&["http://127.0.0.9:9900"]);
        feeds.take(News::List(Change::All(vec![at(1), at(2)])));
        assert_eq!(urls(&feeds).len(), 3);
        let (name, _) = at(1);
        feeds.take(News::List(Change::Gone(name)));
        assert_eq!(urls(&feeds), ["http://127.0.0.9:9900", "http://127.0.0.2:9900"]);
        feeds.take(News::List(Change::Trouble("the API server is away".into())));
        assert_eq!(urls(&feeds).len(), 2, "what is known stays");
        let (name, member) = at(3);
        feeds.take(News::List(Change::Put(name, member)));
        assert_eq!(urls(&feeds).len(), 3);
    }

    #[test]
    fn one_that_is_no_longer_listed_counts_until_it_is_silent() {
        for end in [Event::Goodbye, Event::Lost { error: "closed".to_owned() }] {
            let mut feeds = feeds(&[]);
            let (name, member) = at(1);
            feeds.take(News::List(Change::All(vec![(name.clone(), member.clone())])));
            let (sender, pools) = ("a".to_owned(), BTreeMap::new());
            let view = Arc::new(View { sender, seq: 0, gateways: None, pools });
            feeds.take(News::Feed(0, Event::Update { view, touched: Vec::new() }));
            feeds.take(News::List(Change::Gone(name.clone())));
            assert_eq!(feeds.words("p").len(), 1, "it has streams to finish");
            assert!(!feeds.heard[&0].end.is_aborted());
            feeds.take(News::List(Change::Put(name.clone(), member)));
            assert_eq!(feeds.heard.len(), 1, "listed anew, it is the same");
            feeds.take(News::List(Change::Gone(name)));
            let ended = feeds.heard[&0].end.clone();
            feeds.take(News::Feed(0, end));
            assert!(feeds.heard.is_empty() && ended.is_aborted());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gateway_that_we_can_not_reach_for_want_of_our_own_does_not_grow_stale() {
        let mut feeds = feeds(&["http://127.0.0.9:9900"]);
        let (sender, pools) = ("a".to_owned(), BTreeMap::new());
        let view = Arc::new(View { sender, seq: 0, gateways: None, pools });
        feeds.take(News::Feed(0, Event::Update { view, touched: Vec::new() }));
        feeds.take(News::Feed(0, Event::Lost { error: "reset".to_owned() }));
        let minute = std::time::Duration::from_secs(60);
        tokio::time::advance(minute).await;
        assert_eq!(feeds.words("p")[0].lost_ms, Some(60_000));
        feeds.take(News::Feed(0, Event::Short { error: "too many open files".to_owned() }));
        assert_eq!(feeds.words("p")[0].lost_ms, Some(0));
    }

    #[test]
    fn one_that_is_listed_and_was_never_heard_is_told_of_as_silent() {
        let mut feeds = feeds(&[]);
        feeds.take(News::List(Change::All(vec![at(1)])));
        let words = feeds.words("p");
        assert_eq!(words.len(), 1);
        assert!(words[0].lost_ms.is_some() && words[0].signals.is_none());
    }
}
