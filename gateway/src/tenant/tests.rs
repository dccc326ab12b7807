use proptest::prelude::*;

use super::*;

fn tenant(requests: Option<u32>, tokens: Option<u64>, concurrent: Option<u32>) -> Arc<Tenant> {
    let settings = Settings {
        requests_per_minute: requests,
        tokens_per_minute: tokens,
        max_concurrent: concurrent,
        ..Settings::named("t")
    };
    Tenant::new(settings, 1, Instant::now())
}

fn admit(tenant: &Arc<Tenant>, tokens: u64, now: Instant) -> Result<Grant, Limited> {
    let mut grant = tenant.admit(now)?;
    grant.reserve(tokens, now)?;
    Ok(grant)
}

fn remaining(tenant: &Tenant, now: Instant) -> (Option<u64>, Option<u64>) {
    let limits = tenant.rate_limits(now);
    (limits.requests.map(|limit| limit.remaining), limits.tokens.map(|limit| limit.remaining))
}

#[tokio::test(start_paused = true)]
async fn an_estimate_is_taken_at_admission_and_corrected_at_the_end() {
    let (tenant, now) = (tenant(Some(10), Some(1000), None), Instant::now());
    let mut grant = admit(&tenant, 600, now).expect("within both limits");
    assert_eq!(remaining(&tenant, now), (Some(9), Some(400)));
    let over = admit(&tenant, 600, now).err().expect("over the tokens");
    assert_eq!(over, Limited { limit: Limit::Tokens(1000), retry_after: Duration::from_secs(12) });
    assert_eq!(remaining(&tenant, now), (Some(9), Some(400)), "a refused request costs nothing");
    grant.used(100, now);
    assert_eq!(remaining(&tenant, now), (Some(9), Some(400)), "it may still use the rest");
    drop(grant);
    assert_eq!(remaining(&tenant, now), (Some(9), Some(900)), "only what it used is gone");
}

