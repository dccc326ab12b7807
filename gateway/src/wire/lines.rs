//! Headers as HTTP/1 writes them. A replica's headers go out to the client as they came, so most of
//! them are never looked at one by one.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Headers in order: lines of a name in lower case, a colon and a space, and a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HeaderLines(Vec<u8>);

/// An answer's body that may have brought header lines with it.
pub(crate) trait BringsLines {
    /// Takes the lines. They go out before the headers of the answer's own.
    fn take_lines(&mut self) -> HeaderLines;
}

impl HeaderLines {
    /// No lines yet, with room for so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// Adds a header, whose name is in lower case. Both must be valid.
    pub(crate) fn push(&mut self, name: &str, value: &[u8]) {
        for part in [name.as_bytes(), b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    /// Adds a header if `passes` is true of its name in lower case. Both must be valid.
    pub(super) fn push_if(
        &mut self,
        name: &[u8],
        value: &[u8],
        passes: impl FnOnce(&[u8]) -> bool,
    ) {
        let at = self.0.len();
        self.0.extend_from_slice(name);
        self.0[at..].make_ascii_lowercase();
        if !passes(&self.0[at..]) {
            return self.0.truncate(at);
        }
        for part in [b": ", value, b"\r\n"] {
            self.0.extend_from_slice(part);
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The names and values in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let end = memchr::memchr(b'\n', rest)?;
            let (line, behind) = rest.split_at(end + 1);
            rest = behind;
            let colon = memchr::memchr(b':', line)?;
            Some((&line[..colon], &line[colon + 2..end - 1]))
        })
    }

    /// The value of the first header with this name, which is in lower case.
    pub(crate) fn get(&self, name: &str) -> Option<&[u8]> {
        let mut rest = &*self.0;
        loop {
            let end = memchr::memchr(b'\n', rest)?;
            if let Some(value) = rest[..end].strip_prefix(name.as_bytes())
                && let Some(value) = value.strip_prefix(b": ")
            {
                return value.strip_suffix(b"\r");
            }
            rest = &rest[end + 1..];
        }
    }

    /// Keeps the headers for whose names `keeps` is true.
    pub(crate) fn retain(&mut self, mut keeps: impl FnMut(&[u8]) -> bool) {
        let mut kept = Self::with_capacity(self.0.len());
        for (name, value) in self.iter() {
            kept.push_if(name, value, &mut keeps);
        }
        *self = kept;
    }

    /// Adds the lines to a map.
    pub(crate) fn append_to(&self, headers: &mut HeaderMap) {
        for (name, value) in self.iter() {
            if let Ok(name) = HeaderName::from_bytes(name)
                && let Ok(value) = HeaderValue::from_bytes(value)
            {
                headers.append(name, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(headers: &[(&str, &str)]) -> HeaderLines {
        let mut lines = HeaderLines::default();
        for (name, value) in headers {
            lines.push_if(name.as_bytes(), value.as_bytes(), |name| name != b"x-secret");
        }
        lines
    }

    #[test]
    fn headers_are_found_by_their_whole_names() {
        let lines = lines(&[("Date", "now"), ("x-a", "date: 1"), ("X-Secret", "2"), ("x-a-b", "")]);
        assert_eq!(lines.as_bytes(), b"date: now\r\nx-a: date: 1\r\nx-a-b: \r\n");
        let all: Vec<_> = lines.iter().collect();
        let want: [(&[u8], &[u8]); 3] = [(b"date", b"now"), (b"x-a", b"date: 1"), (b"x-a-b", b"")];
        assert_eq!(all, want);
        for (name, want) in [
            ("date", Some("now")),
            ("x-a", Some("date: 1")),
            ("x-a-b", Some("")),
            ("x", None),
            ("now", None),
            ("x-secret", None),
        ] {
            assert_eq!(lines.get(name), want.map(str::as_bytes), "{name}");
        }
    }

    #[test]
    fn lines_are_taken_out_and_become_a_map() {
        let mut lines = lines(&[("x-a", "1"), ("x-b", "2"), ("x-a", "3"), ("x-c", "caf\u{e9}")]);
        let mut map = HeaderMap::new();
        lines.append_to(&mut map);
        assert_eq!(map.get_all("x-a").iter().collect::<Vec<_>>(), ["1", "3"]);
        assert_eq!(map["x-c"].as_bytes(), "caf\u{e9}".as_bytes());
        lines.retain(|name| name != b"x-a");
        assert_eq!(lines.as_bytes(), "x-b: 2\r\nx-c: caf\u{e9}\r\n".as_bytes());
    }
}
