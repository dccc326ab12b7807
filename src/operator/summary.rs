//! Pools in words and columns, for `forebay status` and `forebay top`.

use forebay_scaler::Override;
use forebay_scaler::overview::{PoolOverview, StateCounts};

/// The heads of [`columns`].
pub(super) const HEADS: [&str; 8] =
    ["POOL", "REPLICAS", "HELD", "IN FLIGHT", "TTFT P95", "TOKENS/S", "PER HOUR", "LAST CHANGE"];

/// One pool as a row, for the time `now` in milliseconds since the epoch.
pub(super) fn columns(name: &str, pool: &PoolOverview, now: u64) -> [String; 8] {
    [
        name.to_owned(),
        replicas(pool, now),
        pool.held.to_string(),
        pool.in_flight.to_string(),
        pool.rates.ttft_p95.map_or_else(|| "-".to_owned(), seconds),
        number(f64::from(pool.rates.tokens)),
        cost(pool),
        printable(&pool.why),
    ]
}

/// All pools together, in one line.
pub(super) fn totals<'a>(pools: impl Iterator<Item = &'a PoolOverview>) -> String {
    let (mut count, mut ready, mut desired, mut held, mut in_flight) = (0, 0, 0, 0, 0);
    let (mut tokens, mut hourly, mut saved) = (0.0, 0.0, 0.0);
    for pool in pools {
        count += 1;
        ready += pool.replicas.ready;
        desired += pool.desired;
        held += pool.held;
        in_flight += pool.in_flight;
        tokens += f64::from(pool.rates.tokens);
        hourly += price(pool) * f64::from(gpus(pool));
        saved += price(pool) * (pool.today.at_maximum - pool.today.gpu_hours).max(0.0);
    }
    let pools = if count == 1 { "1 pool".to_owned() } else { format!("{count} pools") };
    let tokens = number(tokens);
    let mut line = format!(
        "{pools}, {ready} of {desired} replicas ready, {held} held, {in_flight} in flight, {tokens} tokens/s"
    );
    if hourly > 0.0 || saved > 0.0 {
        line += &format!(", {hourly:.2} per hour, {saved:.2} saved today");
    }
    line
}

/// The replicas in words, with the time left to the next one.
pub(super) fn replicas(pool: &PoolOverview, now: u64) -> String {
    let StateCounts { pending, starting, ready, draining, failed } = pool.replicas;
    let states = [
        (ready, "ready"),
        (starting, "starting"),
        (pending, "pending"),
        (draining, "draining"),
        (failed, "failed"),
    ];
    let words: Vec<_> = states
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    let mut text = match words.as_slice() {
        [] if pool.desired > 0 => format!("{} wanted", pool.desired),
        [] => "at zero".to_owned(),
        words => words.join(", "),
    };
    if let Some(at) = pool.next_ready_millis {
        let left = at.get().saturating_sub(now).div_ceil(1000);
        text += &if left > 0 { format!(" ({left} s left)") } else { " (any moment)".to_owned() };
    }
    match pool.operator_override {
        Override::None => {}
        Override::Paused => text += ", paused",
        Override::Fixed(count) => text += &format!(", fixed at {count}"),
    }
    text
}

fn gpus(pool: &PoolOverview) -> u32 {
    pool.replicas.occupying() * pool.settings.as_ref().map_or(1, |settings| settings.gpus)
}

fn price(pool: &PoolOverview) -> f64 {
    pool.settings.as_ref().map_or(0.0, |settings| settings.gpu_hour_price)
}

/// The cost of an hour, or its GPUs if the price is not known.
fn cost(pool: &PoolOverview) -> String {
    match (price(pool), gpus(pool)) {
        (price, gpus) if price > 0.0 => format!("{:.2}", price * f64::from(gpus)),
        (_, 1) => "1 GPU".to_owned(),
        (_, gpus) => format!("{gpus} GPUs"),
    }
}

/// The text without control characters: it may come from a server's output, and goes to a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A span with about three digits.
pub(super) fn seconds(value: f32) -> String {
    match value {
        value if value < 0.1 => format!("{:.0} ms", value * 1000.0),
        value if value < 10.0 => format!("{value:.2} s"),
        value => format!("{value:.0} s"),
    }
}

/// A number with about three digits.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2}M", value / 1e6),
        value if value >= 1e4 => format!("{:.1}k", value / 1e3),
        value if value >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        value => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use forebay_scaler::overview::{PoolSettings, Spending};

    use super::*;

    #[test]
    fn a_pool_is_a_row_with_the_time_left_and_the_price() {
        let settings = PoolSettings { gpus: 2, gpu_hour_price: 3.5, ..PoolSettings::default() };
        let mut pool = PoolOverview {
            settings: Some(Box::new(settings)),
            desired: 3,
            replicas: StateCounts { ready: 2, starting: 1, ..StateCounts::default() },
            next_ready_millis: Some(serde_json::from_str("12500").expect("a number")),
            ..PoolOverview::default()
        };
        let row = columns("chat", &pool, 10_000);
        assert_eq!((&row[1][..], &row[6][..]), ("2 ready, 1 starting (3 s left)", "21.00"));
        assert_eq!(columns("chat", &pool, 20_000)[1], "2 ready, 1 starting (any moment)");
        assert_eq!(
            totals([&pool].into_iter()),
            "1 pool, 2 of 3 replicas ready, 0 held, 0 in flight, 0 tokens/s, 21.00 per hour, 0.00 saved today"
        );
        // Of 24,000 GPU-hours, 12 were saved.
        let today = Spending { gpu_hours: 23_988.0, at_maximum: 24_000.0, ..Spending::default() };
        pool.today = today;
        let line = totals([&pool].into_iter());
        assert!(line.ends_with("42.00 saved today"), "{line}");
        pool = PoolOverview { operator_override: Override::Paused, ..PoolOverview::default() };
        assert_eq!(columns("chat", &pool, 0)[1], "at zero, paused");
    }

    #[test]
    fn numbers_have_about_three_digits() {
        for (value, want) in
            [(0.0, "0"), (1.5, "1.5"), (123.4, "123"), (12_345.0, "12.3k"), (3.4e6, "3.40M")]
        {
            assert_eq!(number(value), want);
        }
        for (value, want) in [(0.0123, "12 ms"), (0.84, "0.84 s"), (43.2, "43 s")] {
            assert_eq!(seconds(value), want);
        }
    }
}
