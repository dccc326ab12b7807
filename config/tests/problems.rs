//! Problems of a wrong file: each on a line of its own, with its place and the remedy.

mod support;

use forebay_config::{Config, Pool, inspect, load, parse};
use proptest::prelude::*;
use support::{of_pool, report};

#[test]
fn broken_yaml_is_reported_with_its_line() {
    for (text, start) in [
        ("pools:\n  - name: 'a\n", "f.yaml:2: not valid YAML: "),
        ("gateway:\n\tlisten: x\n", "f.yaml:2: not valid YAML: "),
        ("a: b: c\n", "f.yaml:1: not valid YAML: "),
        ("pools: [\n", "f.yaml:1: not valid YAML: "),
        ("admin: *none\n", "f.yaml:1: not valid YAML: "),
    ] {
        let report = report(text);
        assert!(report.starts_with(start) && report.len() > start.len(), "{text}: {report}");
    }
}

#[test]
fn wrong_fields_and_values_are_reported_with_the_remedy() {
    for (text, expected) in [
        ("", "f.yaml:1: pools: no pools; give at least one, with a name and a target"),
        ("# nothing\n", "f.yaml:2: pools: no pools; give at least one, with a name and a target"),
        ("pools:\n", "f.yaml:1: pools: no pools; give at least one, with a name and a target"),
        ("just text", "f.yaml:1: must be a mapping of fields, not `just text`"),
        ("- a\n", "f.yaml:1: must be a mapping of fields, not a list"),
        ("admin: {}\nadmin: {}\n", "f.yaml:2: admin: given twice, first on line 1"),
        ("a: 1\n---\nb: 1\n", "f.yaml:2: a second document begins here; write one per file"),
        ("pool: []\n", "f.yaml:1: pool: unknown field; did you mean pools?"),
        (
            "clusters: {}\n",
            "f.yaml:1: clusters: unknown field; known here: gateway, admin, logging, openTelemetry, scaler, prometheus, pools, replay",
        ),
        ("maxInFlight: 3\n", "f.yaml:1: maxInFlight: unknown field here; it belongs to pools[]"),
        (
            "pools: [{name: a, endpoint: [a:1]}]\n",
            "f.yaml:1: pools[0].endpoint: unknown field here; did you mean endpoints? endpoint \
             belongs to openTelemetry",
        ),
        ("gateway: {threads: 1.5}\n", "f.yaml:1: gateway.threads: `1.5` is not a whole number"),
        (
            "gateway: {threads: 70000}\n",
            "f.yaml:1: gateway.threads: `70000` is out of range: 0 to 65535",
        ),
        (
            "gateway:\n  listen: 8080\n",
            "f.yaml:2: gateway.listen: `8080` is not IP:PORT; write 127.0.0.1:8080, or \
             0.0.0.0:8080 for all interfaces",
        ),
        (
            "gateway:\n  limits:\n    bodySize: 32MiB\n",
            "f.yaml:3: gateway.limits.bodySize: `32MiB` is not a size; write 32Mi",
        ),
        (
            "gateway:\n  tls: {certFile: a}\n",
            "f.yaml:2: gateway.tls.keyFile: missing; it must be given",
        ),
        (
            "gateway:\n  tls: {certFile: a, keyFile: b, minVersion: '1.1'}\n",
            "f.yaml:2: gateway.tls.minVersion: `1.1` is not known; give one of: 1.2, 1.3",
        ),
        (
            "gateway:\n  trustedProxies:\n    - 10.0.0/8\n",
            "f.yaml:3: gateway.trustedProxies[0]: `10.0.0/8` is not a network; write 10.0.0.0/8, \
             fd00::/8, or a single address",
        ),
        (
            "gateway:\n  allowedHosts:\n    - http://a.example:80\n",
            "f.yaml:3: gateway.allowedHosts[0]: `http://a.example:80` is not a host; write a name \
             or an address without scheme and port, *.example.com, 10.0.0.0/8, or * for any",
        ),
        (
            "gateway:\n  shutdownTimeout: 30sec\n",
            "f.yaml:2: gateway.shutdownTimeout: `30sec` is not a duration: unit `sec` is not \
             known; use d, h, m, s or ms",
        ),
        (
            "scaler:\n  staleAfter: -1\n",
            "f.yaml:2: scaler.staleAfter: `-1` is negative; a duration is 0s or longer",
        ),
        (
            "scaler:\n  staleAfter: 1.5\n",
            "f.yaml:2: scaler.staleAfter: `1.5` is not a duration: no fractions; write 1500ms for \
             1.5s, 90s for 1.5m",
        ),
        ("scaler:\n  gateways: a:1\n", "f.yaml:2: scaler.gateways: must be a list; write [a:1]"),
        ("pools: {name: a}\n", "f.yaml:1: pools: must be a list, not a mapping"),
        ("pools:\n  - models: [a]\n", "f.yaml:2: pools[0].name: missing; it must be given"),
        ("pools:\n  - name:\n", "f.yaml:2: pools[0].name: missing; it must be given"),
        (
            "pools:\n  - name: a\n    pick: leastload\n",
            "f.yaml:3: pools[0].pick: `leastload` is not known; did you mean leastLoad?",
        ),
        (
            "pools:\n  - name: a\n    pick: sticky\n",
            "f.yaml:3: pools[0].pick: `sticky` is not known; give one of: prefixAffinity, leastLoad, \
             roundRobin, powerOfTwo, consistentHash",
        ),
        ("pools:\n  - nam: a\n", "f.yaml:2: pools[0].nam: unknown field; did you mean name?"),
        ("pools:\n  -\n", "f.yaml:2: pools[0]: empty; a mapping of fields must be given"),
    ] {
        assert_eq!(report(text), expected, "{text}");
    }
}

