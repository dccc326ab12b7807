//! Counts and times tokens, from the facts that `judge` reads of an answer's events.
//!
//! Chunks are not tokens: one may carry several, or the bytes of an unfinished character. So the
//! counts are the server's own where it reports them, and numbers of events where it does not.
//! Times are those of events, separately for each choice; ITL is the gap between two events that
//! carry tokens, as in vLLM's own benchmark.

use std::time::Duration;

use forebay_signals::Histogram;
use tokio::time::Instant;

use crate::answer::judge::{Facts, Finish, TokenUsage, Verdict};

/// The figures of one answer while it arrives.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter {
    first_token: Option<Instant>,
    last_token: Option<Instant>,
    /// Gaps between tokens in seconds. The relay takes them out from time to time.
    pub(crate) itl: Histogram,
    choices: Vec<ChoiceProgress>,
    /// The server's sum over all choices.
    total: Option<TokenUsage>,
    /// The prompt's tokens, as reported before the end.
    prompt: Option<u64>,
    /// Usage came with a part of the answer: the client requested that, or the server is configured
    /// to send it to every client.
    continuous: bool,
}

/// The progress of one choice.
#[derive(Clone, Copy, Debug)]
struct ChoiceProgress {
    index: u64,
    last: Option<Instant>,
    events: u64,
    /// Tokens counted by their ids, where the client requested these.
    counted: u64,
    /// Tokens as reported with the choice's events.
    reported: Option<u64>,
    finish: Option<Finish>,
}

/// The token counts of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens {
    /// `None` where the server did not report it.
    pub(crate) prompt: Option<u64>,
    pub(crate) cached: Option<u64>,
    pub(crate) generated: u64,
    /// `generated` is the server's own count.
    pub(crate) exact: bool,
    /// Why each choice ended, in order of index; unfinished choices are left out.
    pub(crate) finishes: Vec<Finish>,
}

impl Meter {
    /// Takes the next event's facts.
    pub(crate) fn record(&mut self, facts: &Facts, now: Instant) {
        for choice in facts.choices() {
            let progress = self.progress(choice.index);
            progress.finish = choice.finish.or(progress.finish);
            if choice.output {
                progress.events += 1;
                progress.counted += choice.tokens.unwrap_or(0);
                let gap = progress.last.replace(now).map(|last| now.duration_since(last));
                self.first_token.get_or_insert(now);
                self.last_token = Some(now);
                if let Some(gap) = gap {
                    self.itl.record(gap.as_secs_f64());
                }
            }
        }
        let Some(usage) = facts.usage else { return };
        match facts.first {
            // Usage beside a choice is that choice's; usage after the last chunk is that of all.
            Some(choice) if facts.usage_of_choice => {
                self.continuous = true;
                self.prompt = Some(usage.prompt);
                self.progress(choice.index).reported = Some(usage.generated);
            }
            None if facts.verdict == Verdict::Preamble => self.prompt = Some(usage.prompt),
            _ => self.total = Some(usage),
        }
    }

    fn progress(&mut self, index: u64) -> &mut ChoiceProgress {
        let at = match self.choices.iter().position(|choice| choice.index >= index) {
            Some(at) if self.choices[at].index == index => at,
            other => {
                let at = other.unwrap_or(self.choices.len());
                let fresh = ChoiceProgress {
                    index,
                    last: None,
                    events: 0,
                    counted: 0,
                    reported: None,
                    finish: None,
                };
                self.choices.insert(at, fresh);
                at
            }
        };
        &mut self.choices[at]
    }

    /// Notes a pause that is no gap between tokens, since the replica did not cause it.
    pub(crate) fn paused(&mut self) {
        self.choices.iter_mut().for_each(|choice| choice.last = None);
    }

    /// Notes that another replica goes on with the only choice behind its first `tokens`. It generates
    /// again what came behind them.
    pub(crate) fn goes_on_behind(&mut self, tokens: u64) {
        self.paused();
        for choice in &mut self.choices {
            choice.events = choice.events.min(tokens);
            choice.counted = tokens;
            choice.reported = choice.reported.map(|reported| reported.min(tokens));
        }
    }

    /// Sets the usage of an answer that the gateway ends in place of its replica.
    pub(crate) fn concluded(&mut self, usage: TokenUsage) {
        self.total = Some(usage);
    }

    /// Whether the server reports usage with each part, and so also sends it at the end.
    pub(crate) fn continuous(&self) -> bool {
        self.continuous
    }

    pub(crate) fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// The mean time for each token after the first, where there is more than one.
    pub(crate) fn per_token(&self) -> Option<Duration> {
        let (first, last) = (self.first_token?, self.last_token?);
        let more = u32::try_from(self.tokens().generated).ok()?.checked_sub(1)?;
        (more > 0).then(|| last.duration_since(first) / more)
    }

    /// The counts so far.
    pub(crate) fn tokens(&self) -> Tokens {
        let reported: Option<u64> = self.choices.iter().map(|choice| choice.reported).sum();
        let reported = reported.filter(|_| !self.choices.is_empty());
        let counted =
            |choice: &ChoiceProgress| choice.reported.unwrap_or(choice.counted.max(choice.events));
        Tokens {
            prompt: self.total.map(|usage| usage.prompt).or(self.prompt),
            cached: self.total.and_then(|usage| usage.cached),
            generated: match (self.total, reported) {
                (Some(usage), _) => usage.generated,
                (None, Some(reported)) => reported,
                (None, None) => self.choices.iter().map(counted).sum(),
            },
            exact: self.total.is_some() || reported.is_some(),
            finishes: self.choices.iter().filter_map(|choice| choice.finish).collect(),
        }
    }
}

