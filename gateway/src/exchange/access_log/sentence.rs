//! A request's line as a sentence, for a person who watches a terminal.

use std::fmt;
use std::time::Duration;

use super::Line;
use crate::answer::outcome::Outcome;

/// Holds that a person would not notice are left out.
const NOTICEABLE: Duration = Duration::from_millis(10);

/// `sim: POST /v1/chat/completions 200 in 3.2 s (held 3.1 s, first token after 3.1 s, 16 tokens)`
pub(super) struct Sentence<'a>(pub(super) &'a Line<'a>);

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { context, pool, progress, conclusion, tokens, took, .. } = self.0;
        if let Some(pool) = pool {
            write!(f, "{pool}: ")?;
        }
        write!(f, "{} {}", context.method, context.path())?;
        if let Some(status) = conclusion.status {
            write!(f, " {status}")?;
        }
        write!(f, " in {}", Short(*took))?;
        if conclusion.outcome != Outcome::Completed {
            let outcome = conclusion.outcome.name();
            write!(f, ", {}", outcome.replace('_', " "))?;
            if let Some(reason) = conclusion.reason.filter(|reason| *reason != outcome) {
                write!(f, ": {}", reason.replace('_', " "))?;
            }
        }
        let mut details = Vec::new();
        if let Some(held) = progress.held().filter(|held| *held >= NOTICEABLE) {
            details.push(format!("held {}", Short(held)));
        }
        if let Some(at) = progress.first_token {
            let ttft = at.saturating_duration_since(context.accepted);
            details.push(format!("first token after {}", Short(ttft)));
        }
        match tokens.generated {
            0 => {}
            1 => details.push("1 token".to_owned()),
            more => details.push(format!("{more} tokens")),
        }
        if progress.tries > 1 {
            details.push(format!("{} tries", progress.tries));
        }
        if details.is_empty() { Ok(()) } else { write!(f, " ({})", details.join(", ")) }
    }
}

/// A time in a unit that suits its size.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_millis() {
            ms @ ..1000 => write!(f, "{ms} ms"),
            _ => write!(f, "{:.1} s", self.0.as_secs_f64()),
        }
    }
}

#[cfg(test)]
mod tests {

    use super::super::tests::written;
    use super::*;
    use crate::answer::meter::Tokens;
    use crate::exchange::progress::{Conclusion, RequestProgress};

    #[test]
    fn a_request_is_a_sentence() {
        let mut sentence = String::new();
        written(|line| {
            let tokens = Tokens { generated: 16, ..Tokens::default() };
            let first_token = line.context.accepted + Duration::from_millis(3_140);
            let mut progress = RequestProgress::default();
            (progress.first_token, progress.tries) = (Some(first_token), 2);
            let took = Duration::from_millis(3_190);
            sentence =
                Sentence(&Line { tokens: &tokens, progress: &progress, took, ..*line }).to_string();
        });
        assert_eq!(
            sentence,
            "p: POST /v1/completions 200 in 3.2 s (first token after 3.1 s, 16 tokens, 2 tries)"
        );
    }

    #[test]
    fn a_refusal_has_its_reason() {
        let mut sentence = String::new();
        written(|line| {
            let conclusion = Conclusion {
                outcome: Outcome::Refused,
                status: Some(404),
                reason: Some("unknown_model"),
            };
            let (tokens, took) = (Tokens::default(), Duration::ZERO);
            sentence = Sentence(&Line { pool: None, conclusion, tokens: &tokens, took, ..*line })
                .to_string();
        });
        assert_eq!(sentence, "POST /v1/completions 404 in 0 ms, refused: unknown model");
    }
}
