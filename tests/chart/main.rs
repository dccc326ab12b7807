//! The objects that the Helm chart renders. `tests/cluster/build helm kubeconform` makes the programs that this
//! needs. Without them everything is skipped, with a note; with `FOREBAY_REQUIRE_CLUSTER=1` that is a
//! failure.

#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, reason = "a test's own")]

#[path = "../cluster/binaries.rs"]
mod binaries;
mod cases;
mod conform;
mod helm;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::cases::Case;
use crate::helm::Helm;

/// The examples of values, and the pools of the configuration's examples.
const EXAMPLES: [&str; 2] = ["deploy/examples", "config/examples"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The paths of all values of the chart, as its schema has them.
fn all_values() -> BTreeSet<String> {
    fn walk(node: &Value, path: &str, found: &mut BTreeSet<String>) {
        let Some(fields) = node["properties"].as_object().filter(|_| path != "config") else {
            found.insert(path.to_owned());
            return;
        };
        for (name, field) in fields {
            let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            walk(field, &path, found);
        }
    }
    let text = fs::read_to_string(root().join("deploy/chart/forebay/values.schema.json")).unwrap();
    let mut found = BTreeSet::new();
    walk(&serde_json::from_str(&text).unwrap(), "", &mut found);
    // For charts that contain this one.
    for outside in ["global", "enabled"] {
        assert!(found.remove(outside), "{outside}");
    }
    found
}

#[test]
fn every_value_has_the_effect_that_its_case_shows() {
    let Some(helm) = Helm::find() else { return };
    for case in Case::all() {
        let rendered =
            helm.render(&case.values).unwrap_or_else(|error| panic!("{}: {error}", case.name));
        case.check(&rendered);
    }
}

#[test]
fn every_value_changes_something() {
    let Some(helm) = Helm::find() else { return };
    let all = all_values();
    let mut effective = BTreeSet::new();
    for case in Case::all() {
        let with = helm.render(&case.values).expect("rendered in another test");
        for path in
            all.iter().filter(|path| !effective.contains(*path)).cloned().collect::<Vec<_>>()
        {
            let Some(values) = case.without(&path) else { continue };
            // A value that others need changes something, too.
            if helm.render(&values).map_or(true, |without| without.text != with.text) {
                effective.insert(path);
            }
        }
    }
    let idle: Vec<_> = all.difference(&effective).collect();
    assert!(idle.is_empty(), "no case shows an effect of {idle:?}");
}

#[test]
fn mistakes_are_refused_with_the_name_of_the_key() {
    let Some(helm) = Helm::find() else { return };
    let pool = |more: Value| {
        let mut pool = json!({"name": "a", "endpoints": ["a:8000"]});
        pool.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"pools": [pool]})
    };
    for (values, named) in [
        (
            json!({"gateway": {"replcas": 3}}),
            "at '/gateway': additional properties 'replcas' not allowed",
        ),
        (json!({"replicas": "abc"}), "additional properties 'replicas' not allowed"),
        (
            json!({"gateway": {"replicas": "abc"}}),
            "at '/gateway/replicas': got string, want integer",
        ),
        (json!({"pools": null}), "missing property 'pools'"),
        (json!({"pools": []}), "at '/pools'"),
        (json!({"gateway": null}), "missing property 'gateway'"),
        (json!({"scaler": {"replicas": null}}), "at '/scaler': missing property 'replicas'"),
        (json!({"image": {"digest": "latest"}}), "at '/image/digest'"),
        (json!({"image": {"tag": 1.2}}), "at '/image/tag': got number, want string"),
        (json!({"priorityClassName": "high"}), "additional properties 'priorityClassName'"),
        (json!({"gateway": {"service": {"type": "Loadbalancer"}}}), "at '/gateway/service/type'"),
        (json!({"gateway": {"hosts": "chat.example.com"}}), "at '/gateway/hosts'"),
        (json!({"gateway": {"shutdownTimeout": "soon"}}), "at '/gateway/shutdownTimeout'"),
        (json!({"gateway": {"shutdownTimeout": ""}}), "at '/gateway/shutdownTimeout'"),
        (json!({"gateway": {"tls": {"minVersion": "1.0"}}}), "at '/gateway/tls/minVersion'"),
        (
            json!({"config": {"gateway": {"lisen": "a"}}}),
            "additional properties 'lisen' not allowed",
        ),
        (json!({"config": {"pools": []}}), "config.pools: move them to the value `pools`"),
        (
            json!({"config": {"scaler": {"leaderElection": {"lease": "a"}}}}),
            "config.scaler.leaderElection: leave it out",
        ),
        (pool(json!({"maxInflight": 3})), "at '/pools/0': additional properties 'maxInflight'"),
        (
            pool(json!({"scaling": {"cooldownPeriod": "5mm"}})),
            "at '/pools/0/scaling/cooldownPeriod'",
        ),
        (
            json!({"gateway": {"serviceAccount": {"create": false}}}),
            "gateway.serviceAccount.name: give the name of your ServiceAccount",
        ),
        (
            json!({"gateway": {"shutdownTimeout": "5m30s"}}),
            "gateway.terminationGracePeriodSeconds: it must be at least 10 s more than shutdownTimeout, 5m30s",
        ),
        (json!({"httpRoute": {"enabled": true}}), "httpRoute.parentRefs: name the Gateway"),
        (
            json!({"gateway": {"autoscaling": {"kind": "hpa", "minReplicas": 11}}}),
            "gateway.autoscaling.minReplicas: it is above maxReplicas",
        ),
        (
            json!({"gateway": {"autoscaling": {"kind": "hpa", "targetCPUUtilization": 0}}}),
            "gateway.autoscaling.metrics: give at least one",
        ),
        (
            json!({"gateway": {"autoscaling": {"kind": "keda", "targetCPUUtilization": 0}}}),
            "gateway.autoscaling.triggers: give at least one",
        ),
    ] {
        let error = helm.render(&values).expect_err("it must be refused");
        assert!(error.contains(named), "{values}: `{named}` is not in {error}");
    }
}

