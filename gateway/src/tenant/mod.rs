//! A tenant's limits as they stand: requests and tokens a minute, requests at once.
//!
//! A request is admitted once, before its body is read, and is a [`Grant`] from then on. When it is
//! known, tokens are reserved by an estimate, which is corrected while the answer comes and at its
//! end. What a limit refuses costs nothing.
//!
//! Pure: callers pass `now`. Who is which tenant is in `tenants.rs`.

pub(crate) mod api_keys;
pub(crate) mod bucket;
pub(crate) mod registry;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use forebay_config::Tenant as Settings;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::answer::limit::Limit;
use crate::answer::refusal::Refusal;
use crate::figures::tenant::Metrics;
use crate::tenant::bucket::{Bucket, Share, Standing};

/// One tenant, for as long as it is configured.
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    pub(crate) metrics: Metrics,
    settings: ArcSwap<Settings>,
    books: Mutex<Books>,
}

#[derive(Default)]
struct Books {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    most: Option<u32>,
    concurrent: u32,
}

/// Why a request is not admitted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    pub(crate) limit: Limit,
    pub(crate) retry_after: Duration,
}

/// How a tenant's limits stand, as OpenAI's headers tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Budget {
    requests: Option<Standing>,
    tokens: Option<Standing>,
}

/// An admitted request. Dropping it ends it: what it took beyond what it used is given back.
#[must_use = "dropping it ends the request"]
pub(crate) struct Grant {
    tenant: Arc<Tenant>,
    /// Tokens taken so far.
    taken: f64,
    used: f64,
}

impl Limited {
    pub(crate) fn refusal(self, tenant: &Arc<str>) -> Refusal {
        let Self { limit, retry_after } = self;
        Refusal::Limited { tenant: Arc::clone(tenant), limit, retry_after }
    }
}

impl Tenant {
    pub(crate) fn new(settings: Settings, gateways: u32, now: Instant) -> Arc<Self> {
        let tenant = Self {
            name: Arc::from(settings.name.as_str()),
            metrics: Metrics::register(&settings.name),
            settings: ArcSwap::from_pointee(settings.clone()),
            books: Mutex::default(),
        };
        tenant.configure(settings, gateways, now);
        Arc::new(tenant)
    }

    /// Other limits, or another share of them, from now on. What is admitted stays so.
    pub(crate) fn configure(&self, settings: Settings, gateways: u32, now: Instant) {
        let gateways = gateways.max(1);
        let set = |bucket: &mut Option<Bucket>, limit: Option<u64>| {
            let share = limit.map(|limit| Share::of(limit, gateways));
            *bucket = match (bucket.take(), share) {
                (_, None) => None,
                (None, Some(share)) => Some(Bucket::new(share, now)),
                (Some(mut bucket), Some(share)) => {
                    bucket.set_share(share, now);
                    Some(bucket)
                }
            };
        };
        let mut books = self.books.lock();
        set(&mut books.requests, settings.requests_per_minute.map(u64::from));
        set(&mut books.tokens, settings.tokens_per_minute);
        // Never more than the limit in all, unless there are more gateways than it allows requests.
        books.most = settings.max_concurrent.map(|most| (most / gateways).max(1));
        drop(books);
        self.settings.store(Arc::new(settings));
    }

    /// The same limits for another number of gateways.
    pub(crate) fn share(&self, gateways: u32, now: Instant) {
        let settings = Settings::clone(&self.settings.load());
        self.configure(settings, gateways, now);
    }

    pub(crate) fn may_use(&self, model: &str) -> bool {
        self.settings.load().may_use(model)
    }

    pub(crate) fn class(&self) -> forebay_config::PriorityClass {
        self.settings.load().priority_class
    }

    /// Admits a request, or says when to come again.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> Result<Grant, Limited> {
        let mut books = self.books.lock();
        let limited = books.limited(&self.settings.load(), now);
        if let Some(limited) = limited {
            self.metrics.limited(limited.limit);
            return Err(limited);
        }
        books.concurrent += 1;
        self.metrics.concurrent.set(books.concurrent);
        if let Some(bucket) = &mut books.requests {
            bucket.take(1);
        }
        Ok(Grant { tenant: Arc::clone(self), taken: 0.0, used: 0.0 })
    }

    pub(crate) fn budget(&self, now: Instant) -> Budget {
        let mut books = self.books.lock();
        let requests = books.requests.as_mut().map(|bucket| bucket.standing(now));
        let tokens = books.tokens.as_mut().map(|bucket| bucket.standing(now));
        Budget { requests, tokens }
    }
}

