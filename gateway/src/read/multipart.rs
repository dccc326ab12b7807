//! Reads the form fields that routing needs from a `multipart/form-data` body, in place.
//!
//! vLLM's reader is lenient. If it found a model's name that the gateway overlooks, the request
//! would be in the wrong pool. So a form is accepted only in the form that ordinary clients write.
//! By hand, since edits need the fields' offsets in the body, and no copy of it.

use memchr::memmem;

use crate::read::scan::{Layout, Model, Scan, ScanError};
use crate::text::json::{boolean, count};

/// Whether a `content-type` names a form.
pub(crate) fn is_form(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("multipart/form-data")
}

/// Reads a form by its `content-type`.
///
/// # Errors
/// A form that is broken or unusual; a known field that occurs twice or has the wrong type.
pub(crate) fn scan_form(body: &[u8], content_type: &str) -> Result<Scan, ScanError> {
    let boundary = boundary(content_type)?;
    let delimiter = [b"\r\n--", boundary.as_bytes()].concat();
    let finder = memmem::Finder::new(&delimiter);
    let mut scan = Scan { layout: Layout::Form, ..Scan::default() };
    let mut seen = Vec::new();

    // The first delimiter has no line before it.
    let rest =
        body.strip_prefix(&delimiter[2..]).ok_or(bad("it does not begin with its boundary"))?;
    let mut at = body.len() - rest.len();
    loop {
        match body.get(at..at + 2) {
            Some(b"\r\n") => at += 2,
            Some(b"--") => break,
            _ => return Err(bad("a boundary is followed by other text")),
        }
        let headers_end = memmem::find(&body[at..], b"\r\n\r\n").ok_or(bad("a part has no end"))?;
        let name = field_name(&body[at..at + headers_end])?;
        let start = at + headers_end + 4;
        // A part without content shares its line end with the delimiter.
        let end = finder.find(&body[start..]).ok_or(bad("a part has no end"))? + start;
        at = end + delimiter.len();
        let Some(field) = ["model", "stream", "max_completion_tokens"]
            .into_iter()
            .find(|field| name.as_ref().is_some_and(|name| name.text == *field))
        else {
            continue;
        };
        if seen.contains(&field) {
            return Err(ScanError::Duplicate(field));
        }
        seen.push(field);
        let value = std::str::from_utf8(&body[start..end]).ok();
        let file = name.is_some_and(|name| name.file);
        match (field, value) {
            ("model", Some(name)) if !file => {
                scan.model = Some(Model { name: name.to_owned(), at: start..end });
            }
            ("stream", Some(value)) if !file => scan.stream = boolean(value) == Some(true),
            ("max_completion_tokens", Some(value)) => scan.max_tokens = count(value),
            (field, _) => return Err(ScanError::WrongType { field, want: "text" }),
        }
    }
    Ok(scan)
}

fn bad(why: &'static str) -> ScanError {
    ScanError::BadForm(why)
}

fn boundary(content_type: &str) -> Result<&str, ScanError> {
    if !is_form(content_type) {
        return Err(bad("the content type is not multipart/form-data"));
    }
    let mut found = None;
    for (name, value) in params(content_type).ok_or(bad("the content type is broken"))? {
        if name.eq_ignore_ascii_case("boundary") {
            if found.replace(value).is_some() {
                return Err(bad("the content type names two boundaries"));
            }
        } else if name.eq_ignore_ascii_case("charset") && !value.eq_ignore_ascii_case("utf-8") {
            return Err(bad("its character set is not UTF-8"));
        } else if name.contains('*') {
            return Err(bad("the content type is broken"));
        }
    }
    let known = |value: &&str| (1..=70).contains(&value.len()) && !value.ends_with(' ');
    found.filter(known).ok_or(bad("the content type names no boundary"))
}

struct Name {
    text: String,
    file: bool,
}

/// The field's name in a part's headers; `None` if the name is not text, and so not a known field.
fn field_name(headers: &[u8]) -> Result<Option<Name>, ScanError> {
    let mut found = None;
    for line in headers.split(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.first().is_some_and(|byte| byte.is_ascii_whitespace()) || line.contains(&b'\r') {
            return Err(bad("a part's header is broken"));
        }
        let colon = line.iter().position(|byte| *byte == b':');
        let (header, value) = line.split_at(colon.ok_or(bad("a part's header is broken"))?);
        if header.trim_ascii().eq_ignore_ascii_case(b"content-disposition")
            && found.replace(&value[1..]).is_some()
        {
            return Err(bad("a part has two names"));
        }
    }
    let value = found.ok_or(bad("a part has no name"))?;
    let value = String::from_utf8_lossy(value);
    let (mut name, mut file) = (None, false);
    for (param, value) in params(&value).ok_or(bad("a part's name is written in an unusual way"))? {
        if param.eq_ignore_ascii_case("name") {
            if name.replace(value).is_some() {
                return Err(bad("a part has two names"));
            }
        } else if param.to_ascii_lowercase().starts_with("name*") {
            return Err(bad("a part's name is written in an unusual way"));
        } else if param.to_ascii_lowercase().starts_with("filename") {
            file = true;
        }
    }
    let name = name.ok_or(bad("a part has no name"))?;
    if name.contains('\\') {
        return Err(bad("a part's name is written in an unusual way"));
    }
    Ok((!name.contains('\u{fffd}')).then(|| Name { text: name.to_owned(), file }))
}

