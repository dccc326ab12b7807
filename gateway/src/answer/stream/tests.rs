use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::answer::failure::Cause;
use crate::answer::judge::Finish;
use crate::answer::meter::Tokens;
use crate::answer::plain::{AnswerHead, PlainAnswer, PlainEnd};
use http::StatusCode;
use proptest::prelude::*;

/// One recorded answer of a real server.
struct Recorded {
    name: String,
    api: Api,
    status: u16,
    stream: bool,
    body: Bytes,
}

/// All recorded answers of the inference APIs, but those of which no byte arrived.
fn recorded() -> Vec<Recorded> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../loadtests/fixtures/vllm");
    let list = |dir: &Path| {
        let mut paths: Vec<_> = std::fs::read_dir(dir)
            .expect("fixtures")
            .map(|entry| entry.expect("entry").path())
            .collect();
        paths.sort();
        paths
    };
    let folders = list(&root).into_iter().filter(|path| path.is_dir());
    let found: Vec<_> = folders
        .flat_map(|folder| list(&folder))
        .filter(|path| path.extension().is_some_and(|ext| ext == "resp"))
        .filter_map(|path| read_recorded(&root, &path))
        .collect();
    assert!(found.len() > 150, "only {} fixtures", found.len());
    found
}

fn read_recorded(root: &Path, path: &Path) -> Option<Recorded> {
    let name = path.strip_prefix(root).ok()?.with_extension("").to_string_lossy().into_owned();
    let request = std::fs::read(path.with_extension("req")).unwrap_or_default();
    let line = String::from_utf8_lossy(request.split(|b| *b == b'\r').next()?).into_owned();
    let target = match line.split(' ').nth(1) {
        Some(target) => target.to_owned(),
        // These were recorded without their requests.
        None if name.contains("/new_chat") || name.contains("/queue_full") => {
            "/v1/chat/completions".to_owned()
        }
        None => return None,
    };
    let api = Api::of(&target)?;
    let response = std::fs::read(path).expect("a fixture");
    let head_end = memchr::memmem::find(&response, b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&response[..head_end]).to_ascii_lowercase();
    let status = head.get(9..12)?.parse().ok()?;
    if status < 200 {
        return None;
    }
    let raw = &response[head_end + 4..];
    let body =
        if head.contains("transfer-encoding: chunked") { unchunk(raw) } else { raw.to_vec() };
    let stream = head.contains("text/event-stream");
    Some(Recorded { name, api, status, stream, body: body.into() })
}

/// The part of a chunked body that arrived; it may be cut anywhere.
fn unchunk(mut raw: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = memchr::memmem::find(raw, b"\r\n") {
        let size = std::str::from_utf8(&raw[..end]).expect("a chunk's size");
        let size = usize::from_str_radix(size, 16).expect("a chunk's size");
        raw = &raw[end + 2..];
        body.extend_from_slice(&raw[..size.min(raw.len())]);
        if size == 0 || raw.len() < size + 2 {
            break;
        }
        raw = &raw[size + 2..];
    }
    body
}

/// The course of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Completed,
    Client(u16),
    /// Failed before anything went out.
    Retried(Cause),
    /// Failed after something went out.
    Broken(Cause),
}

/// The result of relaying a stream.
#[derive(Debug, PartialEq)]
struct RelayedStream {
    course: Course,
    out: Vec<u8>,
    tokens: Tokens,
    gaps: u64,
}

fn relay(api: Api, strip: bool, pieces: impl IntoIterator<Item = Bytes>) -> RelayedStream {
    let (mut answer, now, mut out) =
        (AnswerStream::new(api, strip, None), Instant::now(), Vec::new());
    let mut course = None;
    for piece in pieces {
        match answer.feed(piece, now) {
            Step::Hold => assert!(course.is_some() || !answer.committed()),
            Step::Pass(pieces) => {
                pieces.into_iter().for_each(|piece| out.extend_from_slice(&piece))
            }
            Step::Retry(failure) => {
                assert!(!answer.committed() && out.is_empty());
                course = Some(Course::Retried(failure.cause));
            }
            Step::Failed(pieces, failure) => {
                assert!(answer.committed());
                pieces.into_iter().for_each(|piece| out.extend_from_slice(&piece));
                course = Some(Course::Broken(failure.cause));
            }
        }
        if course.is_some() {
            break;
        }
    }
    let (rest, end) = answer.end(now);
    rest.into_iter().for_each(|piece| out.extend_from_slice(&piece));
    let course = course.unwrap_or(match end {
        StreamEnd::Complete => Course::Completed,
        StreamEnd::Client(status) => Course::Client(status),
        StreamEnd::Failed(failure) if answer.committed() => Course::Broken(failure.cause),
        StreamEnd::Failed(failure) => Course::Retried(failure.cause),
    });
    RelayedStream { course, out, tokens: answer.meter.tokens(), gaps: answer.meter.itl.count() }
}

