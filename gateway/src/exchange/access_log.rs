//! The access log: one line for each request, at its end.
//!
//! JSON goes to the log's output directly, since the general way of a log event takes several times
//! as long. The other forms go the general way.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_base::output::Output;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::answer::judge::Finish;
use crate::answer::meter::Tokens;
use crate::answer::traffic::Traffic;
use crate::exchange::progress::{Conclusion, RequestProgress, Seams};
use crate::read::context::RequestContext;
use crate::text::json::plain_until;
use crate::text::stack::StackText;

use sentence::Sentence;

mod sentence;

/// The form of the access log's lines.
pub enum AccessLogForm {
    /// JSON, written to this output.
    Json(Output),
    /// Events of the target `forebay::access`, each with the request's fields as its message.
    Fields,
    /// Events of this target, each with a sentence as its message.
    Sentence,
}

/// The form once it is set; [`AccessLogForm::Fields`] before.
static FORM: OnceLock<AccessLogForm> = OnceLock::new();

/// Sets the form of the access log. Its lines are written while the target `forebay::access` is
/// enabled. Only the first call has an effect.
pub fn set_access_log_form(form: AccessLogForm) {
    let _ = FORM.set(form);
}

/// One line of the access log.
pub(crate) struct Line<'a> {
    pub(crate) context: &'a RequestContext,
    pub(crate) pool: Option<&'a str>,
    pub(crate) progress: &'a RequestProgress,
    pub(crate) conclusion: Conclusion,
    pub(crate) tokens: &'a Tokens,
    /// The mean time for each token after the first.
    pub(crate) per_token: Option<Duration>,
    /// The traffic of a WebSocket session.
    pub(crate) session: Option<&'a Traffic>,
    pub(crate) took: Duration,
}

