//! ScaledObjects as people publish them: taken as they stand, and told what can't work.

use std::fs;
use std::path::Path;

use forebay_config::{Inspection, Problems, inspect, inspect_scaled_object};

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scaled-objects").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn lines(problems: &Problems) -> impl Iterator<Item = String> + '_ {
    problems.iter().map(|it| it.to_string().trim_start_matches("f:").to_owned())
}

/// One line for each remark, without the file's name; errors first.
fn told(text: &str) -> Vec<String> {
    let Inspection { errors, warnings } = inspect_scaled_object(text, "f");
    lines(&errors).chain(lines(&warnings)).collect()
}

/// The same of an object that KEDA takes.
fn warned(text: &str) -> Vec<String> {
    let Inspection { errors, warnings } = inspect_scaled_object(text, "f");
    assert!(errors.is_empty(), "{errors}\n{text}");
    lines(&warnings).collect()
}

/// All that KEDA refuses.
fn refused(text: &str) -> String {
    let errors = inspect_scaled_object(text, "f").errors;
    assert!(!errors.is_empty(), "it is taken:\n{text}");
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

/// Each of `wanted`, in words, is told of its field; and nothing else.
fn assert_told(case: &str, told: &[String], wanted: &[(&str, &str)]) {
    for (field, words) in wanted {
        let found = told.iter().any(|line| line.contains(field) && line.contains(words));
        assert!(found, "{case}: nobody tells `{words}` of {field}:\n{}", told.join("\n"));
    }
    let known = |line: &&String| {
        wanted.iter().any(|(field, words)| line.contains(field) && line.contains(words))
    };
    let others: Vec<_> = told.iter().filter(|line| !known(line)).collect();
    assert!(others.is_empty(), "{case}: told beside that:\n{others:#?}");
}

/// What each file is told, by KEDA's reading of it.
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
            ("triggers[0].metadata.metricName", "KEDA took it out"),
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
            ("triggers[1].metadata.query", "a latency is no total"),
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
    let mut names: Vec<_> = files.map(|it| it.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    assert_eq!(names.len(), 6, "{names:?}");
    names
}

#[test]
fn published_scaled_objects_are_taken_as_they_stand_and_told_what_cannot_work() {
    for name in names() {
        assert_told(&name, &told(&file(&name)), faults(&name));
    }
}

#[test]
fn pasted_into_a_pool_they_are_valid_and_told_the_same() {
    for name in names() {
        // What depends on the ScaledObject's own bounds, which are not pasted.
        let here = |(_, words): &&(&str, &str)| !words.contains("minReplicaCount");
        let faults: Vec<_> = faults(&name).iter().filter(here).copied().collect();
        let mut told = pasted(&file(&name), "");
        // The pool may go to zero, where its own requests wake it.
        told.retain(|line| !line.contains("a held request does") || name == "scale-to-zero.yaml");
        assert_told(&name, &told, &faults);
    }
}

#[test]
fn a_server_at_the_top_serves_those_that_name_none() {
    let top = "prometheus: {serverAddress: 'http://p:9090'}\n";
    let told = pasted(&file("multi-signal.yaml"), top);
    assert!(!told.iter().any(|line| line.contains("serverAddress")), "{told:#?}");
}

#[test]
fn lines_are_those_of_the_file() {
    let told = told(&file("kv-cache.yaml"));
    let lines: Vec<_> = told.iter().map(|line| line.split_once(':').expect("a line").0).collect();
    assert_eq!(lines, ["2", "5", "5", "7", "8"], "{told:#?}");
}

/// One prometheus trigger of a ScaledObject that may not go to zero.
fn query(query: &str, rest: &str) -> Vec<String> {
    told(&format!(
        "kind: ScaledObject\nspec:\n  scaleTargetRef: {{name: a}}\n  minReplicaCount: 1\n  triggers:\n    - type: prometheus\n{rest}      metadata:\n        serverAddress: http://p:9090\n        threshold: \"5\"\n        query: {}\n",
        serde_json::to_string(query).expect("text")
    ))
}

#[test]
fn queries_that_work_are_told_nothing() {
    for good in [
        "sum(vllm:num_requests_waiting)",
        "sum(vllm:num_requests_waiting{namespace=\"a\"}) + sum(vllm:num_requests_running)",
        "sum(rate(vllm:generation_tokens_total[2m]))",
        "sum(increase(vllm:request_success_total[5m]))",
        "max_over_time(sum(vllm:num_requests_waiting)[2m:15s])",
        "sum(avg_over_time(vllm:num_requests_running[1m]))",
        "sum(rabbitmq_queue_messages_ready)",
        "sum by (namespace) (vllm:num_requests_waiting{namespace=\"a\"})",
        "rabbitmq_queue_messages_ready{queue=\"jobs\"}",
        "histogram_quantile(0.9, sum(rate(request_duration_seconds[5m]))) > bool 3",
        "sum(vllm:num_requests_running) < bool 1",
        "sum(vllm:num_requests_waiting) or vector(0)",
        "count(vllm:num_requests_waiting > 3)",
    ] {
        assert_eq!(query(good, ""), Vec::<String>::new(), "{good}");
    }
    for good in [
        "histogram_quantile(0.95, sum by (le) (rate(vllm:e2e_request_latency_seconds_bucket[5m])))",
        "avg(DCGM_FI_DEV_GPU_UTIL)",
        "sum(rate(vllm:time_to_first_token_seconds_sum[5m])) / sum(rate(vllm:time_to_first_token_seconds_count[5m]))",
    ] {
        assert_eq!(query(good, "      metricType: Value\n"), Vec::<String>::new(), "{good}");
    }
}

#[test]
fn each_fault_is_told_wherever_it_is() {
    for (bad, words) in [
        ("sum(rate(vllm:num_requests_waiting[5m]))", "is a gauge"),
        ("sum(vllm:generation_tokens_total)", "is a counter, which only grows"),
        ("vllm:num_requests_waiting", "one series for each replica"),
        ("rate(vllm:prompt_tokens_total[1m])", "one series for each replica"),
        ("sum(vllm:num_requests_waiting", "can't be read as PromQL"),
        ("avg(vllm:num_requests_waiting)", "averages over the pods already"),
        ("sum(vllm:num_requests_waiting) / scalar(count(up))", "divides by the pods already"),
        (
            "sum(vllm:num_requests_waiting) / sum(kube_deployment_status_replicas)",
            "divides by the pods already",
        ),
        (
            "histogram_quantile(0.9, sum(rate(vllm:time_to_first_token_seconds_bucket[5m])))",
            "needs sum by (le)",
        ),
        (
            "histogram_quantile(0.9, sum without (le) (rate(vllm:time_to_first_token_seconds_bucket[5m])))",
            "needs sum by (le)",
        ),
        ("max(vllm:kv_cache_usage_perc)", "5 is never reached"),
        ("sum(vllm:request_success_total) < 5", "never below"),
        ("sum(vllm_num_requests_waiting)", "write vllm:num_requests_waiting"),
        ("sum(vllm:num_request_waiting)", "did you mean vllm:num_requests_waiting?"),
    ] {
        let told = query(bad, "");
        assert!(told.iter().any(|line| line.contains(words)), "{bad}: {told:#?}");
    }
}

#[test]
fn a_comment_changes_nothing() {
    for name in names() {
        let text = file(&name);
        let bare: String = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .map(|line| format!("{line}\n"))
            .collect();
        let commented: String = text
            .lines()
            .map(|line| {
                let indent = " ".repeat(line.len() - line.trim_start().len());
                format!("{indent}# keep the p95 below 2 s; scale down when it drops\n{line}\n")
            })
            .collect();
        let without_lines = |text: &str| -> Vec<String> {
            let lines = told(text).into_iter();
            lines.map(|line| line.split_once(": ").expect("a field").1.to_owned()).collect()
        };
        assert_eq!(without_lines(&bare), without_lines(&text), "{name}");
        // Not within a query that spans lines, where `#` is PromQL's.
        if !text.contains("query: |") {
            assert_eq!(without_lines(&commented), without_lines(&text), "{name}");
        }
        assert_eq!(pasted(&bare, "").len(), pasted(&text, "").len(), "{name}");
    }
}

#[test]
fn a_trigger_that_wakes_makes_up_for_one_that_cannot() {
    let object = |other: &str| {
        told(&format!(
            "spec:\n  minReplicaCount: 0\n  triggers:\n    - type: prometheus\n      metadata: {{serverAddress: 'http://p:1', query: 'sum(vllm:num_requests_waiting)', threshold: \"5\"}}\n{other}"
        ))
    };
    let wakes = |told: Vec<String>| !told.iter().any(|line| line.contains("never wakes"));
    assert!(!wakes(object("")));
    assert!(!wakes(object(
        "    - {type: cpu, metricType: Utilization, metadata: {value: \"60\"}}\n"
    )));
    assert!(wakes(object("    - {type: kafka, metadata: {lagThreshold: \"5\"}}\n")));
    assert!(wakes(object(
        "    - {type: external-push, metadata: {scalerAddress: 'forebay:9910'}}\n"
    )));
}

#[test]
fn a_figure_that_does_not_grow_needs_value_where_keda_asks_forebay() {
    let object = |metric: &str, metric_type: &str| {
        told(&format!(
            "spec:\n  triggers:\n    - type: external-push\n{metric_type}      metadata: {{scalerAddress: 'forebay-scaler:9910', metric: {metric}, threshold: \"2\"}}\n"
        ))
    };
    for metric in ["ttft", "itl", "kvCache", "gpuUtilization"] {
        for lacking in ["", "      metricType: AverageValue\n"] {
            let told = object(metric, lacking);
            assert!(told[0].contains("missing metricType: Value"), "{told:?}");
        }
        assert_eq!(object(metric, "      metricType: Value\n"), Vec::<String>::new(), "{metric}");
    }
    assert_eq!(object("queueDepth", ""), Vec::<String>::new());
}

#[test]
fn documents_of_other_kinds_are_passed_over() {
    let several = format!(
        "kind: Deployment\nspec: {{replicas: 1}}\n---\n{}---\n# nothing\n",
        file("queue-gpu-cron.yaml")
    );
    assert_told("several", &told(&several), faults("queue-gpu-cron.yaml"));
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

/// Cron triggers, each with its start, end and replicas.
fn schedules(windows: &[(&str, &str, u32)]) -> Vec<String> {
    let triggers = windows.iter().map(|(start, end, count)| {
        format!(
            "  - type: cron\n    metadata: {{timezone: Europe/Amsterdam, start: '{start}', end: '{end}', desiredReplicas: \"{count}\"}}\n"
        )
    });
    warned(&format!("triggers:\n{}", triggers.collect::<String>()))
}

#[test]
fn a_window_that_its_end_does_not_close_is_told_with_an_end_that_does() {
    for (start, end, words) in [
        ("0 22 * * 1-5", "0 6 * * 1-5", "Friday 22:00 stays open until Monday 06:00"),
        ("0 22 * * mon-fri", "0 6 * * mon-fri", "Friday 22:00 stays open until Monday 06:00"),
        ("0 8 * * 1-5", "0 18 * * 1-4", "nothing opens on Friday 08:00"),
        ("30 22 * * 0,3,6", "15 6 * * 0,3", "nothing opens on Wednesday 22:30"),
        ("0 8 * * 1-5", "0 18 * * 1,3,5", "nothing opens on"),
        ("CRON_TZ=UTC 0 22 * * 1-5", "CRON_TZ=UTC 0 6 * * 1-5", "stays open until Monday"),
        ("0 20 * * 1,3", "0 20 * * 2", "nothing opens on Wednesday 20:00"),
    ] {
        let told = schedules(&[(start, end, 4)]);
        assert!(told.len() == 1 && told[0].contains(words), "{start} to {end}: {told:#?}");
        // What is advised works: followed, it leaves nothing to say.
        let (_, advised) = told[0].split_once("write end: ").expect("advice");
        let advised = advised.trim_matches('"');
        assert_eq!(schedules(&[(start, advised, 4)]), Vec::<String>::new(), "{start} to {advised}");
    }
    // Without advice where it can't be known what was meant.
    let told = schedules(&[("0 8,13 * * 1-5", "0 12,18 * * 1-4", 4)]);
    assert!(told.len() == 1 && !told[0].contains("write end"), "{told:#?}");
}

#[test]
fn windows_that_are_meant_are_told_nothing() {
    for (start, end) in [
        ("0 22 * * 1-5", "0 6 * * 2-6"),
        ("0 22 * * *", "0 6 * * *"),
        ("30 7 * * 1-5", "0 20 * * 1-5"),
        ("0 0 1 * *", "0 0 8 * *"),
        ("0 0 * * 1", "0 0 * * 6"),
        ("0 22 * * 5", "0 6 * * 1"),
    ] {
        assert_eq!(schedules(&[(start, end, 4)]), Vec::<String>::new(), "{start} to {end}");
    }
    // Another trigger asks for the weekend anyway: for as many at least, and the whole of it.
    let nights = ("0 22 * * 1-5", "0 6 * * 1-5", 4);
    let weekend = ("0 5 * * 6", "0 7 * * 1", 4);
    assert_eq!(schedules(&[nights, weekend]), Vec::<String>::new());
    assert_eq!(schedules(&[nights, ("0 5 * * 6", "0 7 * * 1", 3)]).len(), 1);
    assert_eq!(schedules(&[nights, ("0 5 * * 6", "0 5 * * 0", 4)]).len(), 1);
    let halves = [nights, ("0 5 * * 6", "0 5 * * 0", 4), ("0 4 * * 0", "0 7 * * 1", 5)];
    assert_eq!(schedules(&halves), Vec::<String>::new());
}

#[test]
fn a_window_that_is_always_open_is_told() {
    let told = schedules(&[("0 8 * * *", "00 8 * * *", 4)]);
    assert!(told.len() == 1 && told[0].contains("always open"), "{told:#?}");
}

#[test]
fn our_own_examples_are_told_nothing() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/keda");
    let files =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("readable").path());
    let mut count = 0;
    for path in files.filter(|path| path.extension().is_some_and(|it| it == "yaml")) {
        let text = fs::read_to_string(&path).expect("readable");
        assert_eq!(told(&text), Vec::<String>::new(), "{}", path.display());
        count += 1;
    }
    assert!(count >= 3, "{count}");
}