fn plain(recorded: &Recorded) -> (Course, Tokens) {
    let status = StatusCode::from_u16(recorded.status).expect("a status");
    let head = AnswerHead { status, json: true, framed: true };
    let mut answer = PlainAnswer::new(recorded.api, head, 1 << 20);
    let (one, two) = recorded.body.split_at(recorded.body.len() / 2);
    assert!(answer.feed(Bytes::copy_from_slice(one)).is_empty());
    assert!(answer.feed(Bytes::copy_from_slice(two)).is_empty());
    match answer.end() {
        PlainEnd::Answered(body, tokens) => {
            assert_eq!(body, recorded.body);
            (Course::Completed, tokens)
        }
        PlainEnd::Client(body) => {
            assert_eq!(body, recorded.body);
            (Course::Client(recorded.status), Tokens::default())
        }
        PlainEnd::Retry(failure) => (Course::Retried(failure.cause), Tokens::default()),
    }
}

#[test]
fn every_recorded_answer_is_judged_correctly() {
    use Cause::{Aborted, EngineDead, QueueFull, ShuttingDown, Truncated};
    use Course::{Broken, Retried};
    // An answer that is not listed is completed, or refused with its status.
    let mut bad = BTreeMap::from([
        ("b-sigterm-default/new_chat", Retried(EngineDead)),
        ("b-sigterm-default/nonstream", Retried(EngineDead)),
        ("b-sigterm-default/stream1", Broken(EngineDead)),
        ("b-sigterm-default/stream2", Broken(EngineDead)),
        ("b2-sigterm-default-all-apis/completion_stream", Broken(Aborted)),
        ("b2-sigterm-default-all-apis/messages_nonstream", Retried(Aborted)),
        ("b2-sigterm-default-all-apis/messages_stream", Broken(Aborted)),
        ("b2-sigterm-default-all-apis/new_chat", Retried(EngineDead)),
        ("b2-sigterm-default-all-apis/nonstream", Retried(Aborted)),
        ("b2-sigterm-default-all-apis/stream1", Broken(Aborted)),
        ("b2-sigterm-default-all-apis/stream2", Broken(Aborted)),
        ("c-options/queue_full_503", Retried(QueueFull)),
        ("c-options/queue_full_stream", Retried(QueueFull)),
        ("d-sigterm-drain20/new_chat", Retried(ShuttingDown)),
        ("d2-sigterm-drain4-too-long/messages_stream", Broken(Truncated)),
        ("d2-sigterm-drain4-too-long/new_chat", Retried(ShuttingDown)),
        ("d2-sigterm-drain4-too-long/new_chatstream", Retried(ShuttingDown)),
        ("e-auth-lora-dev/inflight_abort_requests_stream", Broken(Aborted)),
        ("e-auth-lora-dev/inflight_pause_abort_nonstream", Retried(Aborted)),
        ("e-auth-lora-dev/inflight_pause_abort_stream", Broken(Aborted)),
        ("e-auth-lora-dev/inflight_sleep_stream", Broken(Aborted)),
        ("g-worker-killed/new_chat", Retried(EngineDead)),
        ("g-worker-killed/new_chatstream", Retried(EngineDead)),
        ("g-worker-killed/nonstream", Retried(EngineDead)),
        ("g-worker-killed/stream1", Broken(EngineDead)),
        ("g-worker-killed/stream2", Broken(EngineDead)),
        ("j-api-server-sigkill/stream1", Broken(Truncated)),
        ("j-api-server-sigkill/stream2", Broken(Truncated)),
    ]);
    let mut wrong = Vec::new();
    for recorded in recorded() {
        let course = match recorded.stream {
            true => relay(recorded.api, false, [recorded.body.clone()]).course,
            false => plain(&recorded).0,
        };
        let sound = match recorded.status {
            200..400 => Course::Completed,
            status => Course::Client(status),
        };
        let want = bad.remove(recorded.name.as_str()).unwrap_or(sound);
        if course != want {
            wrong.push(format!("{}: {course:?}, not {want:?}", recorded.name));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(bad.is_empty(), "not among the fixtures: {bad:?}");
}

#[test]
fn tokens_are_the_servers_own_wherever_it_reports_them() {
    let all: BTreeMap<_, _> =
        recorded().into_iter().map(|recorded| (recorded.name.clone(), recorded)).collect();
    let (length, mut wrong) = (vec![Finish::Length], Vec::new());
    for (name, prompt, cached, generated, exact, finishes) in [
        ("a-default/chat_stream", None, None, 8, false, &length),
        ("a-default/chat_stream_usage", Some(21), None, 8, true, &length),
        ("a-default/chat_stream_usage_continuous", Some(21), None, 8, true, &length),
        ("a-default/chat_stream_n2", Some(21), None, 10, true, &vec![Finish::Length; 2]),
        ("a-default/chat_stream_eos_bias", None, None, 1, false, &vec![Finish::Stop]),
        ("a-default/completion_stream_usage", Some(6), None, 8, true, &length),
        (
            "a-default/completion_batch_prompts_stream",
            None,
            None,
            6,
            false,
            &vec![Finish::Length; 2],
        ),
        ("a-default/messages_stream", Some(14), None, 6, true, &length),
        ("a-default/responses_stream", Some(14), Some(0), 6, true, &length),
        ("a-default/chat_n2", Some(21), None, 10, true, &vec![Finish::Length; 2]),
        ("a-default/messages", Some(14), None, 6, true, &length),
        ("a-default/responses", Some(14), Some(0), 6, true, &length),
        ("a-default/tokenize", None, None, 0, false, &vec![]),
        ("c-options/chat_tool_named_stream", Some(168), Some(0), 39, true, &vec![Finish::Stop]),
        ("c-options/cached_tokens_2", Some(612), Some(512), 2, true, &length),
        ("e-auth-lora-dev/chat_forced_usage_stream", Some(21), None, 8, true, &length),
        (
            "e-auth-lora-dev/inflight_pause_abort_stream",
            Some(21),
            None,
            90,
            true,
            &vec![Finish::Abort],
        ),
        ("h-embeddings/rerank", Some(3), None, 0, true, &vec![]),
        ("h-embeddings/embeddings", Some(3), None, 0, true, &vec![]),
    ] {
        let recorded = &all[name];
        let tokens = match recorded.stream {
            true => relay(recorded.api, false, [recorded.body.clone()]).tokens,
            false => plain(recorded).1,
        };
        let want = Tokens { prompt, cached, generated, exact, finishes: finishes.clone() };
        if tokens != want {
            wrong.push(format!("{name}: {tokens:?}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The stream as the server sends it if no usage is requested: without a usage chunk, and with the
/// fingerprint in the last chunk of the last choice. Made in another way than `AnswerStream` does.
fn without_usage(body: &[u8]) -> Vec<u8> {
    let text = String::from_utf8(body.to_vec()).expect("text");
    let mut events: Vec<String> = text.split_inclusive("\n\n").map(str::to_owned).collect();
    if let Some(at) = events.iter().position(|event| event.contains("\"choices\":[],\"usage\":{")) {
        let usage = events.remove(at);
        let stamp = usage.split(",\"system_fingerprint\":").nth(1).expect("its fingerprint");
        let stamp = stamp.split(['}', ',']).next().expect("a text");
        let last = &mut events[at - 1];
        *last = last.replace("}]}\n\n", &format!("}}],\"system_fingerprint\":{stamp}}}\n\n"));
    }
    events.concat().into_bytes()
}

#[test]
fn the_usage_chunk_is_removed_to_the_byte_and_only_where_the_gateway_requested_it() {
    let mut stripped = 0;
    for recorded in recorded().iter().filter(|recorded| recorded.stream) {
        let whole = || [recorded.body.clone()];
        let (kept, cut) = (relay(recorded.api, false, whole()), relay(recorded.api, true, whole()));
        assert_eq!((&kept.tokens, kept.course), (&cut.tokens, cut.course), "{}", recorded.name);
        if let Course::Completed | Course::Client(_) = kept.course {
            assert_eq!(kept.out, recorded.body, "{}", recorded.name);
            // This client gets usage with each part, whether or not the gateway requests any.
            let forced = memchr::memmem::find(&recorded.body, b"}],\"usage\":{").is_some();
            let want = if forced { kept.out } else { without_usage(&recorded.body) };
            stripped += u32::from(want.len() < recorded.body.len());
            assert_eq!(cut.out, want, "{}", recorded.name);
        }
    }
    assert!(stripped > 5, "{stripped} fixtures with a usage chunk");
}

#[test]
fn a_stream_with_usage_becomes_the_stream_that_was_recorded_without() {
    let all: BTreeMap<_, _> =
        recorded().into_iter().map(|recorded| (recorded.name.clone(), recorded)).collect();
    // Each was recorded twice, with the same seed: the ids and the seconds differ.
    let parts = |body: &[u8]| {
        let text = String::from_utf8(body.to_vec()).expect("text");
        let of = |key: &str, end: char| {
            let rest = &text[text.find(key).expect("a first chunk") + key.len()..];
            rest[..rest.find(end).expect("its end")].to_owned()
        };
        (of("\"id\":\"", '"'), of("\"created\":", ','), text)
    };
    for (with, without) in [
        ("a-default/chat_stream_usage", "a-default/chat_stream"),
        ("a-default/completion_stream_usage", "a-default/completion_stream"),
    ] {
        let (with, without) = (&all[with], &all[without]);
        let out = relay(with.api, true, [with.body.clone()]).out;
        let ((id, created, out), (other, then, want)) = (parts(&out), parts(&without.body));
        let out = out.replace(&id, &other).replace(&created, &then);
        assert_eq!(out, want, "{}", with.name);
    }
}

#[test]
fn choices_that_end_at_different_times_get_the_fingerprint_known_from_before() {
    let all = recorded();
    let find = |name: &str| all.iter().find(|recorded| recorded.name == name).expect("recorded");
    let without = find("a-default/completion_stream_n2");
    let text = String::from_utf8(without.body.to_vec()).expect("text");
    let stamp = ",\"system_fingerprint\":\"vllm-0.32.0-bb9e77f2\"";
    assert_eq!(text.matches(stamp).count(), 2, "one for each choice");
    let usage = format!("data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":6}}{stamp}}}\n\n");
    let with = text.replace(stamp, "").replace("data: [DONE]", &format!("{usage}data: [DONE]"));
    let relayed = |known: Option<Fingerprint>| {
        let mut answer = AnswerStream::new(Api::Completions, true, known);
        let Step::Pass(out) = answer.feed(with.clone().into(), Instant::now()) else { panic!() };
        (out.flatten().collect::<Vec<u8>>(), answer.fingerprint().cloned())
    };
    let (first, learned) = relayed(None);
    assert_eq!(
        first,
        text.replacen(stamp, "", 1).into_bytes(),
        "the first choice ends before the fingerprint is known"
    );
    assert_eq!(relayed(learned).0, without.body);
}

#[test]
fn the_last_chunk_of_a_choice_goes_out_whatever_comes_after_it() {
    let last = "data: {\"choices\":[{\"text\":\"a\",\"finish_reason\":\"stop\"}]}\n\n";
    let error = "data: {\"error\":{\"message\":\"no\",\"code\":500}}\n\n";
    let stamped =
        "data: {\"choices\":[{\"finish_reason\":\"stop\"}],\"system_fingerprint\":\"a\"}\n\n";
    for (case, after, want) in [
        ("the end", "data: [DONE]\n\n", [last, "data: [DONE]\n\n"].concat()),
        ("nothing", "", last.to_owned()),
        ("half an event", "data: {\"choi", last.to_owned()),
        ("an error", error, last.to_owned()),
        ("another choice", last, last.repeat(2)),
        ("a chunk with a fingerprint", stamped, [last, stamped].concat()),
    ] {
        let outcome = relay(Api::Completions, true, [last.into(), Bytes::from(after)]);
        assert_eq!(outcome.out, want.as_bytes(), "{case}");
    }
    let mut answer = AnswerStream::new(Api::Completions, true, None);
    assert_eq!(answer.feed(last.into(), Instant::now()), Step::Pass(Rope::default()));
    let mut out = Rope::default();
    answer.take_last_chunk(&mut out);
    assert_eq!(out.flatten().collect::<Vec<u8>>(), last.as_bytes());
}

#[test]
fn whole_frames_go_through_without_a_copy() {
    let hello = Bytes::from_static(b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n");
    let (mut answer, now) = (AnswerStream::new(Api::Completions, true, None), Instant::now());
    for _ in 0..2 {
        let Step::Pass(pieces) = answer.feed(hello.clone(), now) else { panic!("committed") };
        let pieces: Vec<_> = pieces.into_iter().collect();
        assert_eq!((pieces.len(), pieces[0].as_ptr()), (1, hello.as_ptr()));
    }
}

#[test]
fn nothing_goes_out_before_the_first_output() {
    let now = Instant::now();
    let mut answer = AnswerStream::new(Api::Messages, false, None);
    let opening =
        "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{}}\n\n: ping\n\n";
    assert_eq!(answer.feed(opening.into(), now), Step::Hold);
    let part = "event: content_block_delta\ndata: {\"delta\":";
    assert_eq!(answer.feed(part.into(), now), Step::Hold);
    assert!(!answer.committed());
    let rest = "{\"type\":\"text_delta\",\"text\":\"a\"}}\n\nevent: half";
    let Step::Pass(pieces) = answer.feed(rest.into(), now) else { panic!("committed") };
    let out: Vec<u8> = pieces.into_iter().flatten().collect();
    assert_eq!(String::from_utf8_lossy(&out), [opening, part, &rest[..rest.len() - 11]].concat());
    let (left, end) = answer.end(now);
    assert!(left.is_empty(), "half an event would garble the error event");
    assert!(matches!(end, StreamEnd::Failed(failure) if failure.cause == Cause::Truncated));
}

#[test]
fn a_failure_after_the_commit_keeps_the_events_before_it() {
    let text = "data: {\"choices\":[{\"text\":\"a\"}]}\n\n";
    let error =
        "data: {\"error\": {\"message\": \"EngineCore\", \"code\": 500}}\n\ndata: [DONE]\n\n";
    let mut answer = AnswerStream::new(Api::Completions, false, None);
    let step = answer.feed(format!("{text}{error}").into(), Instant::now());
    let Step::Failed(pieces, failure) = step else { panic!("{step:?}") };
    assert_eq!(pieces.into_iter().collect::<Vec<_>>(), [text]);
    assert_eq!((failure.cause, failure.status), (Cause::EngineDead, 500));
    assert_eq!(answer.feed("data: [DONE]\n\n".into(), Instant::now()), Step::Hold);
    assert!(matches!(answer.end(Instant::now()).1, StreamEnd::Failed(_)));
}

#[test]
fn a_clients_own_error_in_a_stream_goes_through_unchanged() {
    let text = "data: {\"error\": {\"message\": \"no\", \"code\": 400}}\n\ndata: [DONE]\n\n";
    let outcome = relay(Api::ChatCompletions, true, [text.into()]);
    assert_eq!((outcome.course, outcome.out), (Course::Client(400), text.into()));
}

#[test]
fn an_end_mark_counts_without_its_blank_line() {
    let text = "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: [DONE]";
    let outcome = relay(Api::Completions, false, [text.into()]);
    assert_eq!((outcome.course, outcome.out), (Course::Completed, text.into()));
}

#[test]
fn error_events_of_responses_go_on_counting() {
    let mut answer = AnswerStream::new(Api::Responses, false, None);
    let events = "event: response.created\ndata: {}\n\n: c\n\nevent: x.delta\ndata: {}\n\n";
    answer.feed(events.into(), Instant::now());
    let event = answer.error_event(500, "InternalServerError", "broke off");
    assert!(memchr::memmem::find(&event, b"\"sequence_number\":2").is_some());
}

#[test]
fn times_are_those_of_the_events() {
    let start = Instant::now();
    let text = Bytes::from_static(b"data: {\"choices\":[{\"text\":\"a\"}]}\n\n");
    let mut answer = AnswerStream::new(Api::Completions, false, None);
    answer.feed(Bytes::from_static(b": keep-alive\n\n"), start);
    for ms in [100, 120, 150] {
        answer.feed(text.clone(), start + Duration::from_millis(ms));
    }
    let meter = &answer.meter;
    assert_eq!(meter.first_token(), Some(start + Duration::from_millis(100)));
    assert_eq!((meter.itl.count(), meter.per_token()), (2, Some(Duration::from_millis(25))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_result_does_not_depend_on_how_the_bytes_are_cut(
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
        strip: bool,
    ) {
        use std::sync::OnceLock;
        static STREAMS: OnceLock<Vec<Recorded>> = OnceLock::new();
        let streams = STREAMS.get_or_init(|| {
            let short = |recorded: &Recorded| recorded.stream && recorded.body.len() < 100_000;
            recorded().into_iter().filter(short).collect()
        });
        for Recorded { name, api, body, .. } in streams {
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.extend([0, body.len()]);
            cuts.sort_unstable();
            let pieces = cuts.windows(2).map(|cut| body.slice(cut[0]..cut[1]));
            let (cut, whole) = (relay(*api, strip, pieces), relay(*api, strip, [body.clone()]));
            prop_assert_eq!(&cut, &whole, "{}", name);
        }
    }
}
