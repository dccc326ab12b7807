//! The cost of decisions, with many pools and gateways, and a share of the pools changing each
//! second.
//!
//! Each second every gateway sends one event with the pools that changed, as JSON. The event is
//! parsed, applied to the gateway's state, merged over all gateways, and decided on: the work of
//! the scaler's loop between its sockets and its targets, in one thread.
//!
//!     cargo bench -p forebay-loadtests --bench decisions -- [--pools N] [--endpoints N] [--gateways N]

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Parser;
use forebay_config::{Millis, Pool};
use forebay_scaler::decide::{
    Condition, Freshness, GatewayProcess, Inputs, Ledger, Override, Policy, ReplicaFacts, State,
    decide,
};
use forebay_signals::{Delta, EndpointSignals, Frame, Health, PoolSignals, SCHEMA, View};
use tokio::time::Instant;

#[derive(Parser)]
struct Args {
    #[arg(long, default_value_t = 1000)]
    pools: usize,
    #[arg(long, default_value_t = 100)]
    endpoints: usize,
    #[arg(long, default_value_t = 20)]
    gateways: usize,
    /// Simulated seconds for each share.
    #[arg(long, default_value_t = 10)]
    seconds: usize,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

/// One pool as the scaler holds it.
struct Decided {
    name: String,
    policy: Policy,
    ledger: Ledger,
    state: State,
    replicas: Vec<ReplicaFacts>,
}

fn signals(args: &Args) -> PoolSignals {
    let endpoint = |n: usize| {
        let signals = EndpointSignals {
            health: Health::Ready,
            in_flight: 1,
            limit: 64,
            completed: 1_000,
            generated_tokens: 100_000,
            ..EndpointSignals::default()
        };
        (format!("10.0.{}.{}:8000", n / 250, n % 250), Some(signals))
    };
    let mut signals = PoolSignals {
        endpoints: (0..args.endpoints).map(endpoint).collect(),
        ..Default::default()
    };
    change(&mut signals, 0);
    signals
}

/// A second of load: every figure of the pool changes, and the figures of a tenth of its endpoints.
fn change(signals: &mut PoolSignals, second: usize) {
    signals.in_flight = 40 + (second % 7) as u32;
    signals.in_flight_tokens = 60_000 + second as u64;
    signals.totals.accepted += 5;
    signals.totals.accepted_prompt_tokens += 3_000;
    signals.totals.completed += 5;
    signals.totals.prompt_tokens += 3_000;
    signals.totals.generated_tokens += 1_000;
    for n in 0..20 {
        let seconds = 0.01 * f64::from(n + 1);
        for histogram in [
            &mut signals.hold,
            &mut signals.ttft,
            &mut signals.warm_ttft,
            &mut signals.upstream_ttft,
            &mut signals.itl,
            &mut signals.end_to_end,
        ] {
            histogram.record(seconds);
        }
    }
    let moved = signals.endpoints.values_mut().flatten().skip(second % 10).step_by(10);
    for endpoint in moved {
        endpoint.in_flight = 1 + (second % 3) as u32;
        endpoint.completed += 1;
        endpoint.generated_tokens += 200;
    }
}

fn main() {
    let args = Args::parse();
    let names: Vec<_> = (0..args.pools).map(|n| format!("pool-{n}")).collect();
    let config: Pool = serde_json::from_value(serde_json::json!({
        "name": "p", "scaling": {"minReplicaCount": 1, "maxReplicaCount": 200}
    }))
    .expect("a pool");
    println!(
        "{} pools of {} endpoints, seen by {} gateways",
        args.pools, args.endpoints, args.gateways
    );
    println!("  changing  events/s   bytes/s      parse      merge     decide  CPU a second");
    for percent in [0, 1, 5, 20, 100] {
        let changing = args.pools * percent / 100;
        let (times, bytes) = play(&args, &names, &config, changing);
        let each = |time: Duration| time.as_secs_f64() * 1e3 / args.seconds as f64;
        let [parse, merge, decided] = times.map(each);
        println!(
            "  {percent:>6} %  {:>8}  {:>7.1} MB  {parse:>6.1} ms  {merge:>6.1} ms  {decided:>6.1} ms  {:>9.1} ms",
            args.gateways,
            bytes as f64 / args.seconds as f64 / 1e6,
            parse + merge + decided,
        );
    }
}

/// The times of parsing, merging and deciding over all seconds, and the bytes of the events.
fn play(args: &Args, names: &[String], config: &Pool, changing: usize) -> ([Duration; 3], usize) {
    let first = signals(args);
    let mut sent: BTreeMap<String, PoolSignals> =
        names.iter().map(|name| (name.clone(), first.clone())).collect();
    let frame = |seq, full, pools| Frame {
        schema: SCHEMA,
        sender: "bench".to_owned(),
        seq,
        full,
        goodbye: false,
        up_millis: None,
        gateways: None,
        pools,
    };
    let all = || sent.iter().map(|(name, pool)| (name.clone(), Some(pool.clone()))).collect();
    let mut views: Vec<View<PoolSignals>> = (0..args.gateways)
        .map(|_| View::begin(frame(0, true, all())).expect("a snapshot"))
        .collect();
    let now = |second: usize| Millis::from_secs(1_700_000_000 + second as u64);
    let ready = ReplicaFacts {
        condition: Condition::Ready,
        ready_at: Some(now(0)),
        ..ReplicaFacts::requested(now(0).since(Millis::from_secs(60)))
    };
    let mut pools: Vec<Decided> = names
        .iter()
        .map(|name| {
            let mut state = State::default();
            state.adopt(args.endpoints as u32, now(0));
            Decided {
                name: name.clone(),
                policy: Policy::of(config),
                ledger: Ledger::default(),
                state,
                replicas: vec![ready; args.endpoints],
            }
        })
        .collect();
    let senders: Vec<_> = (0..args.gateways).map(|gateway| gateway.to_string()).collect();
    let process =
        |gateway: usize| GatewayProcess { sender: &senders[gateway], began: Some(now(0)) };
    for pool in &mut pools {
        for (gateway, view) in views.iter().enumerate() {
            pool.ledger.record(gateway, process(gateway), &view.pools[&pool.name], now(0));
        }
    }
    let (mut times, mut bytes) = ([Duration::ZERO; 3], 0);
    for second in 1..=args.seconds {
        // Other pools change each second; they are the same for all gateways.
        let picked: Vec<usize> =
            (0..changing).map(|n| (n + second * changing) % args.pools).collect();
        let mut changes = BTreeMap::new();
        for at in &picked {
            let name = &names[*at];
            let pool = sent.get_mut(name).expect("known");
            let before = pool.clone();
            change(pool, second);
            changes.insert(name.clone(), pool.since(&before));
        }
        let json = serde_json::to_vec(&frame(second as u64, false, changes)).expect("plain data");
        bytes += json.len() * args.gateways;
        let began = Instant::now();
        for view in &mut views {
            let frame: Frame<PoolSignals> = serde_json::from_slice(&json).expect("own format");
            view.apply(frame).expect("the next one");
        }
        times[0] += began.elapsed();
        let began = Instant::now();
        let heard = |gateway| (gateway, Freshness::Live);
        let mut loads = Vec::with_capacity(picked.len());
        for at in &picked {
            let pool = &mut pools[*at];
            for (gateway, view) in views.iter().enumerate() {
                let signals = &view.pools[&pool.name];
                pool.ledger.record(gateway, process(gateway), signals, now(second));
            }
            loads.push(pool.ledger.load((0..args.gateways).map(heard), Millis::from_secs(10)));
        }
        times[1] += began.elapsed();
        let began = Instant::now();
        for (at, load) in picked.iter().zip(&loads) {
            let pool = &mut pools[*at];
            let inputs = Inputs {
                load,
                replicas: &pool.replicas,
                proposals: &[],
                operator_override: Override::None,
            };
            decide(&mut pool.state, &inputs, &pool.policy, now(second));
        }
        times[2] += began.elapsed();
    }
    (times, bytes)
}
