//! Problems of fields that are right on their own and not together: each at the field to change, with
//! the remedy.

mod support;

use support::{POOL, of_pool, of_processes, report};

#[test]
fn faults_within_a_pool_are_reported_at_the_field_to_change() {
    for (fields, expected) in [
        (
            "models: [m]",
            "f.yaml:2: pools[0]: nothing serves it; give a target, which starts replicas, or \
             endpoints or discovery, which name running ones",
        ),
        (
            "endpoints: [https://h:1, h, 'h:1', 'http://H:1/']",
            "f.yaml:3: pools[0].endpoints[0]: `https://h:1`: only plain http is supported; write \
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
             f.yaml:7: pools[0].scaling.panicThreshold: 1 would begin a panic at any load; write a number over 1, such as 2\n\
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
    let report = report("pools: [{name: 'a/b', endpoints: ['h:1']}]\n");
    assert!(
        report.starts_with("f.yaml:1: pools[0].name: `a/b` is not a pool's name: "),
        "{report}"
    );
}

#[test]
fn faults_of_processes_are_reported_at_the_field_to_change() {
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
            "f.yaml:5: pools[0].target.processes.command: does not contain {port}, the port that the replica must serve on; add for example --port, \"{port}\"",
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
            "f.yaml:4: pools[0].target.processes.gpus: empty, and {gpu} is used; name as many as maxReplicaCount, as in [0, 1]",
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
        let report = of_processes(fields, scaling);
        if expected == "is valid" {
            assert!(report.starts_with(expected), "{report}");
        } else {
            assert_eq!(report, expected, "{fields}");
        }
    }
}

#[test]
fn faults_between_parts_are_reported_at_the_later_one() {
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
            "f.yaml:2: gateway.threads: 0 threads serve no request; leave it out for one per core\n\
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
             f.yaml:4: gateway.limits.connections: 0 refuses every connection; write 1 or more\n\
             f.yaml:5: gateway.limits.headerCount: 4 is less than a browser or SDK sends; write 16 \
             or more",
        ),
        (
            "gateway:\n  paths:\n    - /v1/chat/completion\n    - /ping\n    - /ping\n",
            "f.yaml:3: gateway.paths[0]: `/v1/chat/completion` is not a path that the gateway can serve; did you mean /v1/chat/completions?\n\
             f.yaml:5: gateway.paths[2]: `/ping` is listed twice",
        ),
        (
            "gateway:\n  paths: []\n  tls: {certFile: '', keyFile: b}\n",
            "f.yaml:2: gateway.paths: no path is exposed, so every request would be refused; leave it out for all\n\
             f.yaml:3: gateway.tls.certFile: is empty; give the path of a PEM file",
        ),
        (
            "gateway:\n  cors:\n    credentials: true\n    origins:\n      - '*'\n      - chat.example.com\n    methods: ['GET, POST']\n",
            "f.yaml:5: gateway.cors.origins[0]: `*` does not go with credentials: browsers refuse \
             it; list the origins\n\
             f.yaml:6: gateway.cors.origins[1]: `chat.example.com` is not an origin; write https://HOST \
             or https://HOST:PORT\n\
             f.yaml:7: gateway.cors.methods[0]: `GET, POST` is not a token: HTTP allows letters, digits and some signs here",
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
        assert_eq!(report(&format!("{text}{POOL}")), expected, "{text}");
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
        report(pools),
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
        report(&shared),
        "f.yaml:8: pools[1].target.processes.ports: 3 ports for up to 4 replicas of this pool and \
         those before it; widen the range, or give each pool its own"
    );
    let apart = format!("pools:\n{}{}", pool("a", "7000-7001"), pool("b", "7002-7003"));
    assert!(report(&apart).starts_with("is valid"), "{}", report(&apart));
}

#[test]
fn faults_of_keys_and_tenants_are_reported() {
    let keys = "keys: {file: k}";
    for (gateway, expected) in [
        (
            "{tenants: [{name: a}]}",
            "f.yaml:1: gateway.tenants: without gateway.keys no request belongs to them; give gateway.keys.file",
        ),
        ("{tenants: [{name: anonymous, maxConcurrent: 1}]}", ""),
        (
            "{keys: {file: k}}",
            "f.yaml:1: gateway.keys: no key can be valid: gateway.tenants lists no tenant that has keys",
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
        let report = report(&format!("gateway: {gateway}\n{POOL}"));
        match expected {
            "" => assert!(report.starts_with("is valid"), "{gateway}: {report}"),
            _ => assert_eq!(report, expected, "{gateway}"),
        }
    }
}

#[test]
fn faults_of_aliases_routes_and_fallbacks_are_reported() {
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
            "f.yaml:2: pools[0].aliases.gpt: `x` is not one of the pool's models or adapters; add it",
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
            "f.yaml:2: pools[0].fallback.model: `x` is not one of the models of pool `b`",
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
        let report = report(&text);
        match expected {
            "" => assert!(report.starts_with("is valid"), "{text}: {report}"),
            _ => assert_eq!(report, expected, "{text}"),
        }
    }
}

