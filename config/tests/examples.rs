//! The examples are what people copy: each must load, and the full one must be full.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use forebay_config::{Config, load, parse, print, schema};
use serde_json::Value;

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let files =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path());
    let mut files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|ending| ending == "yaml")).collect();
    files.sort();
    assert!(files.len() >= 4, "the examples are gone: {files:?}");
    files
}

#[test]
fn every_example_is_valid_and_raises_no_warning() {
    for path in examples() {
        let config = load(&path).unwrap_or_else(|problems| panic!("{problems}"));
        assert!(config.warnings().is_empty(), "{}", config.warnings());
    }
}

#[test]
fn what_is_printed_of_an_example_is_read_back_to_the_same() {
    for path in examples() {
        let config = load(&path).unwrap();
        let text = print(&config);
        let back = parse(&text, "printed").unwrap_or_else(|problems| panic!("{problems}\n{text}"));
        assert_eq!(back, config, "{text}");
    }
}

/// Names of all fields below `node`, as dotted ways, lists as `[]`.
fn fields(root: &Value, node: &Value, prefix: &str, into: &mut BTreeSet<String>) {
    if let Some(target) = node["$ref"].as_str() {
        return fields(root, root.pointer(&target[1..]).expect("defined"), prefix, into);
    }
    for key in ["allOf", "anyOf", "oneOf"] {
        for option in node[key].as_array().into_iter().flatten() {
            fields(root, option, prefix, into);
        }
    }
    fields_of_items(root, node, prefix, into);
    for (name, field) in node["properties"].as_object().into_iter().flatten() {
        let way = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        fields(root, field, &way, into);
        into.insert(way);
    }
}

fn fields_of_items(root: &Value, node: &Value, prefix: &str, into: &mut BTreeSet<String>) {
    if node["items"].is_object() {
        fields(root, &node["items"], &format!("{prefix}[]"), into);
    }
}

/// The same of a file, by its indentation: every field of ours has a line of its own there.
fn written(text: &str) -> BTreeSet<String> {
    let mut open: Vec<(usize, String)> = Vec::new();
    let mut found = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let bare = line.replacen("- ", "  ", 1);
        let indent = bare.len() - bare.trim_start().len();
        let item = line.trim_start().starts_with("- ");
        let name = bare.trim_start().split(':').next().unwrap_or_default();
        let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        open.retain(|(depth, _)| *depth < if item { indent - 2 } else { indent });
        if item && let Some((_, parent)) = open.last_mut() {
            *parent = format!("{}[]", parent.trim_end_matches("[]"));
        }
        if !is_name || !bare.contains(':') {
            continue;
        }
        open.retain(|(depth, _)| *depth < indent);
        open.push((indent, name.to_owned()));
        found.insert(open.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join("."));
    }
    found
}

#[test]
fn the_full_example_has_every_field_and_a_comment_above_each() {
    let schema = schema();
    let mut known = BTreeSet::new();
    fields(&schema, &schema, "", &mut known);
    assert!(known.contains("pools[].target.processes.startTimeout"), "{known:?}");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/full.yaml");
    let text = fs::read_to_string(&path).unwrap();
    let written_there = written(&text);
    // No election where replicas are processes on one machine.
    let elected = written(&fs::read_to_string(path.with_file_name("kubernetes.yaml")).unwrap());
    let elected = elected.into_iter().filter(|way| way.starts_with("scaler.leaderElection"));
    let written: BTreeSet<_> = written_there.into_iter().chain(elected).collect();
    // One of two ways to give credentials; `authenticationRef` is KEDA's, and a warning; and the
    // behavior of a pasted `advanced` is `behavior`.
    let left_out = |way: &&String| {
        way.contains("bearerTokenFile")
            || way.contains("authenticationRef")
            || way.contains("horizontalPodAutoscalerConfig")
            // Shown once, for a pool.
            || written.contains(&way.replace("scaler.gatewayDiscovery", "pools[].discovery"))
    };
    let missing: Vec<_> = known.difference(&written).filter(|way| !left_out(way)).collect();
    assert!(missing.is_empty(), "not in full.yaml: {missing:?}");

    let names: BTreeSet<_> = known.iter().filter_map(|way| way.rsplit('.').next()).collect();
    let lines: Vec<_> = text.lines().map(str::trim_start).collect();
    for pair in lines.windows(2) {
        let name = pair[1].split(':').next().unwrap_or_default();
        // The one kind of a target or a discovery is explained by that itself.
        let kind = ["processes", "kubernetes", "pods", "endpointSlices", "dns"].contains(&name);
        if names.contains(name) && !kind {
            assert!(pair[0].contains("# "), "no comment above {}", pair[1]);
        }
    }
}

#[test]
fn the_full_example_shows_the_defaults_unless_its_comment_names_another() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/full.yaml");
    let full = load(path).unwrap();
    let default = Config::default();
    // Its default depends on the machine.
    let limits = forebay_config::Limits { bodies_size: None, ..full.gateway.limits };
    assert_eq!(limits, default.gateway.limits);
    assert_eq!(full.gateway.listen, default.gateway.listen);
    assert_eq!(full.gateway.shutdown_timeout, default.gateway.shutdown_timeout);
    assert_eq!(full.scaler.stale_after, default.scaler.stale_after);
    assert_eq!(full.prometheus.timeout, default.prometheus.timeout);
    let (pool, plain) = (&full.pools[0], forebay_config::Pool::named("qwen"));
    let hold = forebay_config::Hold { max_wait: None, ..pool.hold.clone() };
    assert_eq!(hold, plain.hold);
    assert_eq!(pool.upstream, plain.upstream);
    assert_eq!((pool.max_in_flight, pool.limit), (plain.max_in_flight, plain.limit));
    let mut scaling = pool.scaling.clone();
    (scaling.max_replica_count, scaling.target_concurrency) = (1, None);
    (scaling.min_replica_count, scaling.idle_replica_count) = (0, None);
    (scaling.behavior, scaling.advanced) = (None, None);
    scaling.triggers.clear();
    assert_eq!(scaling, plain.scaling);
    let Some(forebay_config::Target::Processes(processes)) = &pool.target else { panic!() };
    let plain = forebay_config::Processes::of(Vec::new());
    assert_eq!(processes.ports, plain.ports);
    assert_eq!(processes.start_timeout, plain.start_timeout);
    assert_eq!(processes.stop_timeout, plain.stop_timeout);
}