#[test]
fn wrong_fields_of_a_pool_are_reported_with_the_remedy() {
    for (fields, expected) in [
        (
            "scaling:\n  maxReplicas: 3",
            "f.yaml:4: pools[0].scaling.maxReplicas: unknown field; did you mean maxReplicaCount?",
        ),
        (
            "scaling:\n  min_replica_count: 3",
            "f.yaml:4: pools[0].scaling.min_replica_count: unknown field; did you mean \
             minReplicaCount?",
        ),
        (
            "cooldownPeriod: 30s",
            "f.yaml:3: pools[0].cooldownPeriod: unknown field here; it belongs to pools[].scaling",
        ),
        (
            "scaling:\n  maxReplicaCount: \"many\"",
            "f.yaml:4: pools[0].scaling.maxReplicaCount: `many` is not a whole number",
        ),
        (
            "scaling:\n  minReplicaCount: -1",
            "f.yaml:4: pools[0].scaling.minReplicaCount: `-1` is out of range: 0 to 4294967295",
        ),
        (
            "scaling:\n  panicThreshold: .nan",
            "f.yaml:4: pools[0].scaling.panicThreshold: `.nan` is not a number",
        ),
        ("models: [a, [b]]", "f.yaml:3: pools[0].models[1]: must be text, not a list"),
        (
            "target: {}",
            "f.yaml:3: pools[0].target: give exactly one of: processes, kubernetes, keda",
        ),
        (
            "target: {process: {}}",
            "f.yaml:3: pools[0].target.process: `process` is not known; did you mean processes?",
        ),
        (
            "target:\n  processes:\n    command: vllm serve x --port {port}",
            "f.yaml:5: pools[0].target.processes.command: must be a list; write [vllm, serve, x, \
             --port, \"{port}\"]",
        ),
        (
            "target:\n  processes:\n    command: [vllm, serve, x, --port, {port}]",
            "f.yaml:5: pools[0].target.processes.command[4]: must be text; write \"{port}\" in quotes",
        ),
        (
            "target:\n  processes:\n    command: [vllm, serve, x, --port={port}]",
            "f.yaml:5: not valid YAML: while parsing a flow sequence, expected ',' or ']'; write \
             \"--port={port}\" in quotes",
        ),
        (
            "target:\n  processes:\n    command: [\"vllm serve x --port {port}\"]",
            "f.yaml:5: pools[0].target.processes.command: one word, which no shell splits; write \
             [vllm, serve, x, --port, \"{port}\"]",
        ),
        ("target: processes", "f.yaml:3: pools[0].target: `processes` needs its fields below it"),
        (
            "target:\n  processes:\n    ports: 18100",
            "f.yaml:4: pools[0].target.processes.command: missing; it must be given\n\
             f.yaml:5: pools[0].target.processes.ports: `18100` is not a range of ports; write \
             18100-18999",
        ),
    ] {
        assert_eq!(of_pool(fields), expected, "{fields}");
    }
}

