//! Traces as CSV: Azure's columns and those of Forebay's own recording.
//!
//! Azure: `TIMESTAMP,ContextTokens,GeneratedTokens`. Forebay: `time,pool,promptTokens,
//! generatedTokens`. Columns are found by name, in any order; others are passed over. Rows may be
//! out of order, as recordings are written at each request's end.

use anyhow::{Context, bail, ensure};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{Request, SECOND, Trace};

/// What each column may be called.
const TIME: [&str; 3] = ["TIMESTAMP", "time", "arrived_at"];
const POOL: [&str; 1] = ["pool"];
const PROMPT: [&str; 3] = ["ContextTokens", "promptTokens", "num_prefill_tokens"];
const OUTPUT: [&str; 3] = ["GeneratedTokens", "generatedTokens", "num_decode_tokens"];
/// More than this in one request is a broken row.
const MOST_TOKENS: u32 = 100_000_000;

pub(super) fn parse(text: &str, name: &str, source: &str, pool: &str) -> anyhow::Result<Trace> {
    let mut lines = text.trim_start_matches('\u{feff}').lines().enumerate();
    let (_, header) = lines
        .find(|(_, line)| !line.trim().is_empty())
        .with_context(|| format!("{source} is empty"))?;
    let columns: Vec<_> = header.split(',').map(|name| name.trim().trim_matches('"')).collect();
    let find = |names: &[&str]| {
        columns.iter().position(|column| names.iter().any(|n| n.eq_ignore_ascii_case(column)))
    };
    let need = |names: &[&str]| {
        find(names).with_context(|| {
            format!(
                "{source}: line 1 names no column `{}`; a trace begins with \
                 `TIMESTAMP,ContextTokens,GeneratedTokens` or \
                 `time,pool,promptTokens,generatedTokens`",
                names[0]
            )
        })
    };
    let (time, prompt, output) = (need(&TIME)?, need(&PROMPT)?, need(&OUTPUT)?);
    let pool_column = find(&POOL);
    let mut rows = Vec::new();
    let mut others = std::collections::BTreeSet::new();
    for (at, line) in lines {
        if line.trim().is_empty() {
            continue;
        }
        let here = || format!("{source}: line {}", at + 1);
        let fields: Vec<_> = line.split(',').map(|field| field.trim().trim_matches('"')).collect();
        ensure!(
            fields.len() == columns.len(),
            "{}: {} fields where the header names {}",
            here(),
            fields.len(),
            columns.len()
        );
        if let Some(column) = pool_column
            && fields[column] != pool
        {
            others.insert(fields[column].to_owned());
            continue;
        }
        let arrived = instant(fields[time]).with_context(|| {
            format!(
                "{}: `{}` is no time; write `2026-11-16 18:17:03.97`, `2026-11-16T18:17:03Z`, or \
                 seconds",
                here(),
                fields[time]
            )
        })?;
        let tokens = |column: usize| match fields[column].parse::<u32>() {
            Ok(tokens) if tokens <= MOST_TOKENS => Ok(tokens),
            _ => bail!("{}: `{}` is no number of tokens", here(), fields[column]),
        };
        rows.push((arrived, tokens(prompt)?, tokens(output)?.max(1)));
    }
    if rows.is_empty() && !others.is_empty() {
        let others: Vec<_> = others.into_iter().collect();
        bail!("{source} has no request of pool `{pool}`, only of: {}", others.join(", "));
    }
    rows.sort_unstable();
    let first = rows.first().with_context(|| format!("{source} has a header and no requests"))?.0;
    let requests: Vec<_> = rows
        .into_iter()
        .map(|(at, prompt, output)| Request { at: (at - first) as u64, prompt, output })
        .collect();
    let length = requests.last().map_or(0, |request| request.at) + SECOND;
    let began_ms = u64::try_from(first / 1000).unwrap_or(0);
    Ok(Trace { name: name.to_owned(), began_ms, length, requests })
}

/// Microseconds since the epoch. A time without a zone is UTC; a bare number is seconds.
fn instant(text: &str) -> Option<i64> {
    if let Ok(seconds) = text.parse::<f64>() {
        let sane = (0.0..1e11).contains(&seconds);
        return sane.then(|| (seconds * 1e6).round() as i64);
    }
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Some(at.as_microsecond());
    }
    let civil: DateTime = text.parse().ok()?;
    Some(TimeZone::UTC.to_timestamp(civil).ok()?.as_microsecond())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn azure_s_and_our_own_columns_are_read_in_any_order_of_rows() {
        let azure = "TIMESTAMP,ContextTokens,GeneratedTokens\n\
                     2023-11-16 18:17:03.9799600,4808,10\n\
                     2023-11-16 18:17:05.0319600,3180,8\n";
        let trace = parse(azure, "azure", "a.csv", "any").expect("valid");
        assert_eq!(trace.began_ms, 1_700_158_623_979);
        let want = Request { at: 1_052_000, prompt: 3180, output: 8 };
        assert_eq!((trace.requests.len(), trace.requests[1]), (2, want));

        let ours = "time,pool,promptTokens,generatedTokens\n\
                    2026-01-05T09:00:02Z,chat,20,3\n\
                    2026-01-05T09:00:01.5Z,other,1,1\n\
                    2026-01-05T09:00:00Z,chat,10,0\n";
        let trace = parse(ours, "ours", "o.csv", "chat").expect("valid");
        let want = [
            Request { at: 0, prompt: 10, output: 1 },
            Request { at: 2_000_000, prompt: 20, output: 3 },
        ];
        assert_eq!(trace.requests, want);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_what_to_write() {
        let head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
        for (case, text, want) in [
            ("empty", String::new(), "t.csv is empty"),
            ("no header", "1,2,3\n".to_owned(), "line 1 names no column `TIMESTAMP`"),
            ("no rows", head.to_owned(), "a header and no requests"),
            (
                "short row",
                format!("{head}1,2,3\n4,5\n"),
                "line 3: 2 fields where the header names 3",
            ),
            ("no number", format!("{head}1,x,3\n"), "line 2: `x` is no number of tokens"),
            ("no time", format!("{head}soon,2,3\n"), "line 2: `soon` is no time; write"),
            (
                "another pool",
                "time,pool,promptTokens,generatedTokens\n1,b,2,3\n".to_owned(),
                "no request of pool `a`, only of: b",
            ),
        ] {
            let error = format!("{:#}", parse(&text, "t", "t.csv", "a").expect_err(case));
            assert!(error.contains(want), "{case}: {error}");
        }
    }
}
