//! Prometheus' text format, as vLLM and the DCGM exporter write it.

/// One sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample<'a> {
    /// What is between the braces.
    labels: &'a str,
    pub(super) value: f64,
}

/// The samples of metric `name`, in order.
pub(super) fn samples<'a>(text: &'a str, name: &'a str) -> impl Iterator<Item = Sample<'a>> {
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(name)?;
        let (labels, rest) = match rest.strip_prefix('{') {
            Some(rest) => {
                let end = end_of_labels(rest)?;
                (&rest[..end], &rest[end + 1..])
            }
            None if rest.starts_with([' ', '\t']) => ("", rest),
            None => return None,
        };
        // A time may follow.
        let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Sample { labels, value })
    })
}

/// Whether metric `name` is exported at all, be it without a sample yet.
pub(super) fn declares(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let declared = line.strip_prefix("# TYPE ");
        declared.and_then(|rest| rest.split_ascii_whitespace().next()) == Some(name)
    })
}

impl<'a> Sample<'a> {
    /// A label's value, still escaped.
    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        loop {
            let (key, behind) = rest.trim_start_matches([',', ' ']).split_once('=')?;
            let quoted = behind.strip_prefix('"')?;
            let end = end_of_text(quoted)?;
            if key.trim() == name {
                return Some(&quoted[..end]);
            }
            rest = &quoted[end + 1..];
        }
    }
}

/// Where the `}` is that is not within a value.
fn end_of_labels(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    text.bytes().position(|byte| {
        let end = byte == b'}' && !quoted;
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    })
}

/// Where the closing `"` is.
fn end_of_text(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.bytes().position(|byte| {
        let end = byte == b'"' && !escaped;
        escaped = byte == b'\\' && !escaped;
        end
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a}\"b"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="x"} 0.75 1700000000000
vllm:kv_cache_usage_perc_other{engine="0"} 9
# TYPE vllm:num_requests_running gauge
plain 3
nothing{a="b"} NaN
"#;

    #[test]
    fn samples_are_found_by_their_whole_name() {
        let kv: Vec<_> = samples(TEXT, "vllm:kv_cache_usage_perc").collect();
        assert_eq!(kv.iter().map(|it| it.value).collect::<Vec<_>>(), [0.25, 0.75]);
        assert_eq!(kv[0].label("model_name"), Some(r#"a}\"b"#));
        assert_eq!((kv[1].label("engine"), kv[1].label("other")), (Some("1"), None));
        assert_eq!(samples(TEXT, "plain").map(|it| it.value).collect::<Vec<_>>(), [3.0]);
        assert_eq!(samples(TEXT, "plai").count(), 0);
        assert!(samples(TEXT, "nothing").next().is_some_and(|it| it.value.is_nan()));
    }

    #[test]
    fn a_metric_may_be_declared_without_a_sample() {
        assert!(declares(TEXT, "vllm:num_requests_running"));
        assert_eq!(samples(TEXT, "vllm:num_requests_running").count(), 0);
        assert!(!declares(TEXT, "vllm:num_requests"));
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in ".{0,200}", line in "a(\\{[a=\",\\\\}]{0,20})? ?[0-9]{0,3}") {
            for text in [text, line] {
                samples(&text, "a").for_each(|sample| assert!(sample.label("a").is_none_or(|it| text.contains(it))));
                declares(&text, "a");
            }
        }
    }
}
