//! Prometheus' text format, as vLLM and the DCGM exporter write it.
//!
//! Strict: an unreadable line is a fault, rather than one sample less.

/// Tolerated deviation of a sample's time: more than any clock should be off, and the age up to which
/// Prometheus itself uses a sample.
pub(super) const STALE_MS: u64 = 5 * 60_000;

/// One sample, or its readable part.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sample<'a> {
    /// Labels by name, with values still escaped; `None` if unreadable.
    labels: Option<Vec<(&'a str, &'a str)>>,
    /// The value, or the fault as the end of a sentence.
    pub(super) value: Result<f64, String>,
}

/// Checks that the text is complete: its last line has an end.
///
/// # Errors
/// A few words.
pub(super) fn whole(text: &str) -> Result<&str, String> {
    match text.ends_with('\n') || text.is_empty() {
        true => Ok(text),
        false => Err("its answer is cut off".to_owned()),
    }
}

/// The samples of metric `name`, in order.
pub(super) fn samples<'a>(
    text: &'a str,
    name: &'a str,
    now_ms: u64,
) -> impl Iterator<Item = Sample<'a>> {
    text.lines().filter_map(move |line| {
        let rest = line.trim_start().strip_prefix(name)?;
        let continues = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':');
        if rest.as_bytes().first().is_some_and(continues) {
            return None;
        }
        let rest = rest.trim_start();
        let (labels, rest) = match rest.strip_prefix('{') {
            None => (Some(Vec::new()), rest),
            Some(rest) => match labels(rest) {
                Some((labels, rest)) => (Some(labels), rest),
                None => (None, ""),
            },
        };
        let value = match labels {
            Some(_) => value(rest, now_ms),
            None => Err("can't be read".to_owned()),
        };
        Some(Sample { labels, value })
    })
}

/// Whether metric `name` is exported, with or without a sample.
pub(super) fn declares(text: &str, name: &str) -> bool {
    text.lines().any(|line| {
        let declared = line.strip_prefix("# TYPE ");
        declared.and_then(|rest| rest.split_ascii_whitespace().next()) == Some(name)
    })
}

impl<'a> Sample<'a> {
    /// A label's value, still escaped.
    pub(super) fn label(&self, name: &str) -> Option<&'a str> {
        let labels = self.labels.as_ref()?;
        labels.iter().find(|(label, _)| *label == name).map(|(_, value)| *value)
    }

    /// All labels, by name.
    pub(super) fn labels(&self) -> Option<&[(&'a str, &'a str)]> {
        self.labels.as_deref()
    }
}

/// The value and, if present, the time.
fn value(text: &str, now_ms: u64) -> Result<f64, String> {
    let mut words = text.split_ascii_whitespace();
    let unreadable = || "can't be read".to_owned();
    let value = words.next().and_then(|word| word.parse().ok()).ok_or_else(unreadable)?;
    let at_ms = words.next().map(str::parse::<i64>).transpose().map_err(|_| unreadable())?;
    match (at_ms, words.next()) {
        (_, Some(_)) => Err(unreadable()),
        (None, None) => Ok(value),
        (Some(at_ms), None) => current(at_ms, now_ms).map(|()| value),
    }
}

/// Checks that a sample's time is now, within [`STALE_MS`].
///
/// # Errors
/// The deviation, as the end of a sentence.
pub(super) fn current(at_ms: i64, now_ms: u64) -> Result<(), String> {
    let off_ms = i128::from(now_ms) - i128::from(at_ms);
    if off_ms.unsigned_abs() <= u128::from(STALE_MS) {
        return Ok(());
    }
    let (seconds, side) = (off_ms.abs() / 1000, if off_ms > 0 { "old" } else { "in the future" });
    Err(format!("is {seconds} s {side}, by its own time"))
}

/// The labels between the braces, by name, and the text that follows.
fn labels(mut rest: &str) -> Option<(Vec<(&str, &str)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(rest) = rest.strip_prefix('}') {
            labels.sort_unstable();
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once('=')?;
        let name = name.trim_end();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(fits) {
            return None;
        }
        let quoted = after.trim_start().strip_prefix('"')?;
        let end = end_of_text(quoted)?;
        labels.push((name, &quoted[..end]));
        rest = quoted[end + 1..].trim_start();
        rest = match rest.strip_prefix(',') {
            Some(next) => next,
            None if rest.starts_with('}') => rest,
            None => return None,
        };
    }
}