impl Books {
    /// The limit that is over for longest, if any is. Tokens are, where some are owed.
    fn limited(&mut self, settings: &Settings, now: Instant) -> Option<Limited> {
        if self.most.is_some_and(|most| self.concurrent >= most) {
            let limit = Limit::Concurrent(settings.max_concurrent.unwrap_or_default());
            return Some(Limited { limit, retry_after: Duration::from_secs(1) });
        }
        let requests = settings.requests_per_minute.zip(self.requests.as_mut());
        let requests = requests.map(|(limit, bucket)| {
            let retry_after = bucket.wait(1, now);
            Limited { limit: Limit::Requests(limit.into()), retry_after }
        });
        let tokens = settings.tokens_per_minute.zip(self.tokens.as_mut()).map(|(limit, bucket)| {
            Limited { limit: Limit::Tokens(limit), retry_after: bucket.wait(0, now) }
        });
        let over = requests.into_iter().chain(tokens).filter(|it| !it.retry_after.is_zero());
        over.max_by_key(|it| it.retry_after)
    }
}

impl Grant {
    /// Takes so many tokens, or says when to come again. The request is not counted then.
    pub(crate) fn reserve(&mut self, tokens: u64, now: Instant) -> Result<(), Limited> {
        let mut books = self.tenant.books.lock();
        let Some(bucket) = &mut books.tokens else { return Ok(()) };
        let retry_after = bucket.wait(tokens, now);
        if retry_after.is_zero() {
            self.taken += bucket.take(tokens);
            return Ok(());
        }
        if let Some(bucket) = &mut books.requests {
            bucket.correct(-1.0, now);
        }
        let limit = self.tenant.settings.load().tokens_per_minute.unwrap_or_default();
        let limit = Limit::Tokens(limit);
        self.tenant.metrics.limited(limit);
        Err(Limited { limit, retry_after })
    }

    /// Whatever is told of it, no fewer tokens than these were used.
    pub(crate) fn used_at_least(&mut self, tokens: u64, now: Instant) {
        if self.used < tokens as f64 {
            self.used(tokens, now);
        }
    }

    /// So many tokens were used so far, prompt and answer. What is beyond the estimate is taken now.
    pub(crate) fn used(&mut self, tokens: u64, now: Instant) {
        self.used = tokens as f64;
        let more = self.used - self.taken;
        if more > 0.0 {
            self.taken = self.used;
            if let Some(bucket) = &mut self.tenant.books.lock().tokens {
                bucket.correct(more, now);
            }
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        let mut books = self.tenant.books.lock();
        books.concurrent = books.concurrent.saturating_sub(1);
        self.tenant.metrics.concurrent.set(books.concurrent);
        if let Some(bucket) = &mut books.tokens {
            bucket.correct(self.used - self.taken, Instant::now());
        }
    }
}

impl Budget {
    /// OpenAI's headers, for what is limited.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let names: [[&'static str; 3]; 2] = [
            [
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ],
            [
                "x-ratelimit-limit-tokens",
                "x-ratelimit-remaining-tokens",
                "x-ratelimit-reset-tokens",
            ],
        ];
        for ([limit, remaining, reset], standing) in
            names.into_iter().zip([self.requests, self.tokens])
        {
            let Some(standing) = standing else { continue };
            headers.insert(HeaderName::from_static(limit), HeaderValue::from(standing.limit));
            headers
                .insert(HeaderName::from_static(remaining), HeaderValue::from(standing.remaining));
            if let Ok(value) = HeaderValue::from_str(&go_duration(standing.reset)) {
                headers.insert(HeaderName::from_static(reset), value);
            }
        }
    }
}

/// A duration as OpenAI writes them: `120ms`, `8.64s`, `6m0s`, `1h2m3s`.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    let (minutes, rest) = (millis / 60_000, millis % 60_000);
    let seconds = match rest % 1000 {
        0 => format!("{}s", rest / 1000),
        part => format!("{}.{part:03}", rest / 1000).trim_end_matches('0').to_owned() + "s",
    };
    match (minutes / 60, minutes % 60) {
        (0, 0) if millis == 0 => "0s".to_owned(),
        (0, 0) if rest < 1000 => format!("{rest}ms"),
        (0, 0) => seconds,
        (0, minutes) => format!("{minutes}m{seconds}"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}"),
    }
}

#[cfg(test)]
mod tests;