impl Tokens {
    /// The counts of a plain answer.
    pub(crate) fn of_plain(facts: &Facts) -> Self {
        let usage = facts.usage.unwrap_or_default();
        Self {
            prompt: facts.usage.map(|usage| usage.prompt),
            cached: usage.cached,
            generated: usage.generated,
            exact: facts.usage.is_some(),
            finishes: facts.choices().filter_map(|choice| choice.finish).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::api::Api;
    use crate::answer::judge::judge_event;
    use crate::text::sse::SseEvent;

    /// The meter after these events, each with the millisecond at which it came.
    fn metered(api: Api, events: &[(u64, &str)]) -> (Meter, Instant) {
        let (mut meter, start) = (Meter::default(), Instant::now());
        for (at, event) in events {
            let facts = judge_event(api, &SseEvent::read(event.as_bytes()));
            meter.record(&facts, start + Duration::from_millis(*at));
        }
        (meter, start)
    }

    #[test]
    fn each_choice_is_timed_separately() {
        let (meter, start) = metered(
            Api::Completions,
            &[
                (10, r#"data: {"choices":[{"index":0,"text":"a"}]}"#),
                (11, r#"data: {"choices":[{"index":1,"text":"b"}]}"#),
                (30, r#"data: {"choices":[{"index":0,"text":"","finish_reason":"stop"}]}"#),
                (31, r#"data: {"choices":[{"index":1,"text":"c","finish_reason":"length"}]}"#),
            ],
        );
        assert_eq!(meter.first_token(), Some(start + Duration::from_millis(10)));
        assert_eq!(meter.itl.count(), 2);
        assert!((meter.itl.sum() - 0.040).abs() < 1e-9, "20 ms each, not 1 and 19");
        let want = Tokens {
            generated: 4,
            finishes: vec![Finish::Stop, Finish::Length],
            ..Tokens::default()
        };
        assert_eq!(meter.tokens(), want);
        assert_eq!(meter.per_token(), Some(Duration::from_millis(7)));
    }

    #[test]
    fn the_servers_count_wins_over_counted_events() {
        let chunk = r#"data: {"choices":[{"index":0,"text":"a b","token_ids":[1,2]}]}"#;
        let total = r#"data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":4}}}"#;
        let (meter, _) = metered(Api::Completions, &[(0, chunk), (0, chunk)]);
        assert_eq!((meter.tokens().generated, meter.tokens().exact), (4, false));
        let (meter, _) = metered(Api::Completions, &[(0, chunk), (0, chunk), (0, total)]);
        let tokens = meter.tokens();
        assert_eq!((tokens.prompt, tokens.cached, tokens.generated), (Some(9), Some(4), 7));
        assert!(tokens.exact && !meter.continuous());
    }

    #[test]
    fn a_pause_is_no_gap_and_tokens_that_are_generated_again_count_once() {
        let chunk = r#"data: {"choices":[{"index":0,"text":"a","token_ids":[1]}]}"#;
        let (mut meter, start) = metered(Api::Completions, &[(0, chunk), (10, chunk), (20, chunk)]);
        meter.goes_on_behind(1);
        assert_eq!(meter.tokens().generated, 1, "two are generated again");
        let facts = judge_event(Api::Completions, &SseEvent::read(chunk.as_bytes()));
        for at in [5_000, 5_010] {
            meter.record(&facts, start + Duration::from_millis(at));
        }
        assert_eq!(meter.tokens().generated, 3);
        assert_eq!(meter.itl.count(), 3);
        assert!((meter.itl.sum() - 0.030).abs() < 1e-9, "the pause is not among them");
    }

    #[test]
    fn usage_beside_a_choice_is_that_choices() {
        let chunk = |index: u64, tokens: u64| {
            format!(
                r#"data: {{"choices":[{{"index":{index},"text":"a"}}],"usage":{{"prompt_tokens":9,"completion_tokens":{tokens}}}}}"#
            )
        };
        let (a, b) = (chunk(0, 3), chunk(1, 4));
        let (meter, _) = metered(Api::Completions, &[(0, &a), (0, &b)]);
        let tokens = meter.tokens();
        assert_eq!((tokens.prompt, tokens.generated, tokens.exact), (Some(9), 7, true));
        assert!(meter.continuous(), "the count is exact even if the stream is cut off here");
    }

    #[test]
    fn cached_tokens_are_part_of_the_prompt_in_every_api() {
        let (meter, _) = metered(
            Api::Messages,
            &[(
                0,
                "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"end_turn\"},\"usage\":{\"input_tokens\":2,\"cache_read_input_tokens\":5,\"cache_creation_input_tokens\":1,\"output_tokens\":3}}",
            )],
        );
        let want = Tokens {
            prompt: Some(8),
            cached: Some(5),
            generated: 3,
            exact: true,
            finishes: vec![Finish::Stop],
        };
        assert_eq!(meter.tokens(), want);
    }
}
