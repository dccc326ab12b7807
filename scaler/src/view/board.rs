//! The board: the summary and the history of each pool, as its last step left them.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_config::{Config, Millis};
use forebay_signals::publisher::Publisher;
use parking_lot::Mutex;

use super::arrivals::DayOfArrivals;
use super::history::{Columns, PoolHistory, StepSample};
use super::overview::{PoolOverview, PoolSettings, Spending, StateCounts, Trouble};
use crate::decide::{Load, Override};

/// Summaries to publish at once. The others follow a second later, so that a thousand busy pools cost
/// a reader no more than this many do.
const AT_ONCE: usize = 200;
const DAY: u64 = 24 * 60 * 60 * 1000;

/// One pool at one step, for the board.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) load: Load,
    pub(crate) desired: u32,
    pub(crate) replicas: StateCounts,
    /// When the next start is expected to end.
    pub(crate) next_ready: Option<Millis>,
    pub(crate) operator_override: Override,
    /// The decision that last changed the count.
    pub(crate) why: String,
    pub(crate) troubles: Vec<Trouble>,
}

/// The summary and the history of each pool.
pub(crate) struct Board {
    pub(crate) feed: Arc<Publisher<PoolOverview>>,
    pools: Mutex<BTreeMap<String, PoolBoard>>,
    /// Why this scaler has no figures, in a sentence: another process decides, or none does.
    away: Mutex<Option<String>>,
}

#[derive(Default)]
struct PoolBoard {
    settings: PoolSettings,
    history: PoolHistory,
    arrivals: DayOfArrivals,
    spent: Spent,
    /// `None` before the first step.
    last: Option<Standing>,
    /// Whether the feed lacks the last step.
    is_due: bool,
    published_at: Millis,
}

/// GPU time since midnight.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    since: Millis,
    until: Millis,
    gpu_millis: u64,
    gpu_millis_at_maximum: u64,
}

impl Board {
    pub(crate) fn new(config: &Config) -> Arc<Self> {
        let board =
            Self { feed: Publisher::new(), pools: Mutex::default(), away: Mutex::default() };
        board.configure(config);
        Arc::new(board)
    }

    /// Takes the settings of another configuration. Pools keep their histories.
    pub(crate) fn configure(&self, config: &Config) {
        let mut pools = self.pools.lock();
        pools.retain(|name, _| config.pools.iter().any(|pool| pool.name == *name));
        for pool in &config.pools {
            let board = pools.entry(pool.name.clone()).or_default();
            board.settings = PoolSettings::of(pool);
            board.is_due = board.last.is_some();
        }
        let mut shown = (*self.feed.pools()).clone();
        shown.retain(|name, _| pools.contains_key(name));
        self.feed.publish(shown);
    }

    /// Shows nothing from now on, since another process decides: what is known here grows old. Readers of
    /// the feed are cut off, and get `why` when they come back.
    pub(crate) fn stand_by(&self, why: String) {
        let before = self.away.lock().replace(why);
        if before.is_none() {
            self.forget();
            self.feed.restart();
        }
    }

    /// Shows the steps that come from now on. What happened until now is not known here.
    pub(crate) fn begin(&self) {
        *self.away.lock() = None;
        self.forget();
    }

    /// Why this scaler has no figures, if it does not decide.
    pub(crate) fn away(&self) -> Option<String> {
        self.away.lock().clone()
    }

    /// Ends the present figures. Charts keep what they have.
    fn forget(&self) {
        self.pools.lock().values_mut().for_each(PoolBoard::pause);
        self.feed.publish(BTreeMap::new());
    }

    /// Records a step of one pool.
    pub(crate) fn record(&self, pool: &str, standing: Standing, now: Millis) {
        if let Some(board) = self.pools.lock().get_mut(pool) {
            board.record(standing, now);
        }
    }

    /// Records that nothing is known of a pool's load now, for this reason. Its replicas are the last known.
    pub(crate) fn unheard(&self, pool: &str, trouble: Trouble, now: Millis) {
        if let Some(board) = self.pools.lock().get_mut(pool)
            && let Some(last) = board.last.clone()
        {
            let load = Load { held: 0, in_flight: 0, ..last.load };
            board.record(Standing { load, next_ready: None, troubles: vec![trouble], ..last }, now);
        }
    }

