//! The time that a client waits for its answer, as its headers say.

use std::time::Duration;

use http::HeaderMap;

/// The shortest time that the client says it waits. OpenAI's and Anthropic's clients send the time
/// for the first byte in seconds; an Envoy in front of the gateway sends the time for the whole
/// answer in milliseconds. `kept_alive`: the client gets heartbeats, so the time for the first byte
/// does not matter.
pub(crate) fn client_timeout(headers: &HeaderMap, kept_alive: bool) -> Option<Duration> {
    let read = |name: &str, unit: f64| {
        let text = headers.get(name)?.to_str().ok()?;
        let value = text.trim().parse::<f64>().ok()? * unit;
        // Zero means no deadline.
        (value > 0.0 && value < 1e9).then(|| Duration::from_secs_f64(value))
    };
    let first_byte = [("x-stainless-timeout", 1.0), ("x-stainless-read-timeout", 1.0)];
    let first_byte = first_byte.into_iter().filter(|_| !kept_alive);
    let whole = [("x-envoy-expected-rq-timeout-ms", 0.001)];
    first_byte.chain(whole).filter_map(|(name, unit)| read(name, unit)).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_timeout_that_a_client_names_counts() {
        for (headers, kept_alive, want) in [
            (&[][..], false, None),
            (&[("x-stainless-timeout", "600")], false, Some(600_000)),
            (&[("x-stainless-read-timeout", "2.5")], false, Some(2_500)),
            (&[("x-stainless-read-timeout", "2.5")], true, None),
            (&[("x-envoy-expected-rq-timeout-ms", "15000")], true, Some(15_000)),
            (
                &[("x-stainless-timeout", "20"), ("x-envoy-expected-rq-timeout-ms", "15000")],
                false,
                Some(15_000),
            ),
            (&[("x-stainless-timeout", "NOT_GIVEN")], false, None),
            (&[("x-stainless-timeout", "-1")], false, None),
            (&[("x-stainless-timeout", "inf")], false, None),
            (&[("x-stainless-timeout", "0")], false, None),
        ] {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.insert(*name, value.parse().expect("a value"));
            }
            let timeout = client_timeout(&map, kept_alive).map(|timeout| timeout.as_millis());
            assert_eq!(timeout, want, "{headers:?}");
        }
    }
}
