//! What a wrong file is told: each problem on a line of its own, with its place and the fix.

use forebay_config::{Config, Pool, inspect, load, parse};
use proptest::prelude::*;

/// A pool that is right, to be put where the rest is what a case is about.
const POOL: &str = "pools: [{name: a, models: [m], endpoints: ['h:1']}]\n";

fn told(text: &str) -> String {
    match parse(text, "f.yaml") {
        Ok(_) => format!("is valid:\n{text}"),
        Err(problems) => problems.to_string(),
    }
}

/// With `fields` of one pool, from line 3 on.
fn of_pool(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    told(&format!("pools:\n  - name: a\n{fields}"))
}

/// With `fields` of a processes target that is right, from line 4 on; the command comes last.
fn of_processes(fields: &str, scaling: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    let command = if fields.contains("command") { "" } else { "    command: ['{port}']\n" };
    of_pool(&format!("target:\n  processes:\n{fields}{command}{scaling}"))
}

#[test]
fn broken_yaml_is_told_with_its_line() {
    for (text, start) in [
        ("pools:\n  - name: 'a\n", "f.yaml:2: not valid YAML: "),
        ("gateway:\n\tlisten: x\n", "f.yaml:2: not valid YAML: "),
        ("a: b: c\n", "f.yaml:1: not valid YAML: "),
        ("pools: [\n", "f.yaml:1: not valid YAML: "),
        ("admin: *none\n", "f.yaml:1: not valid YAML: "),
    ] {
        let told = told(text);
        assert!(told.starts_with(start) && told.len() > start.len(), "{text}: {told}");
    }
}

#[test]
fn wrong_fields_and_values_are_told_with_the_fix() {
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
            "f.yaml:1: clusters: unknown field; known here: gateway, admin, logging, scaler, prometheus, pools, replay",
        ),
        ("maxInFlight: 3\n", "f.yaml:1: maxInFlight: unknown field here; it belongs to pools[]"),
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
        ("pools:\n  - nam: a\n", "f.yaml:2: pools[0].nam: unknown field; did you mean name?"),
        ("pools:\n  -\n", "f.yaml:2: pools[0]: empty; a mapping of fields must be given"),
    ] {
        assert_eq!(told(text), expected, "{text}");
    }
}