#[test]
fn an_older_kubernetes_is_refused() {
    let Some(helm) = Helm::find() else { return };
    let error = helm.run(&["template", "x", Helm::chart(), "--kube-version", "1.29"]).unwrap_err();
    assert!(error.contains("chart requires kubeVersion: >=1.30.0-0"), "{error}");
}

#[test]
fn the_chart_and_its_examples_have_no_findings() {
    let Some(helm) = Helm::find() else { return };
    helm.run(&["lint", "--strict", Helm::chart()]).unwrap();
    let mut count = 0;
    for entry in fs::read_dir(root().join(EXAMPLES[0])).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.starts_with("values-") {
            continue;
        }
        helm.run(&["lint", "--strict", Helm::chart(), "-f", &path.display().to_string()]).unwrap();
        let values = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        helm.render(&values).unwrap_or_else(|error| panic!("{name}: {error}")).check_config();
        count += 1;
    }
    assert!(count > 1, "only {count} examples");
}

/// Everything that the program accepts, the chart accepts.
#[test]
fn the_chart_takes_the_pools_of_every_example_of_the_configuration() {
    let Some(helm) = Helm::find() else { return };
    let mut count = 0;
    for entry in fs::read_dir(root().join(EXAMPLES[1])).unwrap() {
        let path = entry.unwrap().path();
        let config: Value = serde_saphyr::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut values = json!({"pools": config["pools"], "config": {}});
        for section in ["gateway", "prometheus", "logging"] {
            values["config"][section] = config[section].clone();
        }
        let rendered = helm.render(&values);
        rendered.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        count += 1;
    }
    assert!(count > 3, "only {count} examples");
}

/// As Argo CD does it, which sees each difference as a change.
#[test]
fn a_chart_with_a_token_renders_the_same_twice() {
    let Some(helm) = Helm::find() else { return };
    for values in
        [json!({"adminToken": {"secret": "own"}}), json!({"adminToken": {"value": "own"}})]
    {
        let text = helm.render(&values).unwrap().text;
        assert_eq!(text, helm.render(&values).unwrap().text);
    }
}

/// Keys without values, as remain when everything under them is commented out.
#[test]
fn empty_sections_of_the_configuration_mean_nothing() {
    let Some(helm) = Helm::find() else { return };
    let rendered = helm.render(&json!({"config": {"gateway": null, "scaler": null}})).unwrap();
    rendered.check_config();
    assert_eq!(rendered.text, helm.render(&json!({})).unwrap().text);
}

