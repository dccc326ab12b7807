//! Remarks on ScaledObjects, as people publish them and with single faults.

use std::fs;
use std::path::Path;

use forebay_config::{Inspection, Problems, inspect, inspect_scaled_object};

mod queries;
mod schedules;

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scaled-objects").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn lines(problems: &Problems) -> impl Iterator<Item = String> + '_ {
    problems.iter().map(|problem| problem.to_string().trim_start_matches("f:").to_owned())
}

/// One line for each remark, without the file's name; errors first.
fn remarks(text: &str) -> Vec<String> {
    let Inspection { errors, warnings } = inspect_scaled_object(text, "f");
    lines(&errors).chain(lines(&warnings)).collect()
}

/// The remarks on an object that KEDA accepts.
fn warned(text: &str) -> Vec<String> {
    let Inspection { errors, warnings } = inspect_scaled_object(text, "f");
    assert!(errors.is_empty(), "{errors}\n{text}");
    lines(&warnings).collect()
}

/// The errors of an object that KEDA refuses.
fn refused(text: &str) -> String {
    let errors = inspect_scaled_object(text, "f").errors;
    assert!(!errors.is_empty(), "it is accepted:\n{text}");
    errors.to_string()
}

/// The `triggers:` and `advanced:` of a file, pasted into a pool.
fn pasted(text: &str, top: &str) -> Vec<String> {
    let mut keep = false;
    let mut scaling = String::new();
    let lines: Vec<_> = text.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let of = |line: &&&str| ["triggers:", "advanced:"].contains(&line.trim());
    let indent = lines.iter().find(of).map_or(0, |line| depth(line));
    for line in lines {
        if depth(line) == indent && !line.trim().is_empty() {
            keep = ["triggers:", "advanced:"].contains(&line.trim());
        }
        if keep {
            scaling += &format!("      {}\n", line.get(indent..).unwrap_or_default());
        }
    }
    let config = format!(
        "{top}pools:\n  - name: a\n    models: [m]\n    target:\n      processes: {{command: [serve, '{{port}}']}}\n    scaling:\n      maxReplicaCount: 8\n{scaling}"
    );
    let (_, warnings) = inspect(&config, "f").unwrap_or_else(|errors| panic!("{errors}\n{config}"));
    warnings.iter().map(ToString::to_string).collect()
}

/// Each of `wanted`, a field and a part of the remark, is there, and nothing else.
fn assert_remarks(case: &str, remarks: &[String], wanted: &[(&str, &str)]) {
    for (field, words) in wanted {
        let found = remarks.iter().any(|line| line.contains(field) && line.contains(words));
        assert!(found, "{case}: no remark `{words}` on {field}:\n{}", remarks.join("\n"));
    }
    let known = |line: &&String| {
        wanted.iter().any(|(field, words)| line.contains(field) && line.contains(words))
    };
    let others: Vec<_> = remarks.iter().filter(|line| !known(line)).collect();
    assert!(others.is_empty(), "{case}: more remarks:\n{others:#?}");
}

/// The remarks on each file, as a ScaledObject of KEDA's.
fn faults(name: &str) -> &'static [(&'static str, &'static str)] {
    match name {
        "asymmetric.yaml" => &[],
        "queue-gpu-cron.yaml" => &[
            ("triggers[0].metadata.query", "at 4 pods the real threshold is 20 a pod"),
            ("triggers[0].metadata.activationThreshold", "minReplicaCount is 1"),
            ("triggers[0].type", "queueDepth, with threshold 5"),
            ("triggers[1].metadata.query", "averages over the pods already"),
            ("triggers[1].type", "gpuUtilization, with threshold 80"),
        ],
        "kv-cache.yaml" => &[
            ("triggers[0].metadata.query", "renamed it; write vllm:kv_cache_usage_perc"),
            ("triggers[0].metadata.query", "averages over the pods already"),
            ("triggers[0].metadata.threshold", "85 is never reached"),
            ("triggers[0].metadata.metricName", "KEDA removed it"),
            ("triggers[0].type", "kvCache, with threshold 0.85"),
        ],
        "token-throughput.yaml" => &[
            ("triggers[0].metadata.query", "the average is divided by the pods"),
            ("triggers[0].metadata.threshold", "above its threshold, here 500, and never below"),
            ("triggers[0].metadata.threshold", "idle pods have no throughput at all"),
            ("triggers[0].type", "ttft"),
        ],
        "scale-to-zero.yaml" => &[
            ("triggers[0].metadata.query", "never wakes"),
            ("triggers[0].metadata.query", "vllm:num_requests_running is a gauge"),
            ("triggers[0].metadata", "missing"),
            ("triggers[0].type", "concurrency, with threshold 1"),
        ],
        "multi-signal.yaml" => &[
            ("triggers[0].metadata", "missing"),
            ("triggers[1].metadata", "missing"),
            ("triggers[1].metadata.query", "write vllm:e2e_request_latency_seconds_bucket"),
            ("triggers[1].metadata.query", "needs sum by (le)"),
            ("triggers[1].metadata.query", "a latency is not a total"),
            ("triggers[1].type", "ttft, with threshold 5"),
            ("triggers[2].metadata", "missing"),
            ("triggers[2].metadata.query", "averages over the pods already"),
            ("triggers[2].type", "gpuUtilization, with threshold 85"),
        ],
        other => panic!("{other} is new here"),
    }
}