/// The value of a field.
enum FieldValue<'a> {
    /// A text that needs no quotes outside of JSON, unless it has one itself.
    Plain(&'a [u8]),
    Text(&'a str),
    Count(u64),
    Number(f64),
    Flag(bool),
}

thread_local! {
    /// The line that is being written.
    static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// The second of the last line, and its text.
    static SECOND: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
}

impl Line<'_> {
    pub(crate) fn write(&self) {
        if !tracing::enabled!(target: "forebay::access", tracing::Level::INFO) {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            match FORM.get() {
                Some(AccessLogForm::Json(output)) => {
                    self.json(line, SystemTime::now());
                    output.write(line);
                }
                Some(AccessLogForm::Sentence) => {
                    tracing::info!(target: "forebay::access", "{}", Sentence(self));
                }
                Some(AccessLogForm::Fields) | None => {
                    self.text(line);
                    let line = String::from_utf8_lossy(line);
                    tracing::info!(target: "forebay::access", "{line}");
                }
            }
        });
    }

    /// Calls `field` with each field that applies, in order.
    fn each_field(&self, mut field: impl FnMut(&'static str, FieldValue<'_>)) {
        let Self { context, progress, conclusion, tokens, session, .. } = self;
        let ms = |time: Duration| FieldValue::Count(time.as_millis() as u64);
        let to_first_token =
            |from: Instant| progress.first_token.map(|at| ms(at.saturating_duration_since(from)));
        field("request_id", FieldValue::Plain(context.id.as_bytes()));
        field("trace_id", FieldValue::Plain(&context.trace.id().hex()));
        if let Some(address) = context.client.address {
            let mut text = StackText::<45>::new();
            text.ip(address);
            field("client", FieldValue::Plain(text.as_bytes()));
        }
        field("method", FieldValue::Plain(context.method.as_str().as_bytes()));
        field("path", FieldValue::Plain(context.path().as_bytes()));
        field("tenant", FieldValue::Plain(context.tenant.as_bytes()));
        let mut given = |name, value: Option<FieldValue<'_>>| {
            value.into_iter().for_each(|value| field(name, value));
        };
        given("pool", self.pool.map(FieldValue::Text));
        given("model", context.model.as_deref().map(FieldValue::Text));
        if let Some(endpoint) = progress.endpoint {
            let mut text = StackText::<64>::new();
            text.socket(endpoint);
            given("endpoint", Some(FieldValue::Plain(text.as_bytes())));
        }
        given("status", conclusion.status.map(|status| FieldValue::Count(status.into())));
        given("outcome", Some(FieldValue::Text(conclusion.outcome.name())));
        given("reason", conclusion.reason.map(FieldValue::Text));
        given("stream", Some(FieldValue::Flag(context.stream)));
        given("seq", Some(FieldValue::Count(progress.seq)));
        given("tries", Some(FieldValue::Count(progress.tries.into())));
        given("hold_ms", Some(ms(progress.held().unwrap_or_default())));
        given("ttft_ms", to_first_token(context.accepted));
        given("upstream_ttft_ms", progress.released.and_then(to_first_token));
        given("itl_ms", self.per_token.map(|time| FieldValue::Number(time.as_secs_f64() * 1e3)));
        let Seams { continued, moved, paused, held } = progress.seams;
        if continued > 0 {
            given("continued", Some(FieldValue::Count(continued.into())));
            given("moved", (moved > 0).then(|| FieldValue::Count(moved.into())));
            given("paused_ms", Some(ms(paused)));
            given("paused_held_ms", Some(ms(held)));
        }
        given("took_ms", Some(ms(self.took)));
        given("prompt_tokens", tokens.prompt.map(FieldValue::Count));
        given("cached_tokens", tokens.cached.map(FieldValue::Count));
        given("generated_tokens", Some(FieldValue::Count(tokens.generated)));
        match tokens.finishes.as_slice() {
            [] => {}
            [only] => given("finish", Some(FieldValue::Text(only.name()))),
            more => {
                let names: Vec<_> = more.iter().map(|finish| Finish::name(*finish)).collect();
                given("finish", Some(FieldValue::Text(&names.join(","))));
            }
        }
        if let Some(Traffic { client, replica }) = session {
            given("client_messages", Some(FieldValue::Count(client.messages())));
            given("client_bytes", Some(FieldValue::Count(client.bytes())));
            given("replica_messages", Some(FieldValue::Count(replica.messages())));
            given("replica_bytes", Some(FieldValue::Count(replica.bytes())));
        }
    }

    /// Appends the line as the log's other lines in JSON are written.
    fn json(&self, line: &mut Vec<u8>, now: SystemTime) {
        line.extend_from_slice(b"{\"timestamp\":\"");
        push_time(line, now);
        line.extend_from_slice(b"\",\"level\":\"INFO\"");
        self.each_field(|name, value| {
            line.extend_from_slice(b",\"");
            line.extend_from_slice(name.as_bytes());
            line.extend_from_slice(b"\":");
            match value {
                FieldValue::Plain(text) => push_quoted(line, text),
                FieldValue::Text(text) => push_quoted(line, text.as_bytes()),
                other => push_value(line, &other),
            }
        });
        line.extend_from_slice(b",\"target\":\"forebay::access\"}\n");
    }

    /// Appends the fields as the log's other lines in text are written.
    fn text(&self, line: &mut Vec<u8>) {
        self.each_field(|name, value| {
            if !line.is_empty() {
                line.push(b' ');
            }
            line.extend_from_slice(name.as_bytes());
            line.push(b'=');
            match value {
                FieldValue::Plain(text) if text.contains(&b'"') => {
                    let text = String::from_utf8_lossy(text);
                    line.extend_from_slice(format!("{text:?}").as_bytes());
                }
                FieldValue::Plain(text) => line.extend_from_slice(text),
                FieldValue::Text(text) => line.extend_from_slice(format!("{text:?}").as_bytes()),
                other => push_value(line, &other),
            }
        });
    }
}

/// Appends a value that is not a text.
fn push_value(line: &mut Vec<u8>, value: &FieldValue<'_>) {
    match value {
        FieldValue::Plain(_) | FieldValue::Text(_) => {}
        FieldValue::Count(count) => {
            let mut text = StackText::<20>::new();
            text.number(*count);
            line.extend_from_slice(text.as_bytes());
        }
        FieldValue::Number(number) => line.extend_from_slice(number.to_string().as_bytes()),
        FieldValue::Flag(flag) => line.extend_from_slice(if *flag { b"true" } else { b"false" }),
    }
}