    /// Publishes summaries that changed, first those whose last is the oldest. `gateways` are alive.
    /// Called each second: readers take a feed without events for one that is lost.
    pub(crate) fn publish(&self, gateways: u32, now: Millis) {
        let mut pools = self.pools.lock();
        let mut due: Vec<_> = pools.iter_mut().filter(|(_, board)| board.is_due).collect();
        due.sort_by_key(|(_, board)| board.published_at);
        let changed: Vec<_> = due
            .into_iter()
            .take(AT_ONCE)
            .filter_map(|(name, board)| {
                (board.is_due, board.published_at) = (false, now);
                Some((name.clone(), board.overview(now)?))
            })
            .collect();
        drop(pools);
        self.feed.set_gateways(gateways);
        self.feed.update(changed);
    }

    /// The names of all pools, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.pools.lock().keys().cloned().collect()
    }

    /// The arrivals of a pool in the last day, as pieces of CSV; `None` if there were none.
    pub(crate) fn arrivals(&self, pool: &str) -> Option<impl Iterator<Item = String> + use<>> {
        let arrivals = self.pools.lock().get(pool)?.arrivals.clone();
        arrivals.csv(pool.to_owned())
    }

    /// The last hour of each of these pools that is known.
    pub(crate) fn histories<'a>(
        &self,
        names: impl Iterator<Item = &'a str>,
    ) -> BTreeMap<&'a str, Columns> {
        let pools = self.pools.lock();
        names.filter_map(|name| Some((name, pools.get(name)?.history.columns()))).collect()
    }
}

impl PoolBoard {
    fn record(&mut self, standing: Standing, now: Millis) {
        let Standing { load, desired, replicas, .. } = &standing;
        self.history.record(StepSample { load, desired: *desired, replicas: *replicas }, now);
        self.arrivals.record(load.totals, now);
        let before = self.last.as_ref().map_or(0, |last| last.replicas.occupying());
        let most = self.settings.most().unwrap_or(0);
        self.spent.spend(before * self.settings.gpus, most * self.settings.gpus, now);
        self.last = Some(standing);
        self.is_due = true;
    }

    fn pause(&mut self) {
        self.history.pause();
        self.arrivals.pause();
        self.spent = Spent::default();
        self.last = None;
        self.is_due = false;
    }

    fn overview(&self, now: Millis) -> Option<PoolOverview> {
        let last = self.last.as_ref()?;
        Some(PoolOverview {
            settings: Some(Box::new(self.settings.clone())),
            held: last.load.held,
            in_flight: last.load.in_flight,
            rates: self.history.rates(&last.load, now),
            desired: last.desired,
            replicas: last.replicas,
            next_ready_millis: last.next_ready,
            operator_override: last.operator_override,
            why: last.why.clone(),
            troubles: last.troubles.clone(),
            today: self.spent.spending(),
        })
    }
}

impl Spent {
    /// Adds the time since the last call, for this many GPUs then, and for as many as there may be.
    fn spend(&mut self, gpus: u32, most: u32, now: Millis) {
        if self.until == Millis::ZERO || now.get() / DAY > self.until.get() / DAY {
            let midnight = Millis::new(now.get() / DAY * DAY);
            let since = if self.until == Millis::ZERO { now } else { midnight };
            *self = Self { since, until: since, ..Self::default() };
        }
        let span = now.since(self.until).get();
        self.gpu_millis += span * u64::from(gpus);
        self.gpu_millis_at_maximum += span * u64::from(most);
        self.until = now;
    }

    fn spending(self) -> Spending {
        let hours = |millis: u64| millis as f64 / 3.6e6;
        Spending {
            since_millis: self.since,
            gpu_hours: hours(self.gpu_millis),
            at_maximum: hours(self.gpu_millis_at_maximum),
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_config::{Pool, Processes, Target};

    use super::*;

    fn config(names: &[String]) -> Config {
        let pool = |name: &String| {
            let mut pool = Pool::named(name);
            pool.target = Some(Target::Processes(Processes::of(vec!["serve".to_owned()])));
            pool.scaling.max_replica_count = 4;
            pool.gpus = 2;
            pool
        };
        Config { pools: names.iter().map(pool).collect(), ..Config::default() }
    }

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|n| format!("p{n}")).collect()
    }

    fn at(hours: u64) -> Millis {
        Millis::from_secs(hours * 3600)
    }

    fn standing(ready: u32) -> Standing {
        let replicas = StateCounts { ready, pending: 1, ..StateCounts::default() };
        Standing { replicas, ..Standing::default() }
    }

