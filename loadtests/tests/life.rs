//! How a simulated server starts, stalls, refuses and ends; and that it follows from its seed.

mod common;

use common::{Client, ask, body_shape, chat, eventually, get, head, post, recorded_reply, tiny};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

const ENDLESS: &str = r#","max_tokens":1900,"ignore_eos":true"#;
const ENDLESS_STREAM: &str = r#","max_tokens":1900,"ignore_eos":true,"stream":true"#;

#[tokio::test(start_paused = true)]
async fn connections_are_refused_until_the_cold_start_is_over() {
    let begun = Instant::now();
    let sim = tiny(&["--cold-start=30s"]).await;
    let refused = std::net::TcpStream::connect(sim.addr()).expect_err("not listening");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let taken = std::net::TcpListener::bind(sim.addr());
    assert!(taken.is_err(), "nothing else can take the port meanwhile");
    sim.ready().await;
    let waited = begun.elapsed().as_millis();
    assert!((30_000..=30_001).contains(&waited), "{waited} ms");
    assert_eq!(ask(sim.addr(), &get("/health")).await.code(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_five_seconds_after_its_response() {
    let sim = tiny(&[]).await;
    let begun = Instant::now();
    let mut client = Client::connect(sim.addr()).await;
    client.send(&get("/version")).await;
    assert_eq!(client.reply(false).await.expect("a reply").code(), 200);
    assert_eq!(client.more().await, 0, "closed");
    let waited = begun.elapsed().as_millis();
    assert!((5_000..=5_002).contains(&waited), "{waited} ms");
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let sim = tiny(&[]).await;
    let mut client = Client::connect(sim.addr()).await;
    for _ in 0..3 {
        client.send(&chat("hello", r#","max_tokens":3,"stream":true"#)).await;
        assert!(client.reply(false).await.expect("a stream").body.ends_with("data: [DONE]\n\n"));
        client.send(&get("/health")).await;
        assert_eq!(client.reply(false).await.expect("a reply").code(), 200);
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_sequences_and_is_counted_nowhere() {
    let sim = tiny(&[]).await;
    for (case, fields) in [
        ("stream", ENDLESS_STREAM.to_owned()),
        ("three replies", format!(r#","n":3{ENDLESS_STREAM}"#)),
        ("plain", ENDLESS.to_owned()),
    ] {
        let mut client = Client::connect(sim.addr()).await;
        client.send(&chat("hello", &fields)).await;
        eventually(case, || sim.running() > 0).await;
        drop(client);
        eventually(case, || sim.running() == 0).await;
    }
    // A half-close is a disconnect too.
    let mut client = Client::connect(sim.addr()).await;
    client.send(&chat("hello", ENDLESS_STREAM)).await;
    client.until("data: ").await;
    tokio::io::AsyncWriteExt::shutdown(&mut client.stream).await.expect("open");
    eventually("half-close", || sim.running() == 0).await;
    let page = sim.metrics();
    for reason in ["abort", "length", "stop", "error"] {
        let line = format!(
            r#"vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="tiny"}} 0.0"#
        );
        assert!(page.contains(&line), "{reason}");
    }
}

#[tokio::test]
async fn a_full_queue_is_a_503_or_an_event_in_a_200() {
    let flags = ["--max-num-seqs=1", "--max-num-queued-reqs=1", "--enable-request-id-headers"];
    let sim = tiny(&flags).await;
    let mut running = Client::connect(sim.addr()).await;
    running.send(&chat("one", ENDLESS_STREAM)).await;
    running.until("data: ").await;
    let mut waiting = Client::connect(sim.addr()).await;
    waiting.send(&chat("two", ENDLESS_STREAM)).await;
    waiting.until("text/event-stream").await;
    assert_eq!((sim.running(), sim.waiting()), (1, 1));

    let plain = ask(sim.addr(), &chat("three", "")).await;
    let want = recorded_reply("c-options", "queue_full_503");
    assert_eq!((head(&plain), plain.body), (head(&want), want.body));
    let stream = ask(sim.addr(), &chat("three", r#","stream":true"#)).await;
    let want = recorded_reply("c-options", "queue_full_stream");
    assert_eq!((head(&stream), &stream.chunks), (head(&want), &want.chunks));
    let rejected =
        r#"vllm:admission_rejections_total{model_name="tiny",reason="max_num_queued_reqs"} 2.0"#;
    assert!(sim.metrics().contains(rejected));
}

#[tokio::test]
async fn the_same_seed_gives_the_same_replies_and_another_one_others() {
    let texts = |seed: &'static str| async move {
        let sim = tiny(&[seed]).await;
        let stream = ask(sim.addr(), &chat("hello", r#","stream":true"#)).await;
        let plain = ask(sim.addr(), &chat("hello", "")).await;
        assert_eq!(stream.chat_text(), plain.chat_text());
        plain.chat_text()
    };
    let (one, again, two) =
        (texts("--seed=1").await, texts("--seed=1").await, texts("--seed=2").await);
    assert_eq!(one, again);
    assert_ne!(one, two);
}

#[tokio::test]
async fn a_stop_string_ends_a_reply_before_it() {
    let sim = tiny(&[]).await;
    let whole = ask(sim.addr(), &chat("hello", ENDLESS)).await.chat_text();
    let fields = format!(r#","stop":["gate"]{ENDLESS_STREAM}"#);
    let cut = ask(sim.addr(), &chat("hello", &fields)).await;
    assert_eq!(Some(cut.chat_text().as_str()), whole.split("gate").next());
    let last = cut.events().pop().expect("events")["choices"][0].clone();
    assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&"stop".into(), &"gate".into()));
}

#[tokio::test]
async fn forced_usage_goes_to_every_client() {
    let sim = tiny(&["--enable-force-include-usage"]).await;
    let fields = r#","max_tokens":3,"stream":true,"stream_options":{"include_usage":false}"#;
    let events = ask(sim.addr(), &chat("hello", fields)).await.events();
    assert!(events.iter().all(|event| event["usage"].is_object()));
    let last = events.last().expect("events");
    assert_eq!(last["usage"]["completion_tokens"], 3);
    assert_eq!(last["choices"].as_array().map(Vec::len), Some(0));
}

#[tokio::test]
async fn a_hung_engine_is_healthy_and_says_nothing_until_it_goes_on() {
    let sim = tiny(&["--dev", "--sse-keep-alive-interval=1"]).await;
    let mut before = Client::connect(sim.addr()).await;
    before.send(&chat("one", ENDLESS_STREAM)).await;
    before.until("data: ").await;
    assert_eq!(ask(sim.addr(), &post("/pause?mode=keep", "")).await.code(), 200);
    assert_eq!(ask(sim.addr(), &get("/health")).await.code(), 200);
    let mut after = Client::connect(sim.addr()).await;
    after.send(&chat("two", r#","max_tokens":2,"stream":true"#)).await;
    // Headers at once; nothing but comments while it hangs.
    after.until(": keep-alive\n\n").await;
    assert_eq!((sim.running(), sim.waiting()), (1, 0), "frozen gauges");
    assert_eq!(ask(sim.addr(), &post("/resume", "")).await.code(), 200);
    let reply = after.reply(false).await.expect("a stream");
    assert_eq!(reply.chunks[0], ": keep-alive\n\n");
    assert!(reply.body.ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn abort_requests_cuts_what_is_in_flight_and_counts_it() {
    let sim = tiny(&["--dev"]).await;
    let mut client = Client::connect(sim.addr()).await;
    client.send(&chat("one", ENDLESS_STREAM)).await;
    client.until("data: ").await;
    let aborted = ask(sim.addr(), &post("/abort_requests", "{}")).await;
    assert_eq!(aborted.body, r#"{"status":"aborted","aborted":1}"#);
    let last = client.reply(false).await.expect("a stream").events().pop().expect("events");
    assert_eq!(last["choices"][0]["finish_reason"], "abort");
    let line = r#"finished_reason="abort",model_name="tiny"} 1.0"#;
    assert!(sim.metrics().contains(line));
}

#[tokio::test]
async fn sigterm_fails_or_cuts_requests_as_recorded_and_then_refuses() {
    for (outcome, folder) in [
        ("--sigterm-outcome=error", "b-sigterm-default"),
        ("--sigterm-outcome=abort", "b2-sigterm-default-all-apis"),
    ] {
        let mut sim = tiny(&[outcome]).await;
        let (mut stream, mut plain) =
            (Client::connect(sim.addr()).await, Client::connect(sim.addr()).await);
        stream.send(&chat("one", ENDLESS_STREAM)).await;
        plain.send(&chat("two", ENDLESS)).await;
        stream.until("data: ").await;
        eventually("both run", || sim.running() == 2).await;
        let mut idle = Client::connect(sim.addr()).await;
        sim.terminate();

        let got = stream.reply(false).await.expect("a proper end");
        let want = recorded_reply(folder, "stream1");
        let tail = |reply: &common::Reply| reply.chunks[reply.chunks.len() - 2..].to_vec();
        if folder.starts_with("b-") {
            assert_eq!(tail(&got), tail(&want));
        } else {
            let shapes = (body_shape(&got), body_shape(&want));
            assert_eq!(shapes.0[shapes.0.len() - 2..], shapes.1[shapes.1.len() - 2..]);
        }
        let got = plain.reply(false).await.expect("a proper end");
        let want = recorded_reply(folder, "nonstream");
        assert_eq!(head(&got), head(&want), "{outcome}");

        // For a moment: 500, and 503 on /health.
        idle.send(&chat("new", "")).await;
        let got = idle.reply(false).await.expect("a reply");
        let want = recorded_reply(folder, "new_chat");
        assert_eq!((head(&got), got.body), (head(&want), want.body), "{outcome}");
        assert_eq!(idle.more().await, 0, "closed");

        sim.ended().await.expect("an orderly end");
        assert!(TcpStream::connect(sim.addr()).await.is_err(), "refused");
    }
}

#[tokio::test]
async fn a_draining_server_is_healthy_and_takes_nothing_new() {
    let mut sim = tiny(&["--shutdown-timeout=60"]).await;
    let mut stream = Client::connect(sim.addr()).await;
    stream.send(&chat("one", r#","max_tokens":500,"ignore_eos":true,"stream":true"#)).await;
    stream.until("data: ").await;
    sim.terminate();
    eventually("draining", || {
        sim.metrics().contains("num_requests_running{engine=\"0\",model_name=\"tiny\"} 1.0")
    })
    .await;
    let mut client = Client::connect(sim.addr()).await;
    let want = recorded_reply("d-sigterm-drain20", "new_chat");
    // The signal takes a moment to arrive.
    let got = loop {
        let got = ask(sim.addr(), &chat("new", r#","max_tokens":1"#)).await;
        if got.code() == 500 {
            break got;
        }
    };
    assert_eq!((head(&got), got.body), (head(&want), want.body));
    let got = ask(sim.addr(), &chat("new", r#","stream":true"#)).await;
    let want = recorded_reply("d2-sigterm-drain4-too-long", "new_chatstream");
    assert_eq!((head(&got), got.body), (head(&want), want.body));
    client.send(&get("/health")).await;
    assert_eq!(client.reply(false).await.expect("a reply").code(), 200);

    let reply = stream.reply(false).await.expect("the whole stream");
    let last = reply.events().pop().expect("events");
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    sim.ended().await.expect("an orderly end");
    assert!(TcpStream::connect(sim.addr()).await.is_err(), "refused");
}

#[tokio::test]
async fn a_drain_that_takes_too_long_leaves_connections_open_and_silent() {
    let mut sim = tiny(&["--shutdown-timeout=1", "--decode-step-ms=200"]).await;
    let mut stream = Client::connect(sim.addr()).await;
    stream.send(&chat("one", ENDLESS_STREAM)).await;
    stream.until("data: ").await;
    sim.terminate();
    let address = sim.addr();
    let deadline = Instant::now() + common::PATIENCE;
    while TcpStream::connect(address).await.is_ok() {
        assert!(Instant::now() < deadline, "still listening");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    while tokio::time::timeout(Duration::from_millis(500), stream.more()).await.is_ok_and(|n| n > 0)
    {
    }
    let silent = tokio::time::timeout(Duration::from_millis(500), stream.more()).await;
    assert!(silent.is_err(), "no byte and no end: {silent:?}");
    let still = tokio::time::timeout(Duration::from_millis(50), sim.ended()).await;
    assert!(still.is_err(), "the process stays until its last client leaves");
    drop(stream);
    sim.ended().await.expect("an orderly end");
}

#[tokio::test]
async fn a_dead_engine_fails_streams_within_their_200() {
    let mut sim = tiny(&[]).await;
    let mut stream = Client::connect(sim.addr()).await;
    stream.send(&chat("one", ENDLESS_STREAM)).await;
    stream.until("data: ").await;
    let mut new = Client::connect(sim.addr()).await;
    sim.crash();
    let reply = stream.reply(false).await.expect("a proper end");
    let want = recorded_reply("g-worker-killed", "new_chatstream");
    assert_eq!(reply.chunks[reply.chunks.len() - 2..], want.chunks);
    new.send(&chat("two", r#","stream":true"#)).await;
    let reply = new.reply(false).await.expect("a reply");
    assert_eq!((head(&reply), &reply.chunks), (head(&want), &want.chunks));
    sim.ended().await.expect("an orderly end");
}

#[tokio::test]
async fn killing_it_ends_streams_in_the_middle() {
    let sim = tiny(&[]).await;
    let address = sim.addr();
    let mut stream = Client::connect(address).await;
    stream.send(&chat("one", ENDLESS_STREAM)).await;
    stream.until("data: ").await;
    sim.kill().await;
    assert!(stream.reply(false).await.is_none(), "no proper end");
    assert!(TcpStream::connect(address).await.is_err(), "refused");
}

#[tokio::test]
async fn a_form_with_audio_is_transcribed() {
    let sim = tiny(&[]).await;
    let body = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\ntiny\r\n--b\r\n\
        Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFFdata\r\n--b--\r\n";
    let request = format!(
        "POST /v1/audio/transcriptions HTTP/1.1\r\nHost: sim\r\n\
         Content-Type: multipart/form-data; boundary=b\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let reply = ask(sim.addr(), request.as_bytes()).await;
    assert_eq!((reply.code(), &reply.json()["usage"]["seconds"]), (200, &1.into()));
    assert!(reply.json()["text"].as_str().is_some_and(|text| !text.is_empty()));
}