fn names() -> Vec<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scaled-objects");
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable"));
    let mut names: Vec<_> =
        files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 6, "{names:?}");
    names
}

#[test]
fn published_scaled_objects_are_accepted_with_remarks_on_what_cannot_work() {
    for name in names() {
        assert_remarks(&name, &remarks(&file(&name)), faults(&name));
    }
}

#[test]
fn pasted_into_a_pool_they_are_valid_and_get_the_same_remarks() {
    for name in names() {
        // Remarks on the ScaledObject's own bounds, which are not pasted.
        let here = |(_, words): &&(&str, &str)| !words.contains("minReplicaCount");
        let faults: Vec<_> = faults(&name).iter().filter(here).copied().collect();
        let mut remarks = pasted(&file(&name), "");
        // The pool may go to zero, where its own requests wake it.
        remarks
            .retain(|line| !line.contains("a held request does") || name == "scale-to-zero.yaml");
        assert_remarks(&name, &remarks, &faults);
    }
}

#[test]
fn a_server_at_the_top_serves_those_that_name_none() {
    let top = "prometheus: {serverAddress: 'http://p:9090'}\n";
    let remarks = pasted(&file("multi-signal.yaml"), top);
    assert!(!remarks.iter().any(|line| line.contains("serverAddress")), "{remarks:#?}");
}

#[test]
fn lines_are_those_of_the_file() {
    let remarks = remarks(&file("kv-cache.yaml"));
    let lines: Vec<_> =
        remarks.iter().map(|line| line.split_once(':').expect("a line").0).collect();
    assert_eq!(lines, ["2", "5", "5", "7", "8"], "{remarks:#?}");
}

#[test]
fn a_figure_that_does_not_grow_needs_value_where_keda_asks_forebay() {
    let object = |metric: &str, metric_type: &str| {
        remarks(&format!(
            "spec:\n  triggers:\n    - type: external-push\n{metric_type}      metadata: {{scalerAddress: 'forebay-scaler:9910', metric: {metric}, threshold: \"2\"}}\n"
        ))
    };
    for metric in ["ttft", "itl", "kvCache", "gpuUtilization"] {
        for lacking in ["", "      metricType: AverageValue\n"] {
            let remarks = object(metric, lacking);
            assert!(remarks[0].contains("missing metricType: Value"), "{remarks:?}");
        }
        assert_eq!(object(metric, "      metricType: Value\n"), Vec::<String>::new(), "{metric}");
    }
    assert_eq!(object("queueDepth", ""), Vec::<String>::new());
}

