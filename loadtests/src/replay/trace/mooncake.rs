//! Traces as Mooncake publishes them: a JSON object per line with `timestamp` in milliseconds,
//! `input_length` and `output_length` in tokens, and `hash_ids`.
//!
//! An id stands for 512 tokens of a prompt, or for its rest. Where prompts have the same ids, they
//! have the same content.

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::content::{PromptContent, Segment};
use super::file::MOST_TOKENS;
use super::{Request, SECOND, Trace};

#[derive(Deserialize)]
struct Row {
    timestamp: u64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

/// Tokens that an id stands for.
const BLOCK: u32 = 512;

/// A year: longer times are mistakes, and would leave the range of simulated time.
const MOST_MILLIS: u64 = 366 * 86_400_000;

pub(super) fn parse(text: &str, name: &str, source: &str) -> anyhow::Result<Trace> {
    let mut rows = Vec::new();
    for (at, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let here = || format!("{source}: line {}", at + 1);
        let row: Row = serde_json::from_str(line).with_context(|| {
            format!(
                "{}: write a JSON object with `timestamp` (milliseconds), `input_length` and \
                 `output_length` (tokens)",
                here()
            )
        })?;
        for (field, tokens) in
            [("input_length", row.input_length), ("output_length", row.output_length)]
        {
            ensure!(tokens <= MOST_TOKENS, "{}: `{field}` is over {MOST_TOKENS}", here());
        }
        ensure!(row.timestamp <= MOST_MILLIS, "{}: `timestamp` is over a year", here());
        let blocks = row.input_length.div_ceil(BLOCK) as usize;
        ensure!(
            row.hash_ids.is_empty() || row.hash_ids.len() == blocks,
            "{}: `hash_ids` has {} ids, but a prompt of {} tokens has {blocks} blocks of {BLOCK}",
            here(),
            row.hash_ids.len(),
            row.input_length
        );
        rows.push((row.timestamp, row.input_length, row.output_length.max(1), row.hash_ids));
    }
    rows.sort_unstable();
    let first = rows.first().with_context(|| format!("{source} is empty"))?.0;
    let with_ids = rows.iter().any(|(.., ids)| !ids.is_empty());
    let (mut requests, mut contents) = (Vec::new(), Vec::new());
    for (at, prompt, output, ids) in rows {
        requests.push(Request { at: (at - first) * 1000, prompt, output });
        if with_ids {
            contents.push(content(prompt, &ids));
        }
    }
    let length = requests.last().map_or(0, |request| request.at) + SECOND;
    Ok(Trace { name: name.to_owned(), began_ms: 0, length, requests, contents })
}

/// A prompt of `tokens` as its ids describe it. Without ids it has nothing in common with others.
fn content(tokens: u32, ids: &[u64]) -> PromptContent {
    let segment = |(at, id): (usize, &u64)| {
        let begin = BLOCK.saturating_mul(at as u32);
        Segment { id: *id, tokens: tokens.saturating_sub(begin).min(BLOCK) }
    };
    PromptContent { segments: ids.iter().enumerate().map(segment).collect(), session: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_gives_its_time_and_its_lengths() {
        let text = "{\"timestamp\": 30500, \"input_length\": 758, \"output_length\": 500, \"hash_ids\": [46, 1]}\n\
                    {\"timestamp\": 27482, \"input_length\": 955, \"output_length\": 0, \"hash_ids\": [46, 2]}\n";
        let trace = parse(text, "mooncake", "m.jsonl").expect("valid");
        let want = [
            Request { at: 0, prompt: 955, output: 1 },
            Request { at: 3_018_000, prompt: 758, output: 500 },
        ];
        assert_eq!((trace.requests.as_slice(), trace.length), (&want[..], 4_018_000));
        let blocks = [0, 1].map(|at| trace.contents[at].blocks(16));
        assert_eq!(blocks.each_ref().map(Vec::len), [59, 47]);
        assert_eq!(
            (blocks[0][..32] == blocks[1][..32], blocks[0][32] == blocks[1][32]),
            (true, false)
        );
    }

    #[test]
    fn a_wrong_row_is_named_with_its_line_and_what_to_write() {
        let good = r#"{"timestamp": 1, "input_length": 2, "output_length": 3}"#;
        for (text, want) in [
            (String::new(), "m.jsonl is empty"),
            (
                format!("{good}\n{{\"timestamp\": 1}}"),
                "line 2: write a JSON object with `timestamp`",
            ),
            (good.replace('2', "900000000"), "line 1: `input_length` is over"),
            (
                good.replace('}', r#", "hash_ids": [1, 2]}"#),
                "has 2 ids, but a prompt of 2 tokens has 1",
            ),
        ] {
            let error = format!("{:#}", parse(&text, "m", "m.jsonl").expect_err("wrong"));
            assert!(error.contains(want), "{error}");
        }
    }
}
