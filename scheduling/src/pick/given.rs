//! A request at its endpoint.

use std::sync::Arc;
use std::time::Duration;

use super::candidate::EndpointId;
use super::choice::{Choice, Usage};
use super::expected::Work;
use crate::prompt::Prompt;

/// A request at its endpoint, for a policy that learns from it.
#[derive(Debug)]
#[must_use = "the policy learns from the request's end"]
pub struct Given {
    pub(super) choice: Choice,
    pub(super) process: u64,
    pub(super) at: Duration,
    /// When its first token came.
    pub(super) first_token: Option<Duration>,
    pub(super) prompt: Option<Arc<Prompt>>,
    pub(super) work: Option<Work>,
    pub(super) usage: Option<Usage>,
    /// For how long the client kept the answer waiting.
    pub(super) client_time: Duration,
    /// The endpoint goes on with another one's answer.
    pub(super) goes_on: bool,
}

impl Given {
    /// Whether the picker knows of its first token.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.first_token.is_some()
    }

    /// Takes the tokens of the answer so far.
    pub fn set_usage(&mut self, usage: Usage) {
        self.usage = Some(usage);
    }

    /// Takes the time for which the client did not read what had come. It is not the endpoint's.
    pub fn set_client_time(&mut self, time: Duration) {
        self.client_time = time;
    }

    /// Notes that the endpoint goes on with another one's answer, of which it computes the beginning with
    /// the prompt. So its first token and its count of the prompt's tokens tell nothing of the prompt.
    pub fn goes_on(&mut self) {
        self.goes_on = true;
    }

    /// The endpoint that has it, and what it should have cached of the prompt.
    #[must_use]
    pub fn choice(&self) -> Choice {
        self.choice
    }

    pub(super) fn place(&self) -> (EndpointId, u64) {
        (self.choice.id, self.process)
    }
}