#[test]
fn documents_of_other_kinds_are_ignored() {
    let several = format!(
        "kind: Deployment\nspec: {{replicas: 1}}\n---\n{}---\n# nothing\n",
        file("queue-gpu-cron.yaml")
    );
    assert_remarks("several", &remarks(&several), faults("queue-gpu-cron.yaml"));
    for (text, words) in [
        ("kind: Deployment\n", "f:1: no ScaledObject in it"),
        ("", "f:1: no ScaledObject in it"),
        ("a: [\n", "not valid YAML"),
        ("spec: {trigger: []}\n", "unknown field; did you mean triggers?"),
        ("triggers:\n  - type: prometheus\n    metadata: {query: up}\n", "threshold: missing"),
        (
            "triggers:\n  - {type: cron, metadata: {timezone: Mars, start: '0 1 * * *', end: '0 2 * * *', desiredReplicas: '1'}}\n",
            "`Mars` is not known",
        ),
        (
            "advanced: {horizontalPodAutoscalerConfig: {behavior: {scaleUp: {policies: [{type: Pods, value: 0, periodSeconds: 9000}]}}}}\n",
            "must be at least 1",
        ),
    ] {
        let errors = refused(text);
        assert!(errors.contains(words), "{text}: {errors}");
    }
}

#[test]
fn our_own_examples_get_no_remark() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/keda");
    let files =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path());
    let mut count = 0;
    for path in files.filter(|path| path.extension().is_some_and(|ending| ending == "yaml")) {
        let text = fs::read_to_string(&path).expect("readable");
        assert_eq!(remarks(&text), Vec::<String>::new(), "{}", path.display());
        count += 1;
    }
    assert!(count >= 3, "{count}");
}

#[test]
fn the_examples_scale_what_is_among_them_and_every_workload_drains_itself() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let both = [folder.clone(), folder.join("keda")];
    let files = both.iter().flat_map(|folder| fs::read_dir(folder).expect("a folder").flatten());
    let texts: Vec<_> = files
        .filter(|file| file.path().extension().is_some_and(|ending| ending == "yaml"))
        .map(|file| fs::read_to_string(file.path()).expect("readable"))
        .collect();
    let documents = || texts.iter().flat_map(|text| text.split("\n---\n"));
    let of = |kind: &'static str| {
        documents().filter(move |document| document.contains(&format!("kind: {kind}\n")))
    };
    let workloads: Vec<_> = of("Deployment").collect();
    for workload in &workloads {
        assert!(workload.contains(":9900/drain?endpoint="), "no preStop hook: {workload}");
        assert!(workload.contains("fieldPath: status.podIP"), "{workload}");
        assert!(workload.contains("terminationGracePeriodSeconds: "), "{workload}");
    }
    let objects: Vec<_> = of("ScaledObject").collect();
    for object in &objects {
        let after = object.split_once("scaleTargetRef:").expect("a target").1;
        let name = after.split_once("name: ").expect("a name").1;
        let name: String = name.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
        let named = format!("kind: Deployment\nmetadata:\n  name: {name}\n");
        assert!(
            workloads.iter().any(|workload| workload.contains(&named)),
            "no Deployment {name}: {object}"
        );
    }
    assert!(workloads.len() >= 3 && objects.len() >= 4, "{workloads:?} {objects:?}");
}

#[test]
fn bare_numbers_are_refused_where_keda_accepts_only_text() {
    for (bare, quoted) in [("5", "5"), ("0x1F", "0x1F"), ("yes", "yes"), ("1e3", "1e3")] {
        let remarks = remarks(&format!(
            "triggers:\n  - type: prometheus\n    metadata: {{serverAddress: 'http://p:1', query: sum(a), threshold: {bare}}}\n"
        ));
        assert_eq!(
            remarks,
            [format!(
                "3: triggers[0].metadata.threshold: KEDA takes text alone here; write \"{quoted}\""
            )]
        );
    }
}