/// The parameters after a header value's first token; `None` if a quote has no end.
fn params(value: &str) -> Option<Vec<(&str, &str)>> {
    let mut found = Vec::new();
    let (_, mut rest) = value.split_once(';').unwrap_or((value, ""));
    while !rest.trim().is_empty() {
        let (name, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let value;
        if let Some(quoted) = after.strip_prefix('"') {
            let mut escaped = false;
            let end = quoted.find(|c| {
                let end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                end
            })?;
            value = &quoted[..end];
            rest = quoted[end + 1..].trim_start();
            rest = if rest.is_empty() { rest } else { rest.strip_prefix(';')? };
        } else {
            (value, rest) = after.split_once(';').unwrap_or((after, ""));
        }
        found.push((name.trim(), value.trim()));
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=XX";

    fn form(parts: &[(&str, &str)]) -> String {
        let mut body = String::new();
        for (headers, content) in parts {
            body += &format!("--XX\r\n{headers}\r\n\r\n{content}\r\n");
        }
        body + "--XX--\r\n"
    }

    const FILE: (&str, &str) = (
        "Content-Disposition: form-data; name=\"file\"; filename=\"a;b\\\".wav\"\r\nContent-Type: audio/wav",
        "RIFF\r\n--X\r\nname=\"model\"\r\n\r\n",
    );

    #[test]
    fn the_fields_and_the_models_place_are_found() {
        let model = ("content-disposition: form-data; name=\"model\"", "whisper/ä");
        let stream = ("Content-Disposition: form-data; name=stream", "True");
        let limit = ("Content-Disposition: form-data; name=\"max_completion_tokens\"", "12");
        let body = form(&[FILE, model, stream, limit]);
        for kind in [TYPE, "Multipart/Form-Data; charset=\"utf-8\"; Boundary=\"XX\""] {
            let scan = scan_form(body.as_bytes(), kind).expect(kind);
            let model = scan.model.expect("a model");
            assert_eq!((model.name.as_str(), &body[model.at]), ("whisper/ä", "whisper/ä"));
            assert!(scan.stream);
            assert_eq!((scan.max_tokens, scan.layout), (Some(12), Layout::Form));
        }
        let none = scan_form(form(&[FILE]).as_bytes(), TYPE).expect("valid");
        assert_eq!((none.model, none.stream), (None, false));
        let empty = form(&[("Content-Disposition: form-data; name=\"model\"", "")]);
        let empty = scan_form(empty.as_bytes(), TYPE).expect("valid").model.expect("a model");
        assert_eq!(empty.name, "");
    }

    #[test]
    fn forms_that_two_readers_could_read_differently_are_refused() {
        let model = ("Content-Disposition: form-data; name=\"model\"", "a");
        let named =
            |params: &str| form(&[(&format!("Content-Disposition: form-data; {params}"), "a")]);
        for (case, body, kind, want) in [
            ("twice", form(&[model, FILE, model]), TYPE, ScanError::Duplicate("model")),
            (
                "as a file",
                named("name=\"model\"; filename=\"m\""),
                TYPE,
                ScanError::WrongType { field: "model", want: "text" },
            ),
            (
                "escaped",
                named("name=\"mo\\del\""),
                TYPE,
                bad("a part's name is written in an unusual way"),
            ),
            (
                "extended",
                named("name*=utf-8''model"),
                TYPE,
                bad("a part's name is written in an unusual way"),
            ),
            ("two names", named("name=\"a\"; name=\"model\""), TYPE, bad("a part has two names")),
            ("no name", named("x=y"), TYPE, bad("a part has no name")),
            (
                "open quote",
                named("name=\"model"),
                TYPE,
                bad("a part's name is written in an unusual way"),
            ),
            (
                "folded header",
                form(&[("Content-Disposition: form-data;\r\n name=\"model\"", "a")]),
                TYPE,
                bad("a part's header is broken"),
            ),
            (
                "preamble",
                format!("x\r\n{}", form(&[model])),
                TYPE,
                bad("it does not begin with its boundary"),
            ),
            (
                "cut",
                "--XX\r\nContent-Disposition: form-data".into(),
                TYPE,
                bad("a part has no end"),
            ),
            (
                "longer boundary inside",
                form(&[("Content-Disposition: form-data; name=\"file\"", "a\r\n--XXY")]),
                TYPE,
                bad("a boundary is followed by other text"),
            ),
            (
                "no boundary",
                form(&[model]),
                "multipart/form-data",
                bad("the content type names no boundary"),
            ),
            (
                "charset",
                form(&[model]),
                "multipart/form-data; boundary=XX; charset=utf-16",
                bad("its character set is not UTF-8"),
            ),
            (
                "json",
                form(&[model]),
                "application/json",
                bad("the content type is not multipart/form-data"),
            ),
        ] {
            assert_eq!(scan_form(body.as_bytes(), kind), Err(want), "{case}");
        }
    }
}