#[test]
fn every_duration_that_fits_the_grace_period_is_taken() {
    let Some(helm) = Helm::find() else { return };
    for (timeout, seconds) in [
        (json!("250ms"), 0),
        (json!("1m30s"), 90),
        (json!("1h 30m"), 5400),
        (json!("1d1s500ms"), 86401),
        (json!("300"), 300),
        (json!(300), 300),
    ] {
        let with = |grace: u32| {
            let pods = json!({"shutdownTimeout": timeout, "terminationGracePeriodSeconds": grace});
            helm.render(&json!({"gateway": pods}))
        };
        assert!(with(seconds + 10).is_ok(), "{timeout}");
        assert!(with(seconds + 9).is_err(), "{timeout}");
    }
}

/// A chart that contains this one as a dependency, by a condition.
#[test]
fn another_chart_may_contain_it() {
    let Some(helm) = Helm::find() else { return };
    let outer = helm.folder("outer");
    let chart = "apiVersion: v2\nname: outer\nversion: 1.0.0\ndependencies:\n  \
                 - {name: forebay, version: 0.x.x, condition: forebay.enabled}\n";
    fs::create_dir_all(outer.join("charts")).unwrap();
    fs::write(outer.join("Chart.yaml"), chart).unwrap();
    std::os::unix::fs::symlink(Helm::chart(), outer.join("charts/forebay")).unwrap();
    let outer = outer.display().to_string();
    let set = |setting: &str| {
        let template = ["template", "x", &outer, "--kube-version", "1.33", "--set"];
        helm.run(&[&template[..], &[setting]].concat())
    };
    assert!(set("forebay.enabled=true,global.team=ml").unwrap().contains("kind: Deployment"));
    assert!(!set("forebay.enabled=false").unwrap().contains("kind: Deployment"));
    let error = set("forebay.gateway.replcas=3").unwrap_err();
    assert!(error.contains("'replcas' not allowed"), "{error}");
}

/// Whether pods are replaced when these values change, by part.
#[test]
fn only_what_is_read_at_the_start_replaces_pods() {
    let Some(helm) = Helm::find() else { return };
    let pods = |values: &Value| {
        let rendered = helm.render(values).unwrap();
        ["gateway", "scaler"].map(|part| {
            rendered.objects[&format!("Deployment/forebay-{part}")]["spec"]["template"].clone()
        })
    };
    let before = pods(&json!({}));
    let own =
        json!([{"name": "a", "endpoints": ["a:8000"]}, {"name": "b", "endpoints": ["b:8000"]}]);
    for (values, gateway, scaler) in [
        (json!({"pools": own}), false, false),
        (
            json!({"gateway": {"hosts": ["chat.example.com"], "shutdownTimeout": "1m"}}),
            false,
            false,
        ),
        (json!({"config": {"gateway": {"limits": {"bodySize": "1Mi"}}}}), false, false),
        (json!({"config": {"gateway": {"limits": {"writeTimeout": "1m"}}}}), true, false),
        (json!({"config": {"gateway": {"threads": 2}}}), true, false),
        (json!({"config": {"scaler": {"staleAfter": "20s"}}}), false, false),
        (json!({"config": {"scaler": {"stateDir": "/state"}}}), false, true),
        (json!({"config": {"logging": {"access": false}}}), true, true),
        (json!({"config": {"admin": {"listen": "0.0.0.0:9901"}}}), true, true),
        (json!({"adminToken": {"value": "other"}}), true, true),
    ] {
        let after = pods(&values);
        let changed = [before[0] != after[0], before[1] != after[1]];
        assert_eq!(changed, [gateway, scaler], "{values}: gateway and scaler");
    }
}

#[test]
fn every_object_is_valid_in_every_supported_version() {
    let Some(helm) = Helm::find() else { return };
    let Some(kubeconform) = conform::Kubeconform::find() else { return };
    let folder = helm.folder("conform");
    let mut files = Vec::new();
    for (number, case) in Case::all().iter().enumerate() {
        let file = folder.join(format!("{number}.yaml"));
        fs::write(&file, helm.render(&case.values).unwrap().text).unwrap();
        files.push(file);
    }
    let versions = kubeconform.versions();
    assert_eq!(versions.len(), 7, "1.30 to 1.36: {versions:?}");
    for version in versions {
        let report = kubeconform.run(&folder, &version, &files);
        assert_eq!(report, Vec::<String>::new(), "Kubernetes {version}");
    }
    // A planted mistake is found.
    let file = folder.join("wrong.yaml");
    fs::write(&file, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {prots: []}\n")
        .unwrap();
    let report = kubeconform.run(&folder, &kubeconform.versions()[0], &[file]);
    assert!(report.len() == 1 && report[0].contains("prots"), "{report:?}");
}
