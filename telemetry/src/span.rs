//! Spans, as messages of OTLP. Pure.

use std::time::{SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::common::v1::any_value::Value as AnyValueKind;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{SpanFlags, Status};

use crate::context::{SpanId, TraceContext};

pub use opentelemetry_proto::tonic::common::v1::KeyValue as Attribute;
pub use opentelemetry_proto::tonic::trace::v1::Span;
pub use opentelemetry_proto::tonic::trace::v1::span::{Event, Link};

/// The side of a call that a span shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A request that this process answers.
    Server,
    /// A request that this process sends.
    Client,
    /// Anything within this process.
    Internal,
}

/// The parent of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parent {
    /// The span begins its trace.
    None,
    /// A span of this process.
    Local(SpanId),
    /// A span of the client.
    Remote(SpanId),
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A whole number.
    Count(u64),
    /// A number, such as seconds.
    Number(f64),
    /// Yes or no.
    Flag(bool),
    /// Several texts.
    Texts(Vec<String>),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// The most bytes of a text in an attribute. Some come from clients.
const LONGEST_TEXT: usize = 1024;

/// One attribute. A text of more than 1,024 bytes is cut.
#[must_use]
pub fn attribute(name: impl Into<String>, value: Value) -> Attribute {
    Attribute { key: name.into(), value: Some(any(value)), ..Attribute::default() }
}

fn any(value: Value) -> AnyValue {
    let value = match value {
        Value::Text(mut text) => {
            if text.len() > LONGEST_TEXT {
                text.truncate(text.floor_char_boundary(LONGEST_TEXT));
                text.shrink_to_fit();
            }
            AnyValueKind::StringValue(text)
        }
        Value::Count(count) => AnyValueKind::IntValue(i64::try_from(count).unwrap_or(i64::MAX)),
        Value::Number(number) => AnyValueKind::DoubleValue(number),
        Value::Flag(flag) => AnyValueKind::BoolValue(flag),
        Value::Texts(texts) => {
            let values = texts.into_iter().map(|text| any(Value::Text(text))).collect();
            AnyValueKind::ArrayValue(ArrayValue { values })
        }
    };
    AnyValue { value: Some(value) }
}

/// A span at the place `context`, without attributes.
#[must_use]
pub fn span(
    name: impl Into<String>,
    kind: Kind,
    context: TraceContext,
    parent: Parent,
    times: (SystemTime, SystemTime),
) -> Span {
    let (parent_span_id, remote) = match parent {
        Parent::None => (Vec::new(), false),
        Parent::Local(id) => (id.bytes().to_vec(), false),
        Parent::Remote(id) => (id.bytes().to_vec(), true),
    };
    let kind = match kind {
        Kind::Server => SpanKind::Server,
        Kind::Client => SpanKind::Client,
        Kind::Internal => SpanKind::Internal,
    };
    let mut flags = u32::from(context.sampled) | SpanFlags::ContextHasIsRemoteMask as u32;
    if remote {
        flags |= SpanFlags::ContextIsRemoteMask as u32;
    }
    Span {
        trace_id: context.trace.bytes().to_vec(),
        span_id: context.span.bytes().to_vec(),
        parent_span_id,
        flags,
        name: name.into(),
        kind: kind.into(),
        start_time_unix_nano: nanos(times.0),
        end_time_unix_nano: nanos(times.1).max(nanos(times.0)),
        ..Span::default()
    }
}

/// The status of a span that failed, with a message for people.
#[must_use]
pub fn failed(message: impl Into<String>) -> Option<Status> {
    Some(Status { code: StatusCode::Error.into(), message: message.into() })
}

/// A link to a span of another trace.
#[must_use]
pub fn link(to: &TraceContext) -> Link {
    Link {
        trace_id: to.trace.bytes().to_vec(),
        span_id: to.span.bytes().to_vec(),
        flags: u32::from(to.sampled),
        ..Link::default()
    }
}

/// An event at one moment of a span.
#[must_use]
pub fn event(name: impl Into<String>, at: SystemTime, attributes: Vec<Attribute>) -> Event {
    Event { name: name.into(), time_unix_nano: nanos(at), attributes, ..Event::default() }
}

/// Nanoseconds since 1970, as OTLP has them.
#[must_use]
pub fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_span_has_its_place_its_parent_and_times_that_do_not_run_backwards() {
        let context = TraceContext::random(true);
        let parent = SpanId::random();
        let at = |millis| UNIX_EPOCH + Duration::from_millis(millis);
        let times = (at(1_500), at(1_400));
        let made = span("chat m", Kind::Server, context, Parent::Remote(parent), times);
        assert_eq!(made.trace_id, context.trace.bytes());
        assert_eq!(made.span_id, context.span.bytes());
        assert_eq!(made.parent_span_id, parent.bytes());
        assert_eq!((made.flags, made.kind), (0x301, 2));
        assert_eq!(made.start_time_unix_nano, 1_500_000_000);
        assert_eq!(made.end_time_unix_nano, 1_500_000_000);
        let unsampled = TraceContext { sampled: false, ..context };
        let first = span("hold", Kind::Internal, unsampled, Parent::None, times);
        assert!(first.parent_span_id.is_empty());
        assert_eq!((first.flags, first.kind), (0x100, 1));
    }

    #[test]
    fn attributes_keep_their_types() {
        let texts = attribute("reasons", Value::Texts(vec!["stop".to_owned()]));
        let Some(AnyValueKind::ArrayValue(array)) = texts.value.and_then(|any| any.value) else {
            panic!("not a list")
        };
        assert_eq!(array.values, [any(Value::from("stop"))]);
        let long = attribute("session", Value::Text("ä".repeat(1_000) + "x"));
        let Some(AnyValueKind::StringValue(text)) = long.value.and_then(|any| any.value) else {
            panic!("not a text")
        };
        assert_eq!(text, "ä".repeat(512));
        let count = attribute("tokens", Value::Count(u64::MAX)).value.and_then(|any| any.value);
        assert_eq!(count, Some(AnyValueKind::IntValue(i64::MAX)));
    }
}
