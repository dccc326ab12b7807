//! A configuration that is printed is read back to the same, whatever its values are.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use forebay_config::{
    Admin, Behavior, ByteSize, Config, Cors, Fallback, Gateway, Hold, HoldOrder, InFlightLimit,
    Keys, Limits, LogFormat, Logging, MetricType, Objective, OpenTelemetry, OtlpMetrics,
    OtlpProtocol, PATHS, PolicyType, Pool, PriorityClass, Processes, Prometheus, Replay, Route,
    Scaler, Scaling, ScalingPolicy, ScalingRules, SelectPolicy, Share, ShowReason, SplitBy, Target,
    Tenant, Tls, TlsVersion, Traces, Trigger, Upstream, parse, print,
};
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::subsequence;

/// Hosts of every kind.
const HOSTS: [&str; 5] = ["*", "forebay.ns.svc", "*.example.com", "192.168.1.5", "fd00::/8"];

/// Longer than nothing, to the millisecond.
fn duration() -> impl Strategy<Value = Duration> {
    (1..400_000_000_u64).prop_map(Duration::from_millis)
}

fn size() -> impl Strategy<Value = ByteSize> {
    (1024..u64::MAX).prop_map(ByteSize::new)
}

/// Text that YAML could take for something else.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{1,30}",
        "[a-z :#'\"{}\\[\\]&*!|>%@`,?~-]{1,20}",
        "(true|no|null|~|1\\.10|0x1f|1e3|012|\\.nan|<<|2001-01-01|- a|a: b|a\nb|a\tb| a|a |\u{7f}|\u{85}|\u{2028}|\u{feff})",
    ]
}

prop_compose! {
    fn tls()(
        cert in text(), key in text(), client_ca_file in option::of(text()), newer: bool,
    ) -> Tls {
        Tls {
            cert_file: format!("c{cert}").into(),
            key_file: format!("k{key}").into(),
            client_ca_file: client_ca_file.map(|file| format!("a{file}").into()),
            min_version: if newer { TlsVersion::V1_3 } else { TlsVersion::V1_2 },
        }
    }
}

prop_compose! {
    fn cors()(
        any: bool, headers in vec("[a-z-]{1,9}", 0..3), methods in vec("[A-Z]{1,7}", 0..3),
        expose_headers in vec("[a-z-]{1,9}", 0..3), max_age in duration(), credentials: bool,
    ) -> Cors {
        let origins = if any { "*" } else { "https://a.example:8443" };
        Cors {
            origins: vec![origins.to_owned()], headers, methods, expose_headers, max_age,
            credentials: credentials && !any,
        }
    }
}

prop_compose! {
    fn limits()(
        header_timeout in duration(), body_timeout in duration(), write_timeout in duration(),
        idle_timeout in duration(), total_timeout in duration(), session_timeout in duration(),
        session_idle_timeout in duration(), (body_size, bodies_size, own_bodies) in (size(), size(), any::<bool>()), header_size in size(),
        header_count in 16..u16::MAX, (connections, connections_per_client) in (1..u32::MAX, 1..u32::MAX),
        streams_per_connection in 1..u32::MAX,
    ) -> Limits {
        Limits {
            body_size: body_size.min(bodies_size), bodies_size: own_bodies.then(|| body_size.max(bodies_size)), header_size, header_count, header_timeout, body_timeout, write_timeout,
            idle_timeout, total_timeout, session_timeout, session_idle_timeout, connections,
            connections_per_client, streams_per_connection,
        }
    }
}

prop_compose! {
    fn gateway()(
        port in 1024..9000_u16, v6: bool, threads in option::of(1..500_u16),
        shutdown_timeout in duration(), limits in limits(), tls in option::of(tls()),
        cors in option::of(cors()), scaler in option::of(Just("scaler:9900".to_owned())),
        exposed in 1..PATHS.len(), networks in vec((any::<u32>(), 0..33_u8), 0..3),
        endpoint_header: bool, hosts in subsequence(&HOSTS, 0..=HOSTS.len()),
    ) -> Gateway {
        let ip = if v6 { "[::1]" } else { "0.0.0.0" };
        let listen: SocketAddr = format!("{ip}:{port}").parse().expect("an address");
        let paths = PATHS[..exposed].iter().map(|path| (*path).to_owned()).collect();
        let network = |(address, bits)| format!("{}/{bits}", std::net::Ipv4Addr::from_bits(address));
        let trusted_proxies =
            networks.into_iter().map(|text| network(text).parse().expect("a network")).collect();
        let allowed_hosts = hosts.iter().map(|host| host.parse().expect("a host")).collect();
        Gateway {
            listen, threads, tls, limits, paths, cors, allowed_hosts, trusted_proxies,
            endpoint_header, shutdown_timeout, scaler, ..Gateway::default()
        }
    }
}