#[test]
fn what_is_found_in_kubernetes_is_checked_with_the_fix() {
    for (fields, expected) in [
        (
            "discovery: {pods: {port: 8000}}",
            "f.yaml:3: pools[0].discovery.pods: no pods are selected; give a selector, such as app=vllm, or a service",
        ),
        (
            "discovery: {pods: {selector: a=b, service: c, port: 8000}}",
            "f.yaml:3: pools[0].discovery.pods.service: a selector is given too; remove one of the two",
        ),
        ("discovery: {pods: {selector: a=b}}", "f.yaml:3: pools[0].discovery.pods.port: missing"),
        (
            "discovery: {dns: {host: 'a:8000', port: 8000}}",
            "f.yaml:3: pools[0].discovery.dns.host: `a:8000` is not a host name; write vllm.models.svc, without a port",
        ),
        (
            "discovery: {endpointSlices: {service: A_b}}",
            "f.yaml:3: pools[0].discovery.endpointSlices.service: `A_b` is not a name in Kubernetes: lower case letters, digits, - and .",
        ),
        (
            "target: {kubernetes: {name: a, apiVersion: apps/v1/x}}",
            "f.yaml:3: pools[0].target.kubernetes.apiVersion: `apps/v1/x` is not GROUP/VERSION; write for example apps/v1",
        ),
        (
            "target: {processes: {command: ['{port}']}}\ndiscovery: {dns: {host: a, port: 1}}",
            "f.yaml:4: pools[0].discovery: the target starts processes, whose addresses the scaler reports; remove one of the two",
        ),
    ] {
        let report = of_pool(fields);
        assert!(report.contains(expected), "{fields}:\n{report}\nwanted:\n{expected}");
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
        ("no name", pool("a", "\"\""), "scaledObject: `` is not a name in Kubernetes"),
        ("upper case", pool("a", "Llama"), "scaledObject: `Llama` is not a name"),
        ("twice", pool("a", "x") + &pool("b", "x"), "`x` is the ScaledObject of pools[0] already"),
        (
            "nothing to find its pods by",
            pool("a", "x").replace("  endpoints: ['a:1']\n", ""),
            "pools[0].discovery: KEDA starts replicas and does not report their addresses",
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

#[test]
fn no_leader_is_elected_over_processes_of_one_machine() {
    let pools = "pools:\n  - name: a\n    target:\n      ";
    let with =
        |target: &str| report(&format!("scaler: {{leaderElection: {{}}}}\n{pools}{target}\n"));
    assert_eq!(
        with("processes: {command: ['{port}']}"),
        "f.yaml:5: pools[0].target.processes: another scaler could not take over replicas on this machine; leave out scaler.leaderElection, or scale them by kubernetes or keda"
    );
    let report = with("kubernetes: {name: a}");
    assert!(report.starts_with("is valid"), "{report}");
}

#[test]
fn faults_of_the_export_are_reported_at_the_field_to_change() {
    for (fields, expected) in [
        (
            "endpoint: 'otel:4317'",
            "f.yaml:2: openTelemetry.endpoint: `otel:4317` has no http:// or https:// at its \
             beginning; write for example http://otel-collector:4317",
        ),
        (
            "endpoint: 'http://me:secret@otel:4317'",
            "f.yaml:2: openTelemetry.endpoint: `http://***@otel:4317` holds a name or password; give \
             them in files",
        ),
        (
            "timeout: 0s\n  serviceName: ''\n  metrics: {interval: 0s}",
            "f.yaml:2: openTelemetry.timeout: must be longer than 0s\n\
             f.yaml:3: openTelemetry.serviceName: is empty; leave it out for the default\n\
             f.yaml:4: openTelemetry.metrics.interval: must be longer than 0s",
        ),
        (
            "resourceAttributes: {service.name: a, service.instance.id: b}",
            "f.yaml:2: openTelemetry.resourceAttributes.service.name: give it as serviceName\n\
             f.yaml:2: openTelemetry.resourceAttributes.service.instance.id: each process makes its \
             own",
        ),
        (
            "traces: {sampleRatio: 5}",
            "f.yaml:2: openTelemetry.traces.sampleRatio: 5 is not between 0 and 1, such as 0.1 for \
             a tenth",
        ),
    ] {
        let text = format!("openTelemetry:\n  {fields}\n{POOL}");
        assert_eq!(report(&text), expected, "{fields}");
    }
}
