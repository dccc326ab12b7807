//! The whole generator against the simulated vLLM and against servers that misbehave.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::generator::{Generated, generate};
use super::report::{self, Summary};
use super::settings::Settings;
use super::workload::Workload;

fn settings(yaml: &str) -> Settings {
    serde_saphyr::from_str(yaml).expect("valid settings")
}

async fn run(address: SocketAddr, yaml: &str) -> Summary {
    let mut settings = settings(yaml);
    settings.endpoint.url = Some(format!("http://{address}/v1/"));
    let workload = Workload::new(settings).expect("a valid workload");
    let (title, endpoint) = (report::title(&workload), workload.endpoint.base.to_string());
    let generated: Generated = generate(workload, None, |_, _| {}).await.expect("a run");
    Summary::new(title, endpoint, &generated, None)
}

/// A server that reads one request of a connection and answers with these bytes, then closes it.
async fn server(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut request = vec![0; 64 << 10];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

const FIVE: &str = "{endpoint: {model: m}, arrivals: {constant: 50, duration: 100ms}}";

#[tokio::test]
async fn a_server_that_stalls_shows_in_the_latency_of_every_request_meant_for_that_time() {
    // One connection: the second request waits for the first, and so on.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a client");
        let mut request = vec![0; 64 << 10];
        let mut stalled = false;
        while stream.read(&mut request).await.is_ok_and(|read| read > 0) {
            if !std::mem::replace(&mut stalled, true) {
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            stream.write_all(answer.as_bytes()).await.expect("sent");
        }
    });
    let summary = run(
        address,
        "{endpoint: {model: m}, arrivals: {constant: 100, duration: 200ms},
          requests: {streamShare: 0}, connections: {most: 1}}",
    )
    .await;
    let whole = summary.latency.whole.expect("answers");
    assert_eq!((summary.requests.sent, summary.requests.complete), (20, 20));
    assert!(summary.requests.late >= 19, "{}", summary.requests.late);
    // The last one was meant for 190 ms and could not go out before 400 ms.
    assert!(whole.p50 > 0.25, "the stall is hidden: {whole:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_is_counted_by_how_it_broke() {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";
    let of = |body: &str| -> &'static str { format!("{HEAD}\r\n{body}").leak() };
    let token = "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
    for (answer, want) in [
        (of(token), "no finish_reason"),
        (of("data: {\"error\":{\"message\":\"x\"}}\n\ndata: [DONE]\n\n"), "error event"),
        (format!("{HEAD}transfer-encoding: chunked\r\n\r\n5\r\nda").leak(), "connection lost"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "not an event stream"),
        ("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", "status 503"),
        ("", "connection lost before an answer"),
    ] {
        let summary = run(server(answer).await, FIVE).await;
        assert_eq!(summary.failures(), format!("5 × {want}"));
    }
}

#[tokio::test]
async fn an_endpoint_that_does_not_answer_is_given_up_after_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let yaml = "{endpoint: {model: m}, arrivals: {constant: 50, duration: 100ms},
                 connections: {timeout: 200ms}}";
    let summary = run(address, yaml).await;
    assert_eq!(summary.failures(), "5 × timed out");
    drop(listener);
    let summary = run(address, FIVE).await;
    assert_eq!(summary.failures(), "5 × cannot connect");
    for text in [report::table(&summary), report::page::page(&summary)] {
        assert!(text.contains("No answer was complete, so there are no latencies."), "{text}");
        assert!(!text.contains("p99") && !text.contains("Whole answer"), "{text}");
    }
}

#[tokio::test]
async fn the_simulated_vllm_is_measured_token_by_token() {
    use crate::sim::{Sim, SimArgs};
    let flags = ["m", "--port=0", "--decode-step-ms=2", "--prefill-tokens-per-second=0"];
    let sim = Sim::start(SimArgs::from_flags(flags).expect("flags")).await.expect("a free port");
    let yaml = "{arrivals: {constant: 40, duration: 500ms}, requests: {promptTokens: 20,
                 outputTokens: 10, streamShare: 0.5, body: {ignore_eos: true}}}";
    let summary = run(sim.addr(), yaml).await;
    let (requests, latency) = (&summary.requests, &summary.latency);
    assert_eq!((summary.model.as_str(), requests.sent), ("m", 20));
    assert_eq!(requests.complete, 20, "{}", summary.failures());
    assert!((20..=200).contains(&requests.tokens), "{}", requests.tokens);
    assert_eq!(requests.misordered, 0);
    let (ttft, whole) = (latency.ttft.expect("streams"), latency.whole.expect("answers"));
    assert!(ttft.p50 <= whole.p50 && latency.itl.is_some(), "{latency:?}");

    let page = report::page::page(&summary);
    for title in ["Requests", "In flight", "TTFT", "Whole answer", "Tokens"] {
        assert!(page.contains(&format!("<h2>{title} ")), "{title}");
    }
    assert!(!page.contains("http://www") && !page.contains("src="), "the page needs only itself");
    let table = report::table(&summary);
    assert!(table.starts_with("constant 40/s for 500ms, to http://127.0.0.1:"), "{table}");
    for row in ["requests ", "tokens ", "late sends ", "generator ", "TTFT ", "ITL "] {
        assert!(table.contains(&format!("\n{row}")), "{row}: {table}");
    }
}