#[test]
fn warnings_have_lines_and_leave_the_configuration_valid() {
    let text = "\
pools:
  - name: a
    models: [m]
    endpoints: ['h:1']
    hold:
      timeout: 2h
      maxBytes: 1Mi
    scaling:
      targetConcurrency: 200
  - name: b
    models: [n]
    endpoints: ['http://h:1']
";
    let (config, warnings) = inspect(text, "f.yaml").unwrap();
    assert_eq!(
        warnings.to_string(),
        "f.yaml:6: pools[0].hold.timeout: 2h is longer than upstream.requestTimeout (1h), which \
         ends a held request first\n\
         f.yaml:7: pools[0].hold.maxBytes: 1Mi is less than the largest request body (gateway.limits.bodySize is 32Mi): such a body is never held\n\
         f.yaml:8: pools[0].scaling: has no effect: the pool has no target to scale\n\
         f.yaml:9: pools[0].scaling.targetConcurrency: 200 is more than a replica takes \
         (maxInFlight is 128): requests are held before the pool grows\n\
         f.yaml:12: pools[1].endpoints[0]: `http://h:1` is an endpoint of pools[0] too: each pool fills it without knowing of the other"
    );
    let fields = |problems: &forebay_config::Problems| -> Vec<String> {
        let mut fields: Vec<_> = problems.iter().map(|problem| problem.field.clone()).collect();
        fields.sort();
        fields
    };
    assert_eq!(fields(&config.warnings()), fields(&warnings));
}

#[test]
fn problems_of_types_are_all_reported_at_once_and_cause_no_others() {
    let text = "\
gateway: {listen: x, thread: 1}
pools:
  - name: a
    endpoint: ['h:1']
    target: {processes: {command: 5, ports: x}}
  - name: [b]
    scaling: {minReplicaCount: no, maxReplicaCount: '2'}
";
    let fields: Vec<_> = match parse(text, "f.yaml") {
        Ok(_) => panic!("is valid"),
        Err(problems) => problems.iter().map(|problem| problem.field.clone()).collect(),
    };
    assert_eq!(
        fields,
        [
            "gateway.listen",
            "gateway.thread",
            "pools[0].endpoint",
            "pools[0].target.processes.command",
            "pools[0].target.processes.ports",
            "pools[1].name",
            "pools[1].scaling.minReplicaCount",
        ]
    );
}

#[test]
fn numbers_may_be_quoted_and_fields_left_empty() {
    let text = "\
gateway:
  listen:
  limits:
pools:
  - name: 7
    models: [1.10]
    endpoints: ['h:1']
    maxInFlight: '64'
    scaling:
      minReplicaCount: \"2\"
      maxReplicaCount: '3'
      cooldownPeriod: '300'
      stableWindow: 90
      panicThreshold: \"1.5\"
";
    let config = parse(text, "f.yaml").unwrap_or_else(|problems| panic!("{problems}"));
    let pool = &config.pools[0];
    assert_eq!((pool.name.as_str(), pool.models[0].as_str()), ("7", "1.10"));
    assert_eq!((pool.scaling.min_replica_count, pool.scaling.max_replica_count), (2, 3));
    assert_eq!((pool.max_in_flight, pool.target_concurrency()), (64, 51));
    assert_eq!(pool.scaling.cooldown_period.as_secs(), 300);
    assert_eq!(pool.scaling.stable_window.as_secs(), 90);
    assert_eq!(config.gateway, Config::default().gateway);
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let report = load("/nowhere/forebay.yaml").unwrap_err().to_string();
    assert!(report.starts_with("/nowhere/forebay.yaml: cannot be read: "), "{report}");
}

#[test]
fn a_configuration_made_in_code_is_checked_by_the_same_rules() {
    let config = Config { pools: vec![Pool::named("a")], ..Config::default() };
    assert!(config.problems().to_string().starts_with("pools[0]: nothing serves it; "));
}

proptest! {
    #[test] // nor does it loop: each round takes something out
    fn no_text_is_a_panic(
        text in "\\PC{0,40}|([-a-c&*<:{}\\[\\],'\"|>#!%@ 0-9~\n]|pools|name|target|: |\n  ){0,40}"
    ) {
        let _ = parse(&text, "f.yaml");
    }

    #[test]
    fn a_line_taken_out_of_or_put_twice_into_an_example_is_valid_or_reported_with_a_line(
        at in 0..200_usize, twice: bool
    ) {
        let full = include_str!("../examples/full.yaml");
        let mut lines: Vec<_> = full.lines().collect();
        let at = at % lines.len();
        if twice { lines.insert(at, lines[at]); } else { lines.remove(at); }
        if let Err(problems) = parse(&lines.join("\n"), "f.yaml") {
            prop_assert!(!problems.is_empty());
            for problem in &problems {
                let line = problem.place.map_or(0, |place| place.line);
                prop_assert!((1..=lines.len() + 1).contains(&line), "{problem}");
            }
        }
    }
}