#[test]
fn wrong_fields_of_a_pool_are_told_with_the_fix() {
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
fn rules_within_a_pool_are_told_at_the_field_to_change() {
    for (fields, expected) in [
        (
            "models: [m]",
            "f.yaml:2: pools[0]: nothing serves it; give a target, which starts replicas, or \
             endpoints or discovery, which tell of running ones",
        ),
        (
            "endpoints: [https://h:1, h, 'h:1', 'http://H:1/']",
            "f.yaml:3: pools[0].endpoints[0]: `https://h:1`: only plain http is spoken here; write \
             HOST:PORT or http://HOST:PORT\n\
             f.yaml:3: pools[0].endpoints[1]: `h` has no port from 1 to 65535; write HOST:PORT or \
             http://HOST:PORT\n\
             f.yaml:3: pools[0].endpoints[3]: `http://H:1/` is given twice; remove one",
        ),
        (
            "endpoints: ['h:1']\nmodels: [m, '', m]",
            "f.yaml:4: pools[0].models[1]: a model's name must not be empty\n\
             f.yaml:4: pools[0].models[2]: `m` is given twice; remove one",
        ),
        (
            "endpoints: ['h:1']\nmaxInFlight: 0",
            "f.yaml:4: pools[0].maxInFlight: must be at least 1, or nothing is ever served",
        ),
        (
            "endpoints: ['h:1']\nhold: {timeout: 0s}\nupstream:\n  connectTimeout: 0\n  stallTimeout: 0\n  requestTimeout: 1h\n  maxTries: 0",
            "f.yaml:4: pools[0].hold.timeout: must be longer than 0s\n\
             f.yaml:6: pools[0].upstream.connectTimeout: must be longer than 0s\n\
             f.yaml:7: pools[0].upstream.stallTimeout: must be longer than 0s\n\
             f.yaml:9: pools[0].upstream.maxTries: must be at least 1: the first try counts",
        ),
        (
            "endpoints: ['h:1']\nscaling:\n  minReplicaCount: 3\n  maxReplicaCount: 2",
            "f.yaml:5: pools[0].scaling.minReplicaCount: 3 is more than maxReplicaCount (2); lower \
             it or raise maxReplicaCount",
        ),
        (
            // The one that is written is named, though the other has only its default.
            "endpoints: ['h:1']\nscaling:\n  minReplicaCount: 3",
            "f.yaml:5: pools[0].scaling.minReplicaCount: 3 is more than maxReplicaCount (1); lower \
             it or raise maxReplicaCount",
        ),
        (
            "endpoints: ['h:1']\nscaling:\n  maxReplicaCount: 0\n  targetConcurrency: 0\n  panicThreshold: 1\n  stableWindow: 5s\n  panicWindow: 10s",
            "f.yaml:5: pools[0].scaling.maxReplicaCount: must be at least 1, or nothing is ever \
             served\n\
             f.yaml:6: pools[0].scaling.targetConcurrency: must be at least 1; leave it out for \
             80 % of maxInFlight\n\
             f.yaml:7: pools[0].scaling.panicThreshold: 1 would be a panic without end; write a \
             number over 1, such as 2\n\
             f.yaml:9: pools[0].scaling.panicWindow: 10s is longer than stableWindow (5s); make it \
             the shorter one",
        ),
        (
            "endpoints: ['h:1']\nscaling: {stableWindow: 0, panicWindow: 0}",
            "f.yaml:4: pools[0].scaling.stableWindow: must be longer than 0s\n\
             f.yaml:4: pools[0].scaling.panicWindow: must be longer than 0s",
        ),
    ] {
        assert_eq!(of_pool(fields), expected, "{fields}");
    }
    let told = told("pools: [{name: 'a/b', endpoints: ['h:1']}]\n");
    assert!(told.starts_with("f.yaml:1: pools[0].name: `a/b` is not a pool's name: "), "{told}");
}

#[test]
fn rules_of_processes_are_told_at_the_field_to_change() {
    for (fields, scaling, expected) in [
        (
            "command: []",
            "",
            "f.yaml:5: pools[0].target.processes.command: empty; give the program and its \
             arguments, with {port} among them",
        ),
        (
            "command: [vllm, serve, m]",
            "",
            "f.yaml:5: pools[0].target.processes.command: does not contain {port}: the replica must \
             serve where the gateway looks for it; add for example --port, \"{port}\"",
        ),
        ("command: [serve.sh]\nenv: {PORT: '{port}'}", "", "is valid"),
        (
            "env: {A=B: c}",
            "",
            "f.yaml:5: pools[0].target.processes.env.A=B: is not the name of an environment variable",
        ),
        (
            "ports: 200-100",
            "",
            "f.yaml:5: pools[0].target.processes.ports: the range runs backwards; write 100-200",
        ),
        (
            "ports: 0-9",
            "",
            "f.yaml:5: pools[0].target.processes.ports: port 0 can't be leased; begin at 1024 or \
             above",
        ),
        (
            "ports: 18100-18101",
            "scaling: {maxReplicaCount: 3}",
            "f.yaml:5: pools[0].target.processes.ports: 2 ports for up to 3 replicas \
             (maxReplicaCount); widen the range",
        ),
        (
            "ports: 8000-9999",
            "",
            "f.yaml:5: pools[0].target.processes.ports: contains 8080, the port of gateway.listen\n\
             f.yaml:5: pools[0].target.processes.ports: contains 9900, the port of admin.listen",
        ),
        (
            "command: ['{port}', '{gpu}']",
            "",
            "f.yaml:4: pools[0].target.processes.gpus: none, and {gpu} is used; name as many as \
             maxReplicaCount, as in [0, 1]",
        ),
        (
            "gpus: [0, 0, '']",
            "",
            "f.yaml:5: pools[0].target.processes.gpus[1]: GPU 0 is given twice; each is leased to \
             one replica\n\
             f.yaml:5: pools[0].target.processes.gpus[2]: a GPU's name must not be empty",
        ),
        (
            "gpus: [0, 1]",
            "scaling: {maxReplicaCount: 3}",
            "f.yaml:5: pools[0].target.processes.gpus: 2 for up to 3 replicas (maxReplicaCount); \
             name more, or lower maxReplicaCount",
        ),
        (
            "startTimeout: 0",
            "",
            "f.yaml:5: pools[0].target.processes.startTimeout: must be longer than 0s",
        ),
        (
            "stopTimeout: 0",
            "hold: {maxRequests: 0}",
            "f.yaml:7: pools[0].hold.maxRequests: 0 holds nothing, and a pool at zero replicas is \
             woken by held requests; raise it, or set scaling.minReplicaCount to 1 or more",
        ),
    ] {
        let told = of_processes(fields, scaling);
        if expected == "is valid" {
            assert!(told.starts_with(expected), "{told}");
        } else {
            assert_eq!(told, expected, "{fields}");
        }
    }
}

#[test]
fn rules_between_parts_are_told_at_the_later_one() {
    for (text, expected) in [
        (
            "gateway: {listen: '127.0.0.1:9900'}\n",
            "f.yaml:1: admin.listen: port 9900 is the one of gateway.listen (127.0.0.1:9900); give \
             each its own",
        ),
        (
            "gateway: {listen: '0.0.0.0:80'}\nadmin:\n  listen: 127.0.0.1:80\n",
            "f.yaml:3: admin.listen: port 80 is the one of gateway.listen (0.0.0.0:80); give each \
             its own",
        ),
        (
            "admin:\n  listen: 0.0.0.0:9900\n",
            "f.yaml:2: admin.listen: 0.0.0.0:9900 can be reached from outside, and no tokenFile is \
             given; give one, or listen on 127.0.0.1:9900",
        ),
        (
            "gateway:\n  threads: 0\n  limits:\n    bodySize: 0\n    headerSize: 512\n    bodyTimeout: 0\n",
            "f.yaml:2: gateway.threads: 0 threads serve nobody; leave it out for one per core\n\
             f.yaml:4: gateway.limits.bodySize: 0 refuses every request; write for example 32Mi\n\
             f.yaml:5: gateway.limits.headerSize: `512` is less than the head of a plain request; \
             write 1Ki or more\n\
             f.yaml:6: gateway.limits.bodyTimeout: must be longer than 0s",
        ),
        (
            "gateway:\n  limits:\n    bodiesSize: 16Mi\n",
            "f.yaml:3: gateway.limits.bodiesSize: 16Mi is less than one body may have (bodySize is \
             32Mi); write more",
        ),
        (
            "gateway:\n  limits:\n    idleTimeout: 0\n    connections: 0\n    headerCount: 4\n",
            "f.yaml:3: gateway.limits.idleTimeout: must be longer than 0s\n\
             f.yaml:4: gateway.limits.connections: 0 lets nobody in; write 1 or more\n\
             f.yaml:5: gateway.limits.headerCount: 4 is less than a browser or SDK sends; write 16 \
             or more",
        ),
        (
            "gateway:\n  paths:\n    - /v1/chat/completion\n    - /ping\n    - /ping\n",
            "f.yaml:3: gateway.paths[0]: `/v1/chat/completion` is no path that the gateway can \
             serve; did you mean /v1/chat/completions?\n\
             f.yaml:5: gateway.paths[2]: `/ping` is listed twice",
        ),
        (
            "gateway:\n  paths: []\n  tls: {certFile: '', keyFile: b}\n",
            "f.yaml:2: gateway.paths: no path is exposed, so nobody is served; leave it out for \
             all\n\
             f.yaml:3: gateway.tls.certFile: is empty; give the path of a PEM file",
        ),
        (
            "gateway:\n  cors:\n    credentials: true\n    origins:\n      - '*'\n      - chat.example.com\n    methods: ['GET, POST']\n",
            "f.yaml:5: gateway.cors.origins[0]: `*` does not go with credentials: browsers refuse \
             it; list the origins\n\
             f.yaml:6: gateway.cors.origins[1]: `chat.example.com` is no origin; write https://HOST \
             or https://HOST:PORT\n\
             f.yaml:7: gateway.cors.methods[0]: `GET, POST` is not a word as HTTP knows it",
        ),
        (
            "gateway:\n  scaler: scaler\nscaler:\n  gateways: ['a:1', 'a:x']\n",
            "f.yaml:2: gateway.scaler: `scaler` has no port from 1 to 65535; write HOST:PORT or \
             http://HOST:PORT\n\
             f.yaml:4: scaler.gateways[1]: `a:x` has no port from 1 to 65535; write HOST:PORT or \
             http://HOST:PORT",
        ),
    ] {
        // The pool comes last, so that the lines are those of the case.
        assert_eq!(told(&format!("{text}{POOL}")), expected, "{text}");
    }
    let pools = "\
pools:
  - name: a
    models: [m]
    endpoints: ['h:1']
  - name: a
    models: [n, m]
    endpoints: ['h:2']
  - name: b
    endpoints: ['h:3']
  - name: c
    endpoints: ['h:4']
";
    assert_eq!(
        told(pools),
        "f.yaml:5: pools[1].name: `a` is the name of pools[0] already\n\
         f.yaml:6: pools[1].models[1]: `m` is served by pools[0] already; a model leads to one pool, unless \
         gateway.routes splits it\n\
         f.yaml:10: pools[3].models: pools[2] takes any model already; list the models of one of \
         the two"
    );
}

#[test]
fn pools_that_share_a_range_of_ports_need_one_for_each_replica_of_all() {
    let pool = |name: &str, ports: &str| {
        format!(
            "  - name: {name}\n    models: [{name}]\n    target: {{processes: {{command: \
             ['{{port}}'], ports: {ports}}}}}\n    scaling: {{maxReplicaCount: 2}}\n"
        )
    };
    let shared = format!("pools:\n{}{}", pool("a", "7000-7002"), pool("b", "7000-7002"));
    assert_eq!(
        told(&shared),
        "f.yaml:8: pools[1].target.processes.ports: 3 ports for up to 4 replicas of this pool and \
         those before it; widen the range, or give each pool its own"
    );
    let apart = format!("pools:\n{}{}", pool("a", "7000-7001"), pool("b", "7002-7003"));
    assert!(told(&apart).starts_with("is valid"), "{}", told(&apart));
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
         f.yaml:7: pools[0].hold.maxBytes: 1Mi is less than one body may have \
         (gateway.limits.bodySize is 32Mi): such a request is never held\n\
         f.yaml:8: pools[0].scaling: has no effect: the pool has no target to scale\n\
         f.yaml:9: pools[0].scaling.targetConcurrency: 200 is more than a replica takes \
         (maxInFlight is 128): requests are held before the pool grows\n\
         f.yaml:12: pools[1].endpoints[0]: `http://h:1` is an endpoint of pools[0] too: each pool \
         fills it as if it were alone there"
    );
    let fields = |problems: &forebay_config::Problems| -> Vec<String> {
        let mut fields: Vec<_> = problems.iter().map(|problem| problem.field.clone()).collect();
        fields.sort();
        fields
    };
    assert_eq!(fields(&config.warnings()), fields(&warnings));
}