    #[test]
    fn gpu_hours_count_since_midnight_and_beside_the_maximum() {
        let board = Board::new(&config(&names(1)));
        let today = || {
            let pools = board.pools.lock();
            let today = pools["p0"].overview(at(0)).expect("recorded").today;
            (today.since_millis, today.gpu_hours, today.at_maximum)
        };
        board.record("p0", standing(1), at(24 * 9 + 20));
        assert_eq!(today(), (at(24 * 9 + 20), 0.0, 0.0));
        board.record("p0", standing(0), at(24 * 9 + 22));
        assert_eq!(today(), (at(24 * 9 + 20), 4.0, 16.0), "2 hours of one replica with 2 GPUs");
        board.record("p0", standing(3), at(24 * 9 + 23));
        assert_eq!(today(), (at(24 * 9 + 20), 4.0, 24.0), "a pending replica costs nothing");
        board.record("p0", standing(0), at(24 * 10 + 1));
        assert_eq!(today(), (at(24 * 10), 6.0, 8.0), "an hour of the new day, with 3 replicas");
    }

    #[test]
    fn a_reader_gets_a_bounded_number_of_summaries_a_second_and_all_in_turn() {
        let names = names(AT_ONCE * 2 + 10);
        let board = Board::new(&config(&names));
        let shown = || board.feed.pools().len();
        let record = |now| names.iter().for_each(|name| board.record(name, standing(1), now));
        record(at(1));
        for (second, want) in [(1, AT_ONCE), (2, AT_ONCE * 2), (3, AT_ONCE * 2 + 10)] {
            board.publish(1, at(1) + Millis::from_secs(second));
            assert_eq!(shown(), want);
            record(at(1) + Millis::from_secs(second));
        }
        let old = board.pools.lock().values().map(|board| board.published_at).min();
        assert_eq!(old, Some(at(1) + Millis::from_secs(1)));
    }

    #[test]
    fn the_time_in_which_another_scaler_led_is_neither_billed_nor_counted() {
        let board = Board::new(&config(&names(1)));
        let with = |accepted| {
            let totals = forebay_signals::Totals { accepted, ..Default::default() };
            let load = Load { totals, ..Load::default() };
            Standing { load, ..standing(1) }
        };
        board.record("p0", with(0), at(1));
        board.record("p0", with(7), at(2));
        board.publish(1, at(2));
        assert!(board.away().is_none() && board.feed.pools().contains_key("p0"));
        board.stand_by("another one leads".to_owned());
        assert_eq!(board.away().as_deref(), Some("another one leads"));
        board.publish(1, at(3));
        assert!(board.feed.pools().is_empty(), "old figures are not shown");
        board.begin();
        assert_eq!(board.away(), None);
        // This scaler's counters have begun anew.
        board.record("p0", with(0), at(9));
        board.record("p0", with(2), at(10));
        board.publish(1, at(10));
        let today = board.feed.pools()["p0"].today;
        assert_eq!((today.since_millis, today.gpu_hours), (at(9), 2.0));
        let arrivals: String = board.arrivals("p0").expect("some").collect();
        assert_eq!(arrivals.lines().count(), 1 + 7 + 2);
    }

    #[test]
    fn hours_are_not_rounded() {
        let board = Board::new(&config(&names(1)));
        board.record("p0", standing(4), Millis::ZERO + Millis::from_secs(1));
        for second in 0..24 * 3600 - 2 {
            let ready = if second == 7 { 3 } else { 4 };
            board.record("p0", standing(ready), Millis::from_secs(2 + second));
        }
        board.publish(1, at(24));
        let today = board.feed.pools()["p0"].today;
        let saved = (today.at_maximum - today.gpu_hours) * 3600.0;
        assert!((saved - 2.0).abs() < 1e-6, "one of 2 GPUs for a second: {saved} s");
    }

    #[test]
    fn a_pool_that_is_no_longer_configured_is_forgotten() {
        let board = Board::new(&config(&names(2)));
        for name in names(2) {
            board.record(&name, standing(1), at(1));
        }
        board.publish(1, at(1));
        board.configure(&config(&names(1)));
        assert_eq!(board.feed.pools().keys().collect::<Vec<_>>(), ["p0"]);
        let known = names(2);
        assert_eq!(board.histories(known.iter().map(String::as_str)).len(), 1);
    }
}