#[tokio::test(start_paused = true)]
async fn an_answer_longer_than_estimated_is_charged_while_it_comes() {
    let (tenant, now) = (tenant(None, Some(1000), None), Instant::now());
    let mut grant = admit(&tenant, 100, now).expect("within the limit");
    grant.used(300, now);
    assert_eq!(remaining(&tenant, now), (None, Some(700)));
    grant.used(1500, now);
    assert_eq!(remaining(&tenant, now), (None, Some(0)));
    drop(grant);
    let over = admit(&tenant, 100, now).err().expect("it owes 500");
    assert_eq!(over.retry_after, Duration::from_secs(30));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_never_reached_a_replica_gets_its_tokens_back() {
    let (tenant, now) = (tenant(Some(10), Some(1000), Some(1)), Instant::now());
    let grant = admit(&tenant, 900, now).expect("within the limits");
    let over = admit(&tenant, 1, now).err().expect("one at once");
    assert_eq!(over.limit, Limit::Concurrent(1));
    drop(grant);
    assert_eq!(remaining(&tenant, now), (Some(9), Some(1000)));
    assert!(admit(&tenant, 1, now).is_ok(), "its place is free");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_before_the_first_token_has_used_the_prompt() {
    let (tenant, now) = (tenant(None, Some(1000), None), Instant::now());
    let mut grant = admit(&tenant, 900, now).expect("within the limit");
    grant.used_at_least(600, now);
    drop(grant);
    assert_eq!(remaining(&tenant, now), (None, Some(400)));
    let mut grant = admit(&tenant, 300, now).expect("within the limit");
    grant.used(200, now);
    grant.used_at_least(100, now);
    drop(grant);
    assert_eq!(remaining(&tenant, now), (None, Some(200)), "known tokens count");
}

#[tokio::test(start_paused = true)]
async fn a_request_counts_before_its_body_is_read() {
    let (tenant, now) = (tenant(Some(1), None, Some(1)), Instant::now());
    let grant = tenant.admit(now).expect("within the limits");
    let over = tenant.admit(now).err().expect("its body may be on its way");
    assert_eq!(over.limit, Limit::Concurrent(1));
    drop(grant);
    let over = tenant.admit(now).err().expect("it was one");
    assert_eq!(over.limit, Limit::Requests(1));
}

#[tokio::test(start_paused = true)]
async fn the_limit_that_lasts_longest_is_the_one_that_is_reported() {
    let (tenant, now) = (tenant(Some(1), Some(100), None), Instant::now());
    let mut grant = admit(&tenant, 100, now).expect("within both");
    grant.used(250, now);
    let over = admit(&tenant, 50, now).err().expect("over both");
    assert_eq!(over.limit, Limit::Tokens(100));
    assert_eq!(over.retry_after, Duration::from_secs(90));
    assert_eq!(over.limit.to_string(), "100 tokens per minute");
}

#[tokio::test(start_paused = true)]
async fn gateways_share_limits_and_a_change_keeps_admitted_requests() {
    let (tenant, now) = (tenant(Some(100), None, Some(4)), Instant::now());
    let grants: Vec<_> = (0..4).map(|_| admit(&tenant, 1, now).expect("four at once")).collect();
    tenant.share(2, now);
    assert_eq!(remaining(&tenant, now), (Some(96), None), "48 here, and as many there");
    drop(grants);
    let two: Vec<_> = (0..3).map(|_| admit(&tenant, 1, now).is_ok()).collect();
    assert_eq!(two, [true, true, true], "each ended at once");
    let held: Vec<_> = (0..2).map(|_| admit(&tenant, 1, now).expect("two at once")).collect();
    assert!(admit(&tenant, 1, now).is_err(), "half of four");
    tenant.configure(Settings::named("t"), 2, now);
    assert!(admit(&tenant, 1, now).is_ok(), "no limits now");
    assert_eq!(tenant.rate_limits(now), RateLimits::default());
    drop(held);
}

#[tokio::test(start_paused = true)]
async fn a_new_limit_counts_the_requests_that_were_admitted_without_one() {
    let (tenant, now) = (tenant(None, None, None), Instant::now());
    let mut grant = admit(&tenant, 900, now).expect("no limits");
    grant.used(100, now);
    let settings =
        Settings { max_concurrent: Some(1), tokens_per_minute: Some(1000), ..Settings::named("t") };
    tenant.configure(settings, 1, now);
    assert_eq!(admit(&tenant, 1, now).err().map(|over| over.limit), Some(Limit::Concurrent(1)));
    drop(grant);
    assert_eq!(remaining(&tenant, now), (None, Some(1000)), "its tokens came before the limit");
    assert!(admit(&tenant, 1, now).is_ok(), "its place is free");
}

#[test]
fn limits_are_written_as_openai_writes_them() {
    let status = |limit, remaining, reset| {
        Some(LimitStatus { limit, remaining, reset: Duration::from_millis(reset) })
    };
    let limits = RateLimits { requests: status(60, 59, 1000), tokens: status(150_000, 149_984, 6) };
    let mut headers = HeaderMap::new();
    limits.write(&mut headers);
    let header = |name: &str| headers[name].to_str().expect("text").to_owned();
    assert_eq!(header("x-ratelimit-limit-requests"), "60");
    assert_eq!(header("x-ratelimit-remaining-requests"), "59");
    assert_eq!(header("x-ratelimit-reset-requests"), "1s");
    assert_eq!(header("x-ratelimit-limit-tokens"), "150000");
    assert_eq!(header("x-ratelimit-remaining-tokens"), "149984");
    assert_eq!(header("x-ratelimit-reset-tokens"), "6ms");
    let mut none = HeaderMap::new();
    RateLimits::default().write(&mut none);
    assert!(none.is_empty(), "no limits, no headers");
    for (millis, text) in [
        (0, "0s"),
        (1, "1ms"),
        (8640, "8.64s"),
        (59_999, "59.999s"),
        (60_000, "1m0s"),
        (360_000, "6m0s"),
        (3_723_500, "1h2m3.5s"),
        (86_400_000, "24h0m0s"),
    ] {
        assert_eq!(go_duration(Duration::from_millis(millis)), text);
    }
}

proptest! {
    #[test] // whatever requests do, their tenant is charged exactly the tokens that they used
    fn a_tenant_is_charged_exactly_the_tokens_used(
        requests in prop::collection::vec((1..2000u64, prop::collection::vec(0..3000u64, 0..4)), 1..20),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(async {
            let (tenant, now) = (tenant(None, Some(1_000_000), None), Instant::now());
            let (mut grants, mut used) = (Vec::new(), 0);
            for (estimate, progress) in requests {
                let mut grant = admit(&tenant, estimate, now).expect("far from the limit");
                let mut total = 0;
                for more in progress {
                    total += more;
                    grant.used(total, now);
                }
                used += total;
                grants.push(grant);
            }
            drop(grants);
            assert_eq!(remaining(&tenant, now), (None, Some(1_000_000 - used)));
        });
    }
}