prop_compose! {
    fn processes()(
        words in vec(text(), 0..4), env in btree_map("[A-Z]{1,4}", text(), 0..3),
        first in 20_000..30_000_u16, start_timeout in duration(), stop_timeout in duration(), hung_after in duration(),
        log_dir in option::of("[a-z]{1,4}/[a-z ]{1,8}"), gpus in 0..3_usize,
    ) -> Processes {
        let command = std::iter::once("serve-{port}".to_owned()).chain(words).collect();
        // No fewer than the replicas below.
        let gpus = if gpus == 0 { Vec::new() } else { (0..9).map(|gpu| gpu.to_string()).collect() };
        let env: BTreeMap<_, _> = env;
        Processes {
            command, env, ports: (first, first + 100), gpus, log_dir: log_dir.map(Into::into),
            start_timeout, stop_timeout, hung_after,
        }
    }
}

prop_compose! {
    fn trigger()(
        query in text(), metric_type in option::of(Just(MetricType::Value)), threshold in 0.001..1e9_f64,
        other in text(),
    ) -> Trigger {
        let query = format!("q{query}");
        let settings = [("query", query.as_str()), ("threshold", &threshold.to_string()), ("other", &other)];
        let mut trigger = Trigger::of("prometheus", &settings);
        trigger.metric_type = metric_type;
        trigger
    }
}

prop_compose! {
    fn behavior()(
        window in option::of(0..=3600_u32), tolerance in option::of(0.0..1.0_f64),
        policies in option::of(vec((any::<bool>(), 1..1000_u32, 1..=1800_u32), 1..3)),
        select in option::of(prop_oneof![
            Just(SelectPolicy::Max), Just(SelectPolicy::Min), Just(SelectPolicy::Disabled),
        ]),
        up: bool,
    ) -> Behavior {
        let policy = |(pods, value, period_seconds)| ScalingPolicy {
            r#type: if pods { PolicyType::Pods } else { PolicyType::Percent }, value, period_seconds,
        };
        let rules = ScalingRules {
            stabilization_window_seconds: window, select_policy: select, tolerance,
            policies: policies.map(|all| all.into_iter().map(policy).collect()),
        };
        let scale_down = (!up).then(|| rules.clone());
        Behavior { scale_up: up.then_some(rules), scale_down }
    }
}

prop_compose! {
    fn scaling()(
        min in 0..3_u32, more in 1..6_u32, target_concurrency in option::of(1..u32::MAX),
        activation_threshold: u32, panic_window in duration(), longer in duration(),
        panic_threshold in 1.001..1000.0_f64, cooldown_period in duration(),
        initial_cooldown_period in duration(), ttft in duration(), share in 0.001..0.999_f64,
        behavior in option::of(behavior()), polling_interval in duration(),
        triggers in vec(trigger(), 0..3),
    ) -> Scaling {
        Scaling {
            min_replica_count: min, max_replica_count: min + more, target_concurrency,
            activation_threshold, stable_window: panic_window + longer, panic_window,
            panic_threshold, cooldown_period, initial_cooldown_period, behavior,
            idle_replica_count: min.checked_sub(1), objective: Objective { ttft, share },
            triggers, polling_interval, advanced: None,
        }
    }
}

prop_compose! {
    fn tenant()(
        priority_class in prop_oneof![Just(PriorityClass::High), Just(PriorityClass::Low)],
        requests_per_minute in option::of(1..u32::MAX), tokens_per_minute in option::of(1..u64::MAX),
        max_concurrent in option::of(1..u32::MAX), models in vec("[a-z*/]{1,5}", 0..3),
    ) -> Tenant {
        Tenant {
            name: "t".to_owned(), priority_class, requests_per_minute, tokens_per_minute,
            max_concurrent, models,
        }
    }
}

