//! Traces from CSV files: Azure's columns and those of Forebay's own recordings.
//!
//! Azure: `TIMESTAMP,ContextTokens,GeneratedTokens`. Forebay: `time,pool,promptTokens,
//! generatedTokens`. Columns are found by name, in any order; other columns are ignored. Rows may be
//! out of order, since a recording gets its rows as requests end.

use std::collections::BTreeSet;

use anyhow::{Context, bail, ensure};
use csv::{ReaderBuilder, StringRecord, Trim};
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use super::{Request, SECOND, Trace};

/// The names of each column.
const TIME: [&str; 3] = ["TIMESTAMP", "time", "arrived_at"];
const POOL: [&str; 1] = ["pool"];
const PROMPT: [&str; 3] = ["ContextTokens", "promptTokens", "num_prefill_tokens"];
const OUTPUT: [&str; 3] = ["GeneratedTokens", "generatedTokens", "num_decode_tokens"];
/// A row with more tokens is broken.
pub(super) const MOST_TOKENS: u32 = 100_000_000;

/// The places of the columns that a trace needs.
struct Columns {
    count: usize,
    time: usize,
    pool: Option<usize>,
    prompt: usize,
    output: usize,
}

impl Columns {
    fn find(header: &StringRecord, text: &str, source: &str) -> anyhow::Result<Self> {
        let find = |names: &[&str]| {
            let named = |column: &str| names.iter().any(|name| name.eq_ignore_ascii_case(column));
            (0..header.len()).position(|column| named(field(header, column)))
        };
        let need = |names: &[&str]| {
            find(names).with_context(|| {
                format!(
                    "{source}: line {} has no column `{}`; a trace begins with \
                     `TIMESTAMP,ContextTokens,GeneratedTokens` or \
                     `time,pool,promptTokens,generatedTokens`",
                    line(text, header),
                    names[0]
                )
            })
        };
        Ok(Self {
            count: header.len(),
            time: need(&TIME)?,
            pool: find(&POOL),
            prompt: need(&PROMPT)?,
            output: need(&OUTPUT)?,
        })
    }
}

/// The line on which a record begins. The reader's own position is that of the line end before it.
fn line(text: &str, record: &StringRecord) -> usize {
    let end = record.position().map_or(0, |position| position.byte() as usize);
    let begin = end + text[end..].find(|c| c != '\r' && c != '\n').unwrap_or(0);
    text[..begin].matches('\n').count() + 1
}

/// A field without the quotes that the reader leaves where a space precedes them.
fn field(record: &StringRecord, column: usize) -> &str {
    record[column].trim_matches('"')
}

/// Reads a trace. `source` is the file's name in errors; of a recording, only the requests of `pool`
/// are read.
pub(super) fn parse(text: &str, name: &str, source: &str, pool: &str) -> anyhow::Result<Trace> {
    let text = text.trim_start_matches('\u{feff}');
    let mut reader = ReaderBuilder::new()
        .has_headers(false)
        .flexible(true)
        .trim(Trim::All)
        .from_reader(text.as_bytes());
    let mut columns = None;
    let mut rows = Vec::new();
    let mut others = BTreeSet::new();
    let mut record = StringRecord::new();
    while reader.read_record(&mut record).with_context(|| format!("{source} is not a CSV file"))? {
        if record.iter().all(str::is_empty) {
            continue;
        }
        let Some(columns) = &columns else {
            columns = Some(Columns::find(&record, text, source)?);
            continue;
        };
        let here = || format!("{source}: line {}", line(text, &record));
        ensure!(
            record.len() == columns.count,
            "{}: {} fields, but the header has {}",
            here(),
            record.len(),
            columns.count
        );
        if let Some(other) =
            columns.pool.map(|column| field(&record, column)).filter(|name| *name != pool)
        {
            others.insert(other.to_owned());
            continue;
        }
        let arrived = instant(field(&record, columns.time)).with_context(|| {
            format!(
                "{}: `{}` is not a time; write `2026-11-16 18:17:03.97`, `2026-11-16T18:17:03Z`, \
                 or seconds",
                here(),
                field(&record, columns.time)
            )
        })?;
        let tokens = |column: usize| match field(&record, column).parse::<u32>() {
            Ok(tokens) if tokens <= MOST_TOKENS => Ok(tokens),
            _ => bail!("{}: `{}` is not a number of tokens", here(), field(&record, column)),
        };
        rows.push((arrived, tokens(columns.prompt)?, tokens(columns.output)?.max(1)));
    }
    ensure!(columns.is_some(), "{source} is empty");
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
    Ok(Trace { name: name.to_owned(), began_ms, length, requests, contents: Vec::new() })
}

/// Reads a time as microseconds since the epoch. A time without a zone is UTC; a plain number is
/// seconds.
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
    fn fields_may_be_quoted_and_hold_commas_and_files_may_begin_with_a_byte_order_mark() {
        let text = "\u{feff}\"note\", TIMESTAMP ,ContextTokens,GeneratedTokens\r\n\
                    \"a, \"\"b\"\"\",3, \"4\" ,5\r\n";
        let trace = parse(text, "quoted", "q.csv", "any").expect("valid");
        assert_eq!(trace.requests, [Request { at: 0, prompt: 4, output: 5 }]);
    }

    #[test]
    fn an_error_names_its_line_and_the_fix() {
        let head = "TIMESTAMP,ContextTokens,GeneratedTokens\n";
        for (case, text, want) in [
            ("empty", String::new(), "t.csv is empty"),
            ("no header", "1,2,3\n".to_owned(), "line 1 has no column `TIMESTAMP`"),
            ("no rows", head.to_owned(), "a header and no requests"),
            ("short row", format!("{head}1,2,3\n4,5\n"), "line 3: 2 fields, but the header has 3"),
            (
                "short row behind empty lines",
                format!("\n{head}1,2,3\n\n  \n4,5\n"),
                "line 6: 2 fields, but the header has 3",
            ),
            (
                "Windows line ends",
                format!("{head}1,2,3\n4,x,6\n").replace('\n', "\r\n"),
                "line 3: `x`",
            ),
            ("no number", format!("{head}1,x,3\n"), "line 2: `x` is not a number of tokens"),
            ("no time", format!("{head}soon,2,3\n"), "line 2: `soon` is not a time; write"),
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