/// Appends a string of JSON.
fn push_quoted(line: &mut Vec<u8>, text: &[u8]) {
    line.push(b'"');
    let mut at = 0;
    loop {
        let end = plain_until(text, at);
        line.extend_from_slice(&text[at..end]);
        match text.get(end) {
            None => break,
            Some(byte @ (b'"' | b'\\')) => line.extend_from_slice(&[b'\\', *byte]),
            Some(byte) => {
                line.extend_from_slice(b"\\u00");
                let mut hex = StackText::<2>::new();
                hex.hex(&[*byte]);
                line.extend_from_slice(hex.as_bytes());
            }
        }
        at = end + 1;
    }
    line.push(b'"');
}

/// Appends a time as in `2026-11-26T21:49:10.123456Z`.
fn push_time(line: &mut Vec<u8>, time: SystemTime) {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    SECOND.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            *second = since.as_secs();
            text.clear();
            let at =
                i64::try_from(since.as_secs()).ok().and_then(|at| Timestamp::from_second(at).ok());
            let _ = write!(text, "{}", at.unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%S."));
        }
        line.extend_from_slice(text.as_bytes());
    });
    let mut micros = StackText::<7>::new();
    micros.number(1_000_000 + u64::from(since.subsec_micros()));
    line.extend_from_slice(&micros.as_bytes()[1..]);
    line.push(b'Z');
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::Request;
    use serde_json::{Value, json};

    use super::*;
    use crate::answer::outcome::Outcome;
    use crate::net::socket::ClientSocket;
    use crate::read::context::Client;
    use crate::read::head::ClientHead;
    use crate::read::request_id::RequestId;

    pub(super) fn written(write: impl FnOnce(&Line<'_>)) {
        let request = Request::post("/v1/completions?a=b")
            .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
            .body(())
            .expect("valid");
        let mut head = ClientHead::known(request.into_parts().0);
        head.own.id = RequestId::Client(http::HeaderValue::from_static(r#"a"b\c"#));
        let peer = IpAddr::from([10, 0, 0, 1]);
        let client = Client { socket: ClientSocket::unwatched(), address: Some(peer) };
        let mut context = RequestContext::new(&head, client);
        context.set_model(Some("two\nlines".into())).expect("short");
        let conclusion =
            Conclusion { outcome: Outcome::Completed, status: Some(200), reason: None };
        let finishes = vec![Finish::Stop, Finish::Length];
        let tokens = Tokens { prompt: Some(9), generated: 7, finishes, ..Tokens::default() };
        write(&Line {
            context: &context,
            pool: Some("p"),
            progress: &RequestProgress::default(),
            conclusion,
            tokens: &tokens,
            per_token: Some(Duration::from_micros(1500)),
            session: None,
            took: Duration::from_millis(12),
        });
    }

    #[test]
    fn a_line_in_json_has_each_field_that_applies() {
        let mut line = Vec::new();
        let time = UNIX_EPOCH + Duration::from_micros(1_795_729_750_000_042);
        written(|written| written.json(&mut line, time));
        assert_eq!(line.pop(), Some(b'\n'));
        let want = json!({
            "timestamp": "2026-11-26T21:49:10.000042Z", "level": "INFO",
            "request_id": "a\"b\\c", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "client": "10.0.0.1", "method": "POST",
            "path": "/v1/completions", "tenant": "anonymous", "pool": "p", "model": "two\nlines",
            "status": 200, "outcome": "completed", "stream": false, "seq": 0, "tries": 0,
            "hold_ms": 0, "itl_ms": 1.5, "took_ms": 12, "prompt_tokens": 9, "generated_tokens": 7,
            "finish": "stop,length", "target": "forebay::access",
        });
        assert_eq!(serde_json::from_slice::<Value>(&line).expect("JSON"), want);
    }

    #[test]
    fn a_line_in_text_has_the_same_fields() {
        let mut line = Vec::new();
        written(|written| written.text(&mut line));
        let want = r#"request_id="a\"b\\c" trace_id=4bf92f3577b34da6a3ce929d0e0e4736 client=10.0.0.1 method=POST path=/v1/completions tenant=anonymous pool="p" model="two\nlines" status=200 outcome="completed" stream=false seq=0 tries=0 hold_ms=0 itl_ms=1.5 took_ms=12 prompt_tokens=9 generated_tokens=7 finish="stop,length""#;
        assert_eq!(String::from_utf8(line).expect("text"), want);
    }
}