prop_compose! {
    fn pool()(
        aliases in btree_map("x[a-z ]{1,4}", 0..1_usize, 0..3), adapters in vec("y[a-z]{4}", 0..2),
        after in option::of(duration()), models in vec(text(), 1..4), endpoint: bool, max_in_flight in 1..u32::MAX,
        target in processes(), scaling in scaling(), max_requests in 1..u32::MAX,
        max_bytes in size(), hold in (duration(), duration()), allow_priority: bool, limits in (duration(), duration(), duration()),
        max_tries in 1..9_u32, commit_size in size(),
    ) -> Pool {
        let mut pool = Pool::named("a.B-1_");
        let mut seen = std::collections::HashSet::new();
        pool.models = models;
        pool.models.retain(|model| !model.trim().is_empty() && seen.insert(model.clone()));
        // Names that none of the models can be.
        pool.aliases = aliases.into_keys()
            .map(|alias| (format!("{alias}\u{7}"), "b\u{7}".to_owned())).collect();
        pool.models.push("b\u{7}".to_owned());
        pool.adapters = adapters.into_iter().enumerate()
            .map(|(nth, name)| format!("{name}{nth}\u{7}")).collect();
        pool.fallback = after.map(|after| Fallback { pool: "b".into(), model: None, after: Some(after) });
        pool.api_key_file = after.map(|_| "a/b".into());
        pool.endpoints = if endpoint { vec!["h:1".to_owned(), "http://[::1]:2/".to_owned()] } else { Vec::new() };
        pool.max_in_flight = max_in_flight;
        pool.limit = if endpoint { InFlightLimit::Learned } else { InFlightLimit::Fixed };
        let show_reason = if endpoint { ShowReason::Output } else { ShowReason::None };
        let (timeout, heartbeat) = hold;
        let order = if endpoint { HoldOrder::Objective } else { HoldOrder::Arrival };
        let (max_wait, lower_class_share) = (after, f64::from(max_tries) / 20.0);
        pool.hold = Hold { max_requests, max_bytes, timeout, max_wait, order, lower_class_share, heartbeat, heartbeat_plain: endpoint, show_reason };
        pool.allow_priority = allow_priority;
        let (connect_timeout, stall_timeout, request_timeout) = limits;
        pool.upstream = Upstream { connect_timeout, stall_timeout, request_timeout, max_tries, commit_size, ..Upstream::default() };
        pool.target = Some(Target::Processes(target));
        pool.scaling = scaling;
        pool
    }
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back_to_the_same(
        gateway in gateway(), pool in pool(), stale_after in duration(),
        token_file in option::of("[a-z/ #:]{1,9}"), tenant in tenant(), required: bool,
        by in prop_oneof![Just(SplitBy::Request), Just(SplitBy::Session), Just(SplitBy::Tenant)],
        weight in 1..u32::MAX, access: bool,
        format in prop_oneof![Just(LogFormat::Json), Just(LogFormat::Text)],
    ) {
        let mut gateway: Gateway = gateway;
        gateway.keys = Some(Keys { file: "keys".into(), required });
        gateway.tenants = vec![tenant];
        let share = Share { pool: "b".to_owned(), weight, model: Some("served".to_owned()) };
        gateway.routes = vec![Route { model: "split".to_owned(), by, pools: vec![share] }];
        let mut other = Pool::named("b");
        other.models = vec!["served".to_owned()];
        other.endpoints = vec!["other:1".to_owned()];
        let config = Config {
            gateway,
            admin: Admin { token_file: token_file.map(Into::into), ..Admin::default() },
            logging: Logging { format, access },
            open_telemetry: OpenTelemetry {
                endpoint: Some("http://c:4317".to_owned()), protocol: Some(OtlpProtocol::Http),
                timeout: Some(stale_after), service_name: Some("s".to_owned()),
                resource_attributes: [("a.b".to_owned(), "c: d".to_owned())].into(),
                traces: Traces { enabled: access, sample_ratio: Some(0.25), always_over: stale_after },
                metrics: OtlpMetrics { enabled: access, interval: Some(stale_after) },
                ..OpenTelemetry::default()
            },
            scaler: Scaler { stale_after, gateways: vec!["g:1".to_owned()], gateway_address: Some("g:2".to_owned()), state_dir: Some("/s".into()), ..Scaler::default() },
            prometheus: Prometheus {
                server_address: Some("http://p:9090".to_owned()), timeout: stale_after,
                ..Prometheus::default()
            },
            pools: vec![pool, other],
            replay: Some(Replay { seed: u64::from(weight), gpu_hour_price: Some(3.29), ..Replay::default() }),
        };
        prop_assert!(config.problems().is_empty(), "{}", config.problems());
        let text = print(&config);
        match parse(&text, "printed") {
            Ok(back) => prop_assert_eq!(back, config, "{}", text),
            Err(problems) => prop_assert!(false, "{problems}\n{text}"),
        }
    }
}