#[test]
fn problems_of_types_are_all_told_at_once_and_cause_no_others() {
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
    let told = load("/nowhere/forebay.yaml").unwrap_err().to_string();
    assert!(told.starts_with("/nowhere/forebay.yaml: cannot be read: "), "{told}");
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
    fn a_line_taken_out_of_or_put_twice_into_an_example_is_valid_or_told_with_a_line(
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

#[test]
fn what_is_wrong_with_keys_and_tenants_is_told() {
    let keys = "keys: {file: k}";
    for (gateway, expected) in [
        (
            "{tenants: [{name: a}]}",
            "f.yaml:1: gateway.tenants: nobody can be one of them without keys; give gateway.keys.file",
        ),
        ("{tenants: [{name: anonymous, maxConcurrent: 1}]}", ""),
        (
            "{keys: {file: k}}",
            "f.yaml:1: gateway.keys: no key can be right: gateway.tenants names nobody to give one to",
        ),
        ("{keys: {}}", "f.yaml:1: gateway.keys.file: missing; it must be given"),
        (
            &format!("{{{keys}, tenants: [{{name: a}}, {{name: a}}]}}"),
            "f.yaml:1: gateway.tenants[1].name: `a` is the name of gateway.tenants[0] already",
        ),
        (
            &format!("{{{keys}, tenants: [{{name: a b}}]}}"),
            "f.yaml:1: gateway.tenants[0].name: `a b` is not a tenant's name: up to 63 letters, \
             digits, `-`, `_` and `.`, beginning with a letter or digit",
        ),
        (
            &format!("{{{keys}, tenants: [{{name: a, requestsPerMinute: 0}}]}}"),
            "f.yaml:1: gateway.tenants[0].requestsPerMinute: 0 admits nothing; leave it out for no limit",
        ),
        (
            &format!("{{{keys}, tenants: [{{name: a, models: ['']}}]}}"),
            "f.yaml:1: gateway.tenants[0].models[0]: a model's name must not be empty; write * for all",
        ),
        (
            &format!("{{{keys}, tenants: [{{name: a, priorityClass: urgent}}]}}"),
            "f.yaml:1: gateway.tenants[0].priorityClass: `urgent` is not known; give one of: \
             high, normal, low",
        ),
    ] {
        let told = told(&format!("gateway: {gateway}\n{POOL}"));
        match expected {
            "" => assert!(told.starts_with("is valid"), "{gateway}: {told}"),
            _ => assert_eq!(told, expected, "{gateway}"),
        }
    }
}

#[test]
fn what_is_wrong_with_aliases_routes_and_fallbacks_is_told() {
    let pools = |a: &str, b: &str| {
        format!(
            "pools:\n  - {{name: a, endpoints: ['h:1'], models: [m], {a}}}\n  - {{name: b, endpoints: \
             ['h:2'], models: [n], {b}}}\n"
        )
    };
    let route = |route: &str, a: &str| format!("gateway: {{routes: [{route}]}}\n{}", pools(a, ""));
    for (text, expected) in [
        (
            pools("aliases: {gpt: x}", ""),
            "f.yaml:2: pools[0].aliases.gpt: `x` is none of the pool's models or adapters; add it",
        ),
        (
            pools("aliases: {n: m}", ""),
            "f.yaml:3: pools[1].models[0]: `n` is served by pools[0] already; a model leads to one \
             pool, unless gateway.routes splits it",
        ),
        (
            pools("adapters: [m]", ""),
            "f.yaml:2: pools[0].adapters[0]: `m` is given twice; remove one",
        ),
        (
            pools("fallback: {pool: a}", ""),
            "f.yaml:2: pools[0].fallback.pool: is this pool itself; name another",
        ),
        (
            pools("fallback: {pool: c}", ""),
            "f.yaml:2: pools[0].fallback.pool: no pool is named `c`; there are: a, b",
        ),
        (
            pools("fallback: {pool: b, model: x}", ""),
            "f.yaml:2: pools[0].fallback.model: `x` is none of the models of pool `b`",
        ),
        (pools("fallback: {pool: b, after: 5s}", "fallback: {pool: a}"), ""),
        (
            route("{model: x, pools: []}", ""),
            "f.yaml:1: gateway.routes[0].pools: empty; name the pools that share the model",
        ),
        (
            route("{model: x, pools: [{pool: a, weight: 0}]}", ""),
            "f.yaml:1: gateway.routes[0].pools: all weights are 0: no pool would serve the model",
        ),
        (
            route("{model: x, pools: [{pool: a}, {pool: a}]}", ""),
            "f.yaml:1: gateway.routes[0].pools[1].pool: `a` is given twice; add up its weights",
        ),
        (
            route("{model: x, pools: [{pool: a}]}, {model: x, pools: [{pool: b}]}", ""),
            "f.yaml:1: gateway.routes[1].model: `x` is split by gateway.routes[0] already",
        ),
        (route("{model: n, pools: [{pool: a}, {pool: b}]}", "adapters: [n]"), ""),
    ] {
        let told = told(&text);
        match expected {
            "" => assert!(told.starts_with("is valid"), "{text}: {told}"),
            _ => assert_eq!(told, expected, "{text}"),
        }
    }
}

#[test]
fn what_is_found_in_kubernetes_is_checked_with_the_fix() {
    for (fields, expected) in [
        (
            "discovery: {pods: {port: 8000}}",
            "f.yaml:3: pools[0].discovery.pods: which pods? Give a selector, such as app=vllm, or a service",
        ),
        (
            "discovery: {pods: {selector: a=b, service: c, port: 8000}}",
            "f.yaml:3: pools[0].discovery.pods.service: a selector is given too; remove one of the two",
        ),
        ("discovery: {pods: {selector: a=b}}", "f.yaml:3: pools[0].discovery.pods.port: missing"),
        (
            "discovery: {dns: {host: 'a:8000', port: 8000}}",
            "f.yaml:3: pools[0].discovery.dns.host: `a:8000` is no name; write vllm.models.svc, without a port",
        ),
        (
            "discovery: {endpointSlices: {service: A_b}}",
            "f.yaml:3: pools[0].discovery.endpointSlices.service: `A_b` is no name in Kubernetes: lower case letters, digits, - and .",
        ),
        (
            "target: {kubernetes: {name: a, apiVersion: apps/v1/x}}",
            "f.yaml:3: pools[0].target.kubernetes.apiVersion: `apps/v1/x` is no GROUP/VERSION; write for example apps/v1",
        ),
        (
            "target: {processes: {command: ['{port}']}}\ndiscovery: {dns: {host: a, port: 1}}",
            "f.yaml:4: pools[0].discovery: the target starts processes, whose addresses the scaler tells; remove one of the two",
        ),
    ] {
        let told = of_pool(fields);
        assert!(told.contains(expected), "{fields}:\n{told}\nwanted:\n{expected}");
    }
}

#[test]
fn a_keda_target_names_a_scaled_object_of_its_own() {
    let pool = |name: &str, object: &str| {
        format!(
            "- name: {name}\n  models: [{name}]\n  endpoints: ['{name}:1']\n  target:\n    keda: {{scaledObject: {object}}}\n"
        )
    };
    for (case, text, want) in [
        ("no name", pool("a", "\"\""), "scaledObject: `` is no name in Kubernetes"),
        ("upper case", pool("a", "Llama"), "scaledObject: `Llama` is no name"),
        ("twice", pool("a", "x") + &pool("b", "x"), "`x` is the ScaledObject of pools[0] already"),
        (
            "nothing to find its pods by",
            pool("a", "x").replace("  endpoints: ['a:1']\n", ""),
            "pools[0].discovery: KEDA starts replicas and tells nobody where",
        ),
        (
            "a port of another",
            pool("a", "x") + "scaler:\n  keda: {listen: \"0.0.0.0:8080\"}\n",
            "port 8080 is the one of gateway.listen",
        ),
    ] {
        let problems = forebay_config::parse(&format!("pools:\n{text}"), "test").expect_err(case);
        assert!(problems.to_string().contains(want), "{case}: {problems}");
    }
}