#[test]
fn the_examples_scale_what_is_among_them_and_every_workload_drains_itself() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples");
    let both = [folder.clone(), folder.join("keda")];
    let files = both.iter().flat_map(|it| fs::read_dir(it).expect("a folder").flatten());
    let texts: Vec<_> = files
        .filter(|file| file.path().extension().is_some_and(|it| it == "yaml"))
        .map(|file| fs::read_to_string(file.path()).expect("readable"))
        .collect();
    let documents = || texts.iter().flat_map(|text| text.split("\n---\n"));
    let of =
        |kind: &'static str| documents().filter(move |it| it.contains(&format!("kind: {kind}\n")));
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
        let name: String = name.chars().take_while(|it| it.is_ascii_alphanumeric()).collect();
        let named = format!("kind: Deployment\nmetadata:\n  name: {name}\n");
        assert!(workloads.iter().any(|it| it.contains(&named)), "no Deployment {name}: {object}");
    }
    assert!(workloads.len() >= 3 && objects.len() >= 4, "{workloads:?} {objects:?}");
}

#[test]
fn bare_numbers_are_refused_where_keda_takes_text_alone() {
    for (bare, quoted) in [("5", "5"), ("0x1F", "0x1F"), ("yes", "yes"), ("1e3", "1e3")] {
        let told = told(&format!(
            "triggers:\n  - type: prometheus\n    metadata: {{serverAddress: 'http://p:1', query: sum(a), threshold: {bare}}}\n"
        ));
        assert_eq!(
            told,
            [format!(
                "3: triggers[0].metadata.threshold: KEDA takes text alone here; write \"{quoted}\""
            )]
        );
    }
}

