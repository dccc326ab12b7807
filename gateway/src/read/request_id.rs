//! By what a request is known along its way: `x-request-id` and the W3C's `traceparent`. Pure, but
//! for the random numbers.

use http::header::{HeaderMap, HeaderName, HeaderValue};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");

/// Longest id of a client's own.
const MAX_ID: usize = 128;

/// The client's id if it is one that can be written to logs, or else a new one. It is in the
/// headers then.
pub(crate) fn request_id(headers: &mut HeaderMap) -> HeaderValue {
    let mut given = headers.get_all(&REQUEST_ID).iter();
    if let (Some(id), None) = (given.next(), given.next())
        && (1..=MAX_ID).contains(&id.len())
        && id.as_bytes().iter().all(u8::is_ascii_graphic)
    {
        return id.clone();
    }
    let id = hex(rand::random::<u128>(), 32);
    headers.insert(REQUEST_ID, id.clone());
    id
}

/// Keeps the client's trace, or begins one: sampled, as it is for a server that is given none.
pub(crate) fn trace(headers: &mut HeaderMap) {
    let mut given = headers.get_all(&TRACE_PARENT).iter();
    if let (Some(parent), None) = (given.next(), given.next())
        && is_trace_parent(parent.as_bytes())
    {
        return;
    }
    // The state of a trace that is not known belongs to nothing.
    headers.remove(&TRACE_STATE);
    let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    if let Ok(parent) = HeaderValue::from_str(&format!("00-{trace:032x}-{span:016x}-01")) {
        headers.insert(TRACE_PARENT, parent);
    }
}

fn hex(number: u128, width: usize) -> HeaderValue {
    let text = format!("{number:0width$x}");
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("0"))
}

/// `version-trace-parent-flags` in lower case hex, no field but the flags all zero. Versions to
/// come may add fields.
fn is_trace_parent(text: &[u8]) -> bool {
    let hex = |text: &[u8]| text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |text: &[u8]| text.iter().all(|b| *b == b'0');
    let fields: Vec<&[u8]> = text.split(|b| *b == b'-').collect();
    let [version, trace, parent, flags, more @ ..] = fields.as_slice() else { return false };
    hex(version)
        && hex(trace)
        && hex(parent)
        && hex(flags)
        && (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2)
        && *version != b"ff"
        && !zero(trace)
        && !zero(parent)
        && (more.is_empty() || *version != b"00")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
            headers.append(name.clone(), value);
        }
        headers
    }

    #[test]
    fn an_id_that_can_be_logged_is_kept() {
        let longest = "x".repeat(128);
        for id in ["r-1", "a/b:c=d", longest.as_str()] {
            let mut headers = with(REQUEST_ID, &[id]);
            assert_eq!(request_id(&mut headers), id);
            assert_eq!(headers[REQUEST_ID], id);
        }
    }

    #[test]
    fn any_other_is_made_anew() {
        let too_long = "x".repeat(129);
        for ids in [&[][..], &[""], &["a b"], &["a\tb"], &["é"], &[&too_long], &["a", "b"]] {
            let mut headers = with(REQUEST_ID, ids);
            let id = request_id(&mut headers);
            assert_eq!(id.len(), 32, "{ids:?}");
            assert!(id.as_bytes().iter().all(u8::is_ascii_hexdigit));
            assert_eq!(headers.get_all(REQUEST_ID).iter().collect::<Vec<_>>(), [&id]);
        }
    }

    #[test]
    fn a_trace_is_kept_with_its_state_or_begun_without_one() {
        let known = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        for parent in [known, later] {
            let mut headers = with(TRACE_PARENT, &[parent]);
            headers.insert(TRACE_STATE, HeaderValue::from_static("a=b"));
            trace(&mut headers);
            assert_eq!(headers[TRACE_PARENT], parent);
            assert_eq!(headers[TRACE_STATE], "a=b");
        }
        for parents in [
            &[][..],
            &["nonsense"],
            &["00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"],
            &["00-00000000000000000000000000000000-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"],
            &["ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"],
            &[known, known],
        ] {
            let mut headers = with(TRACE_PARENT, parents);
            headers.insert(TRACE_STATE, HeaderValue::from_static("a=b"));
            trace(&mut headers);
            let made = headers.get_all(TRACE_PARENT).iter().collect::<Vec<_>>();
            assert!(made.len() == 1 && is_trace_parent(made[0].as_bytes()), "{made:?}");
            assert!(!parents.contains(&made[0].to_str().expect("text")));
            assert!(!headers.contains_key(TRACE_STATE));
        }
    }
}
