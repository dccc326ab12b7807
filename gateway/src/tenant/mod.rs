//! Tenants: their API keys, and their limits on requests and tokens a minute and on requests at
//! once.
//!
//! A request is admitted once, before its body is read, and has a [`Grant`] from then on. When the
//! body has been read, tokens are reserved by an estimate, which is corrected while the answer
//! arrives and at its end. A request that a limit refuses costs nothing.
//!
//! Pure: callers pass `now`. `registry.rs` maps keys to tenants, `api_keys.rs` reads the keys. May
//! use `text`, `answer`, `figures` and `net`.

pub(crate) mod api_keys;
pub(crate) mod bucket;
pub(crate) mod registry;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use forebay_config::Tenant as Settings;
use http::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::answer::limit::Limit;
use crate::answer::refusal::Refusal;
use crate::figures::tenant::TenantMetrics;
use crate::net::clock;
use crate::tenant::bucket::{Bucket, LimitStatus, Share};

/// One tenant, while it is configured.
pub(crate) struct Tenant {
    pub(crate) name: Arc<str>,
    pub(crate) metrics: TenantMetrics,
    settings: ArcSwap<Settings>,
    /// Its requests at this gateway now.
    concurrent: AtomicU32,
    /// Whether it has any limit. Without one, no request takes the lock.
    limited: AtomicBool,
    usage: Mutex<LimitUse>,
}

/// The tenant's limits, and its use of them.
#[derive(Default)]
struct LimitUse {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
    /// The most requests at once at this gateway.
    max_concurrent: Option<u32>,
}

/// Why a request is not admitted now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Limited {
    pub(crate) limit: Limit,
    pub(crate) retry_after: Duration,
}

/// The present state of a tenant's limits, for OpenAI's headers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RateLimits {
    requests: Option<LimitStatus>,
    tokens: Option<LimitStatus>,
}

/// An admitted request. Dropping this ends the request and gives its unused tokens back.
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
            metrics: TenantMetrics::register(&settings.name),
            settings: ArcSwap::from_pointee(settings.clone()),
            concurrent: AtomicU32::new(0),
            limited: AtomicBool::new(false),
            usage: Mutex::default(),
        };
        tenant.configure(settings, gateways, now);
        Arc::new(tenant)
    }

    /// Sets the limits, and this gateway's share of them. Admitted requests are not affected.
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
        let mut usage = self.usage.lock();
        set(&mut usage.requests, settings.requests_per_minute.map(u64::from));
        set(&mut usage.tokens, settings.tokens_per_minute);
        // All gateways together admit at most the limit, unless there are more gateways than that.
        usage.max_concurrent = settings.max_concurrent.map(|most| (most / gateways).max(1));
        self.limited.store(usage.has_limits(), Relaxed);
        drop(usage);
        self.settings.store(Arc::new(settings));
    }

    /// Shares the same limits among a new number of gateways.
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

    /// Admits a request.
    ///
    /// # Errors
    /// A limit is reached: which one, and when the client may come back.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant) -> Result<Grant, Limited> {
        let mut usage = self.limits();
        if let Some(usage) = &mut usage {
            let concurrent = self.concurrent.load(Relaxed);
            if let Some(limited) = usage.limited(&self.settings.load(), concurrent, now) {
                self.metrics.limited(limited.limit);
                return Err(limited);
            }
            if let Some(bucket) = &mut usage.requests {
                bucket.take(1);
            }
        }
        // The lock, if there is one, is still held: no two requests take the last place.
        self.concurrent.fetch_add(1, Relaxed);
        self.metrics.concurrent.increment(1);
        Ok(Grant { tenant: Arc::clone(self), taken: 0.0, used: 0.0 })
    }

    /// Its limits, locked; `None` if it has none.
    fn limits(&self) -> Option<MutexGuard<'_, LimitUse>> {
        self.limited.load(Relaxed).then(|| self.usage.lock())
    }

    pub(crate) fn rate_limits(&self, now: Instant) -> RateLimits {
        let Some(mut usage) = self.limits() else { return RateLimits::default() };
        let requests = usage.requests.as_mut().map(|bucket| bucket.status(now));
        let tokens = usage.tokens.as_mut().map(|bucket| bucket.status(now));
        RateLimits { requests, tokens }
    }
}

impl LimitUse {
    fn has_limits(&self) -> bool {
        self.requests.is_some() || self.tokens.is_some() || self.max_concurrent.is_some()
    }

    /// Of the limits that are reached, the one with the longest wait. A token bucket that owes
    /// tokens is reached too.
    fn limited(&mut self, settings: &Settings, concurrent: u32, now: Instant) -> Option<Limited> {
        if self.max_concurrent.is_some_and(|most| concurrent >= most) {
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
        let over =
            requests.into_iter().chain(tokens).filter(|limited| !limited.retry_after.is_zero());
        over.max_by_key(|limited| limited.retry_after)
    }
}

impl Grant {
    /// Takes tokens.
    ///
    /// # Errors
    /// The limit is reached. The request does not count then.
    pub(crate) fn reserve(&mut self, tokens: u64, now: Instant) -> Result<(), Limited> {
        let Some(mut usage) = self.tenant.limits() else { return Ok(()) };
        let Some(bucket) = &mut usage.tokens else { return Ok(()) };
        let retry_after = bucket.wait(tokens, now);
        if retry_after.is_zero() {
            self.taken += bucket.take(tokens);
            return Ok(());
        }
        if let Some(bucket) = &mut usage.requests {
            bucket.correct(-1.0, now);
        }
        let limit = self.tenant.settings.load().tokens_per_minute.unwrap_or_default();
        let limit = Limit::Tokens(limit);
        self.tenant.metrics.limited(limit);
        Err(Limited { limit, retry_after })
    }

    /// Notes that the request used at least this many tokens.
    pub(crate) fn used_at_least(&mut self, tokens: u64, now: Instant) {
        if self.used < tokens as f64 {
            self.used(tokens, now);
        }
    }

    /// Notes the tokens used so far, prompt and answer. Those beyond the estimate are taken now.
    pub(crate) fn used(&mut self, tokens: u64, now: Instant) {
        self.used = tokens as f64;
        let more = self.used - self.taken;
        if more > 0.0 {
            self.taken = self.used;
            if let Some(mut usage) = self.tenant.limits()
                && let Some(bucket) = &mut usage.tokens
            {
                bucket.correct(more, now);
            }
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.tenant.concurrent.fetch_sub(1, Relaxed);
        self.tenant.metrics.concurrent.decrement(1);
        if let Some(mut usage) = self.tenant.limits()
            && let Some(bucket) = &mut usage.tokens
        {
            bucket.correct(self.used - self.taken, clock::now());
        }
    }
}

impl RateLimits {
    /// Writes OpenAI's headers for the configured limits.
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
        for ([limit, remaining, reset], status) in
            names.into_iter().zip([self.requests, self.tokens])
        {
            let Some(status) = status else { continue };
            headers.insert(HeaderName::from_static(limit), HeaderValue::from(status.limit));
            headers.insert(HeaderName::from_static(remaining), HeaderValue::from(status.remaining));
            if let Ok(value) = HeaderValue::from_str(&go_duration(status.reset)) {
                headers.insert(HeaderName::from_static(reset), value);
            }
        }
    }
}

/// A duration as OpenAI writes it: `120ms`, `8.64s`, `6m0s`, `1h2m3s`.
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