#[test]
fn what_is_wrong_with_a_pool_s_own_triggers_is_told_at_its_field() {
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
fn a_router_s_series_wake_from_zero_and_are_not_vllm_s() {
    let object = |query: &str| {
        warned(&format!(
            "spec:\n  minReplicaCount: 0\n  triggers:\n    - type: prometheus\n      metadata:\n        serverAddress: http://p:1\n        threshold: \"1\"\n        query: {query}\n"
        ))
    };
    for wakes in [
        "sum(rate(vllm:num_incoming_requests_total[1m]) > bool 0)",
        "sum(vllm:current_qps)",
        "max(vllm:healthy_pods_total) + sum(vllm:num_incoming_requests_total) * 0",
        "sum(vllm:num_requests_waiting:sum)",
        "sum(vllm:num_requests_waiting) or sum(rate(vllm:num_incoming_requests_total[1m]))",
        "absent(vllm:num_requests_running)",
    ] {
        let told = object(wakes);
        let silent = |line: &String| line.contains("never wakes") || line.contains("exports no");
        assert!(!told.iter().any(silent), "{wakes}: {told:#?}");
    }
    for sleeps in [
        "sum(vllm:num_requests_waiting)",
        "sum(vllm:num_requests_waiting) + sum(vllm:current_qps)",
        "sum(vllm:num_requests_waiting) or vector(0)",
        "sum(vllm:gpu_cache_usage_perc)",
    ] {
        let told = object(sleeps);
        assert!(told.iter().any(|line| line.contains("never wakes")), "{sleeps}: {told:#?}");
    }
}

#[test]
fn how_many_series_a_query_gives_is_told_once() {
    for (several, words) in [
        ("sum by (pod) (a)", "one series for each pod"),
        ("max by (gpu) (DCGM_FI_DEV_GPU_UTIL)", "one series for each gpu"),
        ("sum by (namespace) (vllm:num_requests_waiting)", "one series for each namespace"),
        ("rabbitmq_queue_messages_ready", "may give several series"),
        ("rabbitmq_queue_messages_ready{queue=\"a\"} or vector(0)", "gives two series"),
        ("sum without (pod) (a)", "may give several series"),
    ] {
        let told = query(several, "      metricType: Value\n");
        let count = told.iter().filter(|line| line.contains("takes a single one")).count();
        assert!(count == 1 && told.iter().any(|line| line.contains(words)), "{several}: {told:#?}");
    }
}

#[test]
fn with_a_formula_only_the_formula_is_compared() {
    let object = |modifiers: &str| {
        told(&format!(
            "kind: ScaledObject\nspec:\n  scaleTargetRef: {{name: a}}\n  advanced: {{scalingModifiers: {modifiers}}}\n  triggers:\n    - type: prometheus\n      name: cache\n      metadata: {{serverAddress: 'http://p:1', query: avg(vllm:kv_cache_usage_perc), threshold: \"85\", activationThreshold: \"2\"}}\n    - type: cron\n      name: day\n      metadata: {{timezone: UTC, start: 0 8 * * *, end: 0 9 * * *, desiredReplicas: \"500\"}}\n"
        ))
    };
    let told = object("{formula: cache + day, target: '1'}");
    assert!(told.len() == 1 && told[0].contains("activationThreshold: has no effect"), "{told:#?}");
    for (wrong, words) in [
        (
            "{formula: cache + nights, target: '1'}",
            "`nights`, which is not a trigger's name; there are: cache, day",
        ),
        ("{formula: cache}", "scalingModifiers.target: missing"),
        ("{formula: cache, target: '0'}", "0 is too little"),
        ("{formula: cache, target: '-1'}", "-1 is too little"),
        ("{formula: cache +, target: '1'}", "`cache +`"),
        ("{target: '1'}", "scalingModifiers.formula: missing"),
        ("{formula: '5', target: '1'}", "names no trigger"),
    ] {
        let told = object(wrong);
        assert!(told.iter().any(|line| line.contains(words)), "{wrong}: {told:#?}");
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
        for shown in [told(&text).join("\n"), problems.to_string()] {
            assert!(!shown.contains("s3") && !shown.contains("me:"), "{shown}");
        }
        assert!(problems.iter().count() >= 3, "{problems}");
    }
}
