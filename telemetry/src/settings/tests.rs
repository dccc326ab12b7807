use super::*;

/// The settings with these variables.
fn with(config: &OpenTelemetry, variables: &[(&str, &str)]) -> Settings {
    Settings::resolve(config, "forebay", |name| {
        let found = variables.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

fn to(endpoint: &str) -> OpenTelemetry {
    OpenTelemetry { endpoint: Some(endpoint.to_owned()), ..OpenTelemetry::default() }
}

/// The URL and the protocol of each signal.
fn urls(settings: &Settings) -> [Option<(&str, OtlpProtocol)>; 2] {
    let traces = settings.traces.as_ref().map(|traces| &traces.receiver);
    let metrics = settings.metrics.as_ref().map(|metrics| &metrics.receiver);
    [traces, metrics].map(|receiver| receiver.map(|to| (to.url.as_str(), to.protocol)))
}

const GRPC: OtlpProtocol = OtlpProtocol::Grpc;
const HTTP: OtlpProtocol = OtlpProtocol::Http;

#[test]
fn nothing_is_exported_without_an_endpoint() {
    let none = OpenTelemetry::default();
    assert_eq!(with(&none, &[]), Settings::default());
    let others = [("OTEL_SERVICE_NAME", "a"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    assert_eq!(with(&none, &others), Settings::default());
    let disabled = [("OTEL_SDK_DISABLED", "TRUE")];
    assert_eq!(with(&to("http://c:4317"), &disabled), Settings::default());
}

#[test]
fn an_endpoint_is_found_in_the_configuration_and_then_in_the_environment() {
    const ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
    const TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
    let none = OpenTelemetry::default;
    let http = |of: &'static str| Some((of, HTTP));
    let grpc = |of: &'static str| Some((of, GRPC));
    for (config, variables, want) in [
        (
            to("http://c:4318/"),
            &[][..],
            [http("http://c:4318/v1/traces"), http("http://c:4318/v1/metrics")],
        ),
        (to("http://c:4317"), &[], [grpc("http://c:4317"), grpc("http://c:4317")]),
        (
            to("https://c/otlp"),
            &[(ALL, "http://other:4317")],
            [http("https://c/otlp/v1/traces"), http("https://c/otlp/v1/metrics")],
        ),
        (none(), &[(ALL, "http://c:4317")], [grpc("http://c:4317"), grpc("http://c:4317")]),
        (none(), &[(TRACES, "http://c:4318/mine/")], [http("http://c:4318/mine/"), None]),
        (
            none(),
            &[(ALL, "http://c:4318"), (TRACES, "http://t:4317")],
            [grpc("http://t:4317"), http("http://c:4318/v1/metrics")],
        ),
        (none(), &[(ALL, "c:4317")], [grpc("https://c:4317"), grpc("https://c:4317")]),
        (
            none(),
            &[(ALL, "c:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")],
            [grpc("http://c:4317"), grpc("http://c:4317")],
        ),
        (none(), &[(ALL, " ")], [None, None]),
        (
            none(),
            &[(ALL, "http://c:1"), ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc")],
            [http("http://c:1/v1/traces"), grpc("http://c:1")],
        ),
        (
            none(),
            &[(ALL, "http://c:1"), ("OTEL_METRICS_EXPORTER", "none")],
            [http("http://c:1/v1/traces"), None],
        ),
    ] {
        let settings = with(&config, variables);
        assert_eq!(urls(&settings), want, "{variables:?}");
        assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    }
    let config = OpenTelemetry { protocol: Some(GRPC), ..to("http://c:9") };
    let settings = with(&config, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")]);
    assert_eq!(urls(&settings)[0], grpc("http://c:9"));
}

#[test]
fn the_sampler_is_that_of_the_configuration_or_the_environment() {
    const NAME: &str = "OTEL_TRACES_SAMPLER";
    const ARG: &str = "OTEL_TRACES_SAMPLER_ARG";
    for (variables, ratio, by_parent) in [
        (&[][..], 1.0, true),
        (&[(NAME, "always_off")], 0.0, false),
        (&[(NAME, "always_on")], 1.0, false),
        (&[(NAME, "parentbased_always_off")], 0.0, true),
        (&[(NAME, "traceidratio"), (ARG, "0.25")], 0.25, false),
        (&[(NAME, "parentbased_traceidratio"), (ARG, "0.5")], 0.5, true),
        (&[(NAME, "parentbased_traceidratio")], 1.0, true),
    ] {
        let traces = with(&to("http://c:1"), variables).traces.expect("an endpoint");
        assert_eq!(traces.sampler, Sampler { ratio, by_parent }, "{variables:?}");
    }
    let mut config = to("http://c:1");
    config.traces.sample_ratio = Some(0.125);
    let traces = with(&config, &[(NAME, "always_off")]).traces.expect("an endpoint");
    assert_eq!(traces.sampler, Sampler { ratio: 0.125, by_parent: true });
}

#[test]
fn headers_and_resource_attributes_are_lists_of_pairs() {
    let config = OpenTelemetry {
        resource_attributes: [("a", "file"), ("b", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..to("http://c:1")
    };
    let variables = [
        ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=secret%20one, x-other = 2,"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=low,a=env,c=x%2Cy"),
    ];
    let settings = with(&config, &variables);
    let headers = settings.traces.expect("an endpoint").receiver.headers;
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let want = Headers::Fixed(vec![pair("x-key", "secret one"), pair("x-other", "2")]);
    assert_eq!(headers, want);
    assert_eq!(format!("{headers:?}"), r#"["x-key", "x-other"]"#, "without the values");
    let want = [pair("a", "file"), pair("b", "1"), pair("c", "x,y"), pair("service.name", "low")];
    assert_eq!(settings.resource, want.into());
    let named = [("OTEL_SERVICE_NAME", "mine"), variables[1]];
    assert_eq!(with(&config, &named).resource["service.name"], "mine");
    assert_eq!(with(&config, &[]).resource["service.name"], "forebay");
    let config = OpenTelemetry { headers_file: Some("/h".into()), ..config };
    let headers = with(&config, &variables).traces.expect("an endpoint").receiver.headers;
    assert_eq!(headers, Headers::File("/h".into()));
}

#[test]
fn variables_that_can_not_be_used_are_ignored_with_a_warning() {
    for (name, value, warning) in [
        ("OTEL_TRACES_SAMPLER", "jaeger_remote", "`jaeger_remote` is not known; "),
        ("OTEL_TRACES_EXPORTER", "zipkin", "`zipkin` is not known; otlp is used"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1m", "`1m` is not a number above zero; "),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "`0` is not a number above zero; "),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "`http/json` is not supported; "),
        ("OTEL_EXPORTER_OTLP_HEADERS", "secret", "is not a list of NAME=VALUE, "),
        ("OTEL_RESOURCE_ATTRIBUTES", "=x", "is not a list of NAME=VALUE, "),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "`zstd` is not supported; "),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k", "certificate and key need each other; "),
        ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c", "certificate and key need each other; "),
    ] {
        let settings = with(&to("http://c:1"), &[(name, value)]);
        let [shown] = settings.warnings.as_slice() else {
            panic!("{name}: {:?}", settings.warnings)
        };
        assert!(shown.starts_with(&format!("{name}: {warning}")), "{shown}");
        assert!(!shown.contains("secret") && settings.traces.is_some(), "{shown}");
    }
    let wrong = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://a:secret@c:1")];
    let settings = with(&OpenTelemetry::default(), &wrong);
    assert_eq!((&settings.traces, &settings.metrics), (&None, &None));
    assert_eq!(settings.warnings.len(), 2);
    assert!(settings.warnings.iter().all(|text| !text.contains("secret")), "{settings:?}");
    let argument = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "7")];
    let settings = with(&to("http://c:1"), &argument);
    assert_eq!(
        settings.warnings,
        ["OTEL_TRACES_SAMPLER_ARG: `7` is not between 0 and 1; 1 is used"]
    );
}

#[test]
fn times_and_sizes_come_from_the_environment_where_the_configuration_has_none() {
    let variables = [
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "500"),
        ("OTEL_BSP_SCHEDULE_DELAY", "50"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "100"),
    ];
    let Settings { traces, metrics, .. } = with(&to("http://c:1"), &variables);
    let (traces, metrics) = (traces.expect("an endpoint"), metrics.expect("an endpoint"));
    assert_eq!(traces.receiver.timeout, Duration::from_millis(2500));
    assert_eq!((traces.delay, traces.queue, traces.batch), (Duration::from_millis(50), 100, 100));
    assert_eq!(metrics.interval, Duration::from_millis(500));
    let mut config = to("http://c:1");
    (config.timeout, config.metrics.interval) = (Some(INTERVAL), Some(TIMEOUT));
    let metrics = with(&config, &variables).metrics.expect("an endpoint");
    assert_eq!((metrics.receiver.timeout, metrics.interval), (INTERVAL, TIMEOUT));
}

#[test]
fn a_signal_may_have_its_own_certificate_and_compression() {
    let settings = with(
        &to("https://c:4317"),
        &[
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k"),
            ("OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY", "/own"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
        ],
    );
    let certificate =
        |key: &str| Some(ClientCertificate { certificate: "/c".into(), key: key.into() });
    let traces = settings.traces.expect("an endpoint").receiver;
    assert_eq!((traces.certificate, traces.gzip), (certificate("/k"), true));
    let metrics = settings.metrics.expect("an endpoint").receiver;
    assert_eq!((metrics.certificate, metrics.gzip), (certificate("/own"), false));
    assert_eq!(settings.warnings, Vec::<String>::new());
}