#[test]
fn a_wrong_setting_is_named_with_its_fix() {
    for (yaml, want) in [
        ("{arrivals: {poisson: 1}}", "endpoint.url is missing: name the endpoint"),
        ("{endpoint: {url: 'ftp://x'}, arrivals: {poisson: 1}}", "endpoint.url: `ftp://x` is not"),
        ("{endpoint: {url: 'http://x'}}", "arrivals: give exactly one of poisson, constant"),
        (
            "{endpoint: {url: 'http://x'}, arrivals: {poisson: 1, clients: 2}}",
            "arrivals: give exactly one",
        ),
        (
            "{endpoint: {url: 'http://x'}, arrivals: {poisson: 1, duration: 1s, warmup: 1s}}",
            "arrivals.warmup (--warmup): 1s leaves nothing to measure",
        ),
        ("{endpoint: {url: 'http://x'}, arrivals: {poisson: 1, speedUp: 2}}", "belong to a trace"),
        (
            "{endpoint: {url: 'http://x'}, arrivals: {trace: missing.csv}}",
            "arrivals.trace (--trace): `missing.csv`",
        ),
        (
            "{endpoint: {url: 'http://x'}, arrivals: {poisson: 1}, requests: {streamShare: 2}}",
            "requests.streamShare (--stream-share): 2 is not a share",
        ),
        (
            "{endpoint: {url: 'http://x'}, arrivals: {poisson: 1}, requests: {body: {model: a}}}",
            "requests.body (--body): `model` is set by other settings",
        ),
    ] {
        let error = Workload::new(settings(yaml)).expect_err(yaml);
        let error = format!("{error:#}");
        assert!(error.contains(want), "{yaml}: {error}");
    }
}

#[test]
fn a_wrong_field_of_a_scenario_is_named_with_its_line() {
    let folder = std::env::temp_dir().join(format!("forebay-load-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("s.yaml");
    for (yaml, wants) in [
        ("arrivals:\n  poison: 20\n", ["poison", "poisson", "line 2"]),
        ("arrivals:\n  poisson: fast\n", ["`fast` is not a rate", "requests per second", "line 2"]),
        ("arrivals: {duration: soon}\n", ["soon", "duration", "line 1"]),
    ] {
        std::fs::write(&file, yaml).expect("written");
        let error = format!("{:#}", Settings::read(&file).expect_err(yaml));
        for want in wants {
            assert!(error.contains(want), "{yaml}: {error}");
        }
    }
    std::fs::remove_dir_all(&folder).expect("removed");
}

#[test]
fn a_flag_replaces_its_field_and_another_kind_of_arrivals() {
    let file = settings(
        "{endpoint: {url: 'http://a', model: m, headers: ['x-a: 1', 'x-b: 2']},
          arrivals: {poisson: 5, duration: 10s}, requests: {promptTokens: 7}}",
    );
    let flags =
        settings("{endpoint: {url: 'http://b', headers: ['x-a: 3']}, arrivals: {constant: 9}}");
    let merged = flags.over(file);
    let want = settings(
        "{endpoint: {url: 'http://b', model: m, headers: ['x-b: 2', 'x-a: 3']},
          arrivals: {constant: 9, duration: 10s}, requests: {promptTokens: 7}}",
    );
    assert_eq!(merged, want);
}

#[test]
fn the_shipped_scenarios_are_valid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/scenarios/load");
    let mut count = 0;
    for file in std::fs::read_dir(folder).expect("a folder") {
        let path = file.expect("readable").path();
        let settings = Settings::read(&path).unwrap_or_else(|error| panic!("{error:#}"));
        Workload::new(settings).unwrap_or_else(|error| panic!("{}: {error:#}", path.display()));
        count += 1;
    }
    assert!(count >= 4, "{count} scenarios");
}
