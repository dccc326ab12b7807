//! Instant queries to Prometheus' HTTP API.

use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use forebay_config::PromQuery;
use http::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::SourceResult;
use super::client::{Client, authorization};
use super::exposition::current;

/// The query's single value, which may not be finite; `None` if the result is empty. If the server
/// warns, for example of stores that did not answer, the value may be too low and is marked so.
pub(super) async fn read(client: &Client, query: &PromQuery, now_ms: u64) -> SourceResult {
    let server = query.server_address.as_deref().ok_or("no serverAddress")?;
    let mut url = format!("{server}/api/v1/query?query={}", encoded(&query.query));
    for (name, value) in &query.parameters {
        url += &format!("&{}={}", encoded(name), encoded(value));
    }
    let answer = client.get(&url, headers(query).await?).await?;
    parse(&answer.body, now_ms).map_err(|error| match answer.status.is_success() {
        true => error,
        false => format!("it answered {}: {error}", answer.status),
    })
}

async fn headers(query: &PromQuery) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, value) in &query.headers {
        let name =
            HeaderName::try_from(name).map_err(|_| format!("`{name}` is not a header name"))?;
        let value = HeaderValue::try_from(value)
            .map_err(|_| format!("the value of {name} can't be sent"))?;
        headers.push((name, value));
    }
    if let Some(file) = &query.bearer_token_file {
        headers.push(authorization(&format!("Bearer {}", secret(file).await?))?);
    } else if let Some((user, file)) = &query.basic_auth {
        let both = format!("{user}:{}", secret(file).await?);
        headers.push(authorization(&format!("Basic {}", BASE64_STANDARD.encode(both)))?);
    }
    Ok(headers)
}

async fn secret(file: &Path) -> Result<String, String> {
    let text = tokio::fs::read_to_string(file).await;
    let text = text.map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(text.trim().to_owned())
}

#[derive(Deserialize)]
struct Reply {
    data: Option<Data>,
    error: Option<String>,
    #[serde(default)]
    warnings: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data {
    result_type: String,
    result: Value,
}

/// Most characters of a server's message to repeat.
const LONGEST: usize = 200;

/// The single value of a reply: a scalar, or a vector of at most one series.
fn parse(body: &str, now_ms: u64) -> SourceResult {
    let reply: Reply = serde_json::from_str(body)
        .map_err(|_| "this is not an answer of Prometheus' API".to_owned())?;
    if let Some(error) = reply.error {
        return Err(error.chars().take(LONGEST).collect());
    }
    let data = reply.data.ok_or("the answer has no data")?;
    let sample = |sample: &Value| {
        let text = sample.get(1).and_then(Value::as_str);
        let number = text.and_then(|text| text.parse::<f64>().ok());
        let number = number.ok_or_else(|| "the answer has no number".to_owned())?;
        // A cache in between may answer with an old result.
        let seconds = sample.get(0).and_then(Value::as_f64);
        let seconds = seconds.ok_or_else(|| "the answer has no time".to_owned())?;
        let at_ms = (seconds * 1000.0) as i64;
        current(at_ms, now_ms).map_err(|why| format!("the result {why}"))?;
        Ok(Some(number))
    };
    let value = match (data.result_type.as_str(), data.result.as_array().map(Vec::as_slice)) {
        ("scalar", Some(_)) => sample(&data.result),
        ("vector", Some([])) => Ok(None),
        ("vector", Some([one])) => sample(&one["value"]),
        ("vector", Some(many)) => Err(format!(
            "the query gives {} series, and one is needed; put sum() around it",
            many.len()
        )),
        (other, _) => Err(format!("the query gives a {other}, and a number is needed")),
    };
    let warned = reply.warnings.first();
    let partial = warned.map(|warning| {
        let warning: String = warning.chars().take(LONGEST).collect();
        format!("the server warns: {warning}")
    });
    value.map(|value| (value, partial))
}

/// Percent-encodes everything but plain letters and digits, for a URL's query.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_700_000_000_000;

    #[test]
    fn a_reply_gives_one_value_or_the_reason_why_not() {
        let vector = |series: &str| {
            format!(
                r#"{{"status":"success","data":{{"resultType":"vector","result":[{series}]}}}}"#
            )
        };
        let series = |value: &str| format!(r#"{{"metric":{{}},"value":[1700000001.5,"{value}"]}}"#);
        for (case, body, want) in [
            ("one", vector(&series("12.5")), Ok(Some(12.5))),
            ("exponents", vector(&series("1e+06")), Ok(Some(1e6))),
            ("infinite", vector(&series("+Inf")), Ok(Some(f64::INFINITY))),
            ("negative infinite", vector(&series("-Inf")), Ok(Some(f64::NEG_INFINITY))),
            ("none", vector(""), Ok(None)),
            (
                "two",
                vector(&format!("{},{}", series("1"), series("2"))),
                Err("the query gives 2 series, and one is needed; put sum() around it"),
            ),
            ("text", vector(&series("x")), Err("the answer has no number")),
            (
                "a scalar",
                r#"{"status":"success","data":{"resultType":"scalar","result":[1700000000,"3"]}}"#
                    .to_owned(),
                Ok(Some(3.0)),
            ),
            (
                "a matrix",
                r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#.to_owned(),
                Err("the query gives a matrix, and a number is needed"),
            ),
            (
                "refused",
                r#"{"status":"error","errorType":"bad_data","error":"parse error"}"#.to_owned(),
                Err("parse error"),
            ),
            ("a login page", "<html>".to_owned(), Err("this is not an answer of Prometheus' API")),
        ] {
            let want = want.map(|value| (value, None)).map_err(str::to_owned);
            assert_eq!(parse(&body, NOW_MS), want, "{case}");
        }
        let nan = parse(&vector(&series("NaN")), NOW_MS).expect("a value").0.expect("one");
        assert!(nan.is_nan());
        let old = parse(&vector(&series("12.5")), NOW_MS + 3_600_000);
        assert_eq!(old, Err("the result is 3598 s old, by its own time".to_owned()));
    }

    #[test]
    fn a_result_with_a_missing_part_is_a_lower_bound() {
        let body = r#"{"status":"success","warnings":["No StoreAPIs matched"],"data":{"resultType":"vector","result":[{"metric":{},"value":[1700000000,"3"]}]}}"#;
        let partial = Some("the server warns: No StoreAPIs matched".to_owned());
        assert_eq!(parse(body, NOW_MS), Ok((Some(3.0), partial)));
    }

    #[test]
    fn a_query_is_sent_as_written() {
        assert_eq!(
            encoded("sum(a{b=\"c\"}) / 2 +\nü"),
            "sum%28a%7Bb%3D%22c%22%7D%29%20%2F%202%20%2B%0A%C3%BC"
        );
    }
}