#[test]
fn faults_of_a_pool_s_own_triggers_are_named_at_their_field() {
    let of = |trigger: &str| {
        let text = format!(
            "pools:\n  - name: a\n    models: [m]\n    target: {{processes: {{command: [serve, '{{port}}']}}}}\n    scaling:\n      triggers:\n        - {trigger}\n"
        );
        match inspect(&text, "f.yaml") {
            Ok((_, warnings)) => warnings.to_string(),
            Err(errors) => errors.to_string(),
        }
    };
    let at = "f.yaml:7: pools[0].scaling.triggers[0]";
    for (trigger, expected) in [
        ("{type: queueDepth, metadata: {threshold: '5'}}", String::new()),
        ("{type: concurrency}", String::new()),
        ("{type: kvCache}", String::new()),
        (
            "{type: queuedepth}",
            format!("{at}.type: `queuedepth` is not known; did you mean queueDepth?"),
        ),
        (
            "{type: queueDepth}",
            format!("{at}.metadata.threshold: missing; write for example threshold: 5"),
        ),
        (
            "{type: queueDepth, metadata: {threshold: 0}}",
            format!("{at}.metadata.threshold: must be above 0; write for example 5"),
        ),
        (
            "{type: queueDepth, metadata: {threshold: five}}",
            format!("{at}.metadata.threshold: `five` is not a number"),
        ),
        (
            "{type: queueDepth, metadata: {treshold: 5, threshold: 5}}",
            format!("{at}.metadata.treshold: unknown, and without effect; did you mean threshold?"),
        ),
        (
            "{type: kvCache, metadata: {threshold: 85}}",
            format!(
                "{at}.metadata.threshold: 85 is never reached: the KV cache's use is 0 to 1; write 0.85"
            ),
        ),
        (
            "{type: ttft, metadata: {threshold: 2 seconds}}",
            format!(
                "{at}.metadata.threshold: `2 seconds` is not a duration; write for example 250ms, 30s, 5m or 1h30m"
            ),
        ),
        (
            "{type: ttft, metricType: AverageValue, metadata: {threshold: 2s}}",
            format!(
                "{at}.metricType: ttft does not grow with the replicas, and AverageValue would share it among them; leave metricType out"
            ),
        ),
        (
            "{type: ttft, metricTyp: Value}",
            format!("{at}.metricTyp: unknown field; did you mean metricType?"),
        ),
        (
            "{type: gpuUtilization, metadata: {exporter: 'dcgm:9400'}}",
            format!(
                "{at}.metadata.exporter: `dcgm:9400` has no http:// or https:// at its beginning; write for example http://prometheus:9090"
            ),
        ),
        (
            "{type: prometheus, metadata: {serverAddress: 'http://p:1', query: sum(up), threshold: 1, ignoreNullValues: maybe}}",
            format!("{at}.metadata.ignoreNullValues: must be true or false, not `maybe`"),
        ),
        (
            "{type: cron, metadata: {timezone: UTC, start: 0 8 * * *, end: 0 8 * * *, desiredReplicas: 1}}",
            format!("{at}.metadata.end: is the same as start; the window would be empty"),
        ),
        (
            "{type: cron, metadata: {timezone: UTC, start: 8am, end: 0 8 * * *, desiredReplicas: 1}}",
            format!(
                "{at}.metadata.start: `8am` has 1 field, not five (minute, hour, day, month, weekday); write for example \"0 8 * * 1-5\""
            ),
        ),
        (
            "{type: cron, metadata: {timezone: UTC, start: 0 7 * * *, end: 0 8 * * *, desiredReplicas: 3}}",
            format!("{at}.metadata.desiredReplicas: 3 is never reached: maxReplicaCount is 1"),
        ),
    ] {
        assert_eq!(of(trigger), expected, "{trigger}");
    }
}

#[test]
fn a_password_in_an_address_is_not_shown() {
    for address in [
        "http://me:s3cret@p:9090",
        "me:s3cret@p:9090",
        "ftp://me:s3/cr:et@p",
        "http://me:s3cret@p:0",
    ] {
        let text = format!(
            "triggers:\n  - type: prometheus\n    metadata: {{serverAddress: '{address}', query: sum(a), threshold: '5'}}\n"
        );
        let config = format!(
            "prometheus: {{serverAddress: '{address}'}}\ngateway: {{scaler: '{address}'}}\npools:\n  - name: a\n    models: [m]\n    endpoints: ['{address}']\n    scaling:\n      triggers:\n        - {{type: gpuPower, metadata: {{exporter: '{address}', threshold: 5}}}}\n        - {{type: prometheus, metadata: {{serverAddress: '{address}', query: a, threshold: 5}}}}\n"
        );
        let problems = inspect(&config, "f").expect_err("refused");
        for shown in [remarks(&text).join("\n"), problems.to_string()] {
            assert!(!shown.contains("s3") && !shown.contains("me:"), "{shown}");
        }
        assert!(problems.iter().count() >= 3, "{problems}");
    }
}