/// The position of the closing `"`.
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

    const NOW_MS: u64 = 1_700_000_060_000;

    const TEXT: &str = r#"# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a}\"b"} 0.25
vllm:kv_cache_usage_perc{engine="1", model_name = "x", } 0.75 1700000000000
vllm:kv_cache_usage_perc_other{engine="0"} 9
# TYPE vllm:num_requests_running gauge
plain 3
spaced {a="b"} 4
nothing{a="b"} NaN
"#;

    fn values<'a>(text: &'a str, name: &'a str) -> Vec<Result<f64, String>> {
        samples(text, name, NOW_MS).map(|sample| sample.value).collect()
    }

    #[test]
    fn samples_are_found_by_their_whole_name() {
        let kv: Vec<_> = samples(TEXT, "vllm:kv_cache_usage_perc", NOW_MS).collect();
        assert_eq!(values(TEXT, "vllm:kv_cache_usage_perc"), [Ok(0.25), Ok(0.75)]);
        assert_eq!(kv[0].label("model_name"), Some(r#"a}\"b"#));
        assert_eq!((kv[1].label("engine"), kv[1].label("other")), (Some("1"), None));
        assert_eq!(values(TEXT, "plain"), [Ok(3.0)]);
        assert_eq!(values(TEXT, "spaced"), [Ok(4.0)]);
        assert_eq!(values(TEXT, "plai"), []);
        assert!(matches!(values(TEXT, "nothing")[..], [Ok(value)] if value.is_nan()));
    }

    #[test]
    fn an_unreadable_line_is_a_fault_rather_than_one_sample_less() {
        for (line, known) in [
            ("a", true),
            ("a ", true),
            ("a x", true),
            ("a 1 x", true),
            ("a 1 1700000000000 2", true),
            ("a 1 1600000000000", true),
            ("a 1 9999999999999", true),
            ("a{b=\"c\"}", true),
            ("a{b=\"c\"} one", true),
            ("a{b=\"c\" 1", false),
            ("a{b=c} 1", false),
            ("a{b=\"c\";d=\"e\"} 1", false),
            ("a{=\"c\"} 1", false),
            ("a{b=\"c} 1", false),
        ] {
            let found: Vec<_> = samples(line, "a", NOW_MS).collect();
            let [sample] = &found[..] else { panic!("{line}: {found:?}") };
            assert!(sample.value.is_err(), "{line}: {sample:?}");
            assert_eq!(sample.labels().is_some(), known, "{line}");
        }
        let old = &values("a 1 1600000000000\n", "a")[0];
        assert_eq!(*old, Err("is 100000060 s old, by its own time".to_owned()));
        assert!(whole("a 1\na 2").is_err() && whole("a 1\n").is_ok(), "the end may be missing");
    }

    #[test]
    fn a_metric_may_be_declared_without_a_sample() {
        assert!(declares(TEXT, "vllm:num_requests_running"));
        assert_eq!(values(TEXT, "vllm:num_requests_running"), []);
        assert!(!declares(TEXT, "vllm:num_requests"));
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_parser(text in ".{0,200}", line in "a(\\{[a=\",\\\\}]{0,20})? ?[0-9]{0,3}") {
            for text in [text, line] {
                samples(&text, "a", NOW_MS)
                    .for_each(|sample| assert!(sample.label("a").is_none_or(|value| text.contains(value))));
                declares(&text, "a");
            }
        }

        #[test]
        fn an_exporters_line_is_read_back(
            value in -1e12..1e12_f64, label in "[a-z]{0,5}(\\\\[\\\\\"n])?[{},= ]{0,3}", time: bool,
        ) {
            let time = if time { format!(" {NOW_MS}") } else { String::new() };
            let line = format!("a_b{{x=\"{label}\",y=\"\"}} {value}{time}\n");
            let found: Vec<_> = samples(&line, "a_b", NOW_MS).collect();
            prop_assert_eq!(found.len(), 1);
            prop_assert_eq!(&found[0].value, &Ok(value));
            prop_assert_eq!(found[0].label("x"), Some(&*label));
        }
    }
}
