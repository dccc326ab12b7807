//! The policy of a pool, with what it has learned.

use std::time::Duration;

use forebay_config::Pick;
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::candidate::EndpointId;
use super::candidates::Candidates;
use super::choice::{CacheReport, CachedTokens, Choice};
use super::consistent_hash::consistent_hash;
use super::given::Given;
use super::knowledge::Knowledge;
use super::learned::Learned;
use super::least_load::least_load;
use super::power_of_two::{Latencies, power_of_two};
use super::prefix_affinity::prefix_affinity;
use super::requirements::Requirements;
use super::round_robin::{Turn, round_robin};
use super::suitable::Suitable;
#[cfg(test)]
use crate::{prefix::index::Matches, prompt::Prompt};

/// Chooses endpoints by the policy of its pool.
///
/// The caller reports what becomes of each request: given to an endpoint ([`Picker::given`]), its
/// first token ([`Picker::first_token`]), its end ([`Picker::ended`]). Times count from any moment,
/// the same one in all calls.
#[derive(Debug)]
pub struct Picker {
    policy: Pick,
    seed: u64,
    random: SmallRng,
    turn: Turn,
    latencies: Latencies,
    /// The knowledge of prefix affinity; `None` under another policy.
    knowledge: Option<Box<Knowledge>>,
}

impl Picker {
    /// A picker that has learned nothing. Pickers with the same seed choose the same.
    #[must_use]
    pub fn new(policy: Pick, seed: u64) -> Self {
        let knows = policy == Pick::PrefixAffinity;
        Self {
            policy,
            seed,
            random: SmallRng::seed_from_u64(seed),
            turn: Turn::default(),
            latencies: Latencies::default(),
            knowledge: knows.then(|| Box::new(Knowledge::new(seed))),
        }
    }

    /// Changes the policy; true if it was another one. Prefix affinity begins with knowing nothing.
    pub fn set_policy(&mut self, policy: Pick, candidates: &mut Candidates) -> bool {
        candidates.keep_ring(matches!(policy, Pick::ConsistentHash | Pick::PrefixAffinity));
        if policy != Pick::PrefixAffinity {
            self.knowledge = None;
        } else if self.knowledge.is_none() {
            self.knowledge = Some(Box::new(Knowledge::new(self.seed)));
        }
        std::mem::replace(&mut self.policy, policy) != policy
    }

    /// Chooses an endpoint for a request; `None` if none can take it now.
    pub fn pick(
        &mut self,
        candidates: &Candidates,
        request: &Requirements,
        now: Duration,
    ) -> Option<Choice> {
        let suitable = Suitable::of(candidates, request);
        let id = match (self.policy, &mut self.knowledge) {
            (Pick::PrefixAffinity, Some(knowledge)) => {
                return prefix_affinity(&suitable, knowledge, &mut self.random, now);
            }
            (Pick::LeastLoad | Pick::PrefixAffinity, _) => least_load(&suitable),
            (Pick::RoundRobin, _) => round_robin(&suitable, &mut self.turn),
            (Pick::PowerOfTwo, _) => {
                power_of_two(&suitable, &self.latencies, &mut self.random, now)
            }
            (Pick::ConsistentHash, _) => consistent_hash(&suitable),
        };
        id.map(Choice::of)
    }

    /// Takes that the chosen endpoint has the request, which counts in its candidate. `None` if the
    /// policy learns nothing from it.
    pub fn given(
        &mut self,
        candidates: &Candidates,
        choice: Choice,
        request: &Requirements,
        now: Duration,
    ) -> Option<Box<Given>> {
        let candidate = candidates.get(choice.id)?;
        let process = candidate.process;
        let given = Given {
            choice,
            process,
            at: now,
            first_token: None,
            prompt: None,
            work: None,
            usage: None,
            client_time: Duration::ZERO,
            goes_on: false,
        };
        if self.policy == Pick::PowerOfTwo {
            return Some(Box::new(given));
        }
        let knowledge = self.knowledge.as_mut()?;
        if choice.begins {
            knowledge.index.begun((choice.id.number() as u32, process));
        }
        let prompt = request.prompt.clone();
        let trust = knowledge.correction.trust();
        let new = prompt.as_ref().map_or(0, |prompt| choice.new_bytes(prompt, trust));
        let work = knowledge.expected.given(choice.id, candidate, new, request.streamed, now);
        Some(Box::new(Given { prompt, work: Some(work), ..given }))
    }

    /// Takes the first token of a stream.
    pub fn first_token(&mut self, given: &mut Given, now: Duration) {
        if given.first_token.is_some() {
            return;
        }
        given.first_token = Some(now);
        let (at, took) = (given.place(), now.saturating_sub(given.at).as_secs_f64());
        if self.policy == Pick::PowerOfTwo && !given.goes_on {
            self.latencies.observe(at.0, at.1, took, now);
        }
        if let Some(knowledge) = &mut self.knowledge {
            match &given.work {
                Some(work) if given.goes_on => knowledge.expected.left(at, work),
                Some(work) => knowledge.expected.first_token(at, work, took, now),
                None => {}
            }
            knowledge.prefilled(given);
        }
    }

    /// Takes the end of a request. `complete`: the engine answered it. Returns how many of the
    /// prompt's tokens were cached, if the replica reports that in one of two ways.
    pub fn ended(&mut self, given: &Given, complete: bool, now: Duration) -> Option<CachedTokens> {
        let (at, took) = (given.place(), now.saturating_sub(given.at).as_secs_f64());
        let answered = given.first_token.is_some();
        if complete && !answered && self.policy == Pick::PowerOfTwo {
            // A plain answer's first token is not seen. It took no longer than a token on average.
            let tokens = given.usage.map_or(1, |usage| usage.generated.max(1));
            self.latencies.observe(at.0, at.1, took / tokens as f64, now);
        }
        let knowledge = self.knowledge.as_mut()?;
        if let Some(work) = &given.work {
            knowledge.expected.left(at, work);
        }
        if complete && !answered {
            knowledge.prefilled(given);
        } else if !answered && given.choice.begins {
            knowledge.index.not_begun((given.choice.id.number() as u32, given.process));
        }
        if complete || answered { knowledge.ended(given, given.usage?, now) } else { None }
    }

    #[cfg(test)]
    pub(super) fn trust(&self) -> Option<f64> {
        self.knowledge.as_ref().map(|knowledge| knowledge.correction.trust())
    }

    #[cfg(test)]
    pub(super) fn find(&self, prompt: &Prompt) -> Matches {
        self.knowledge.as_ref().expect("it is its policy").index.find(prompt, |_| true)
    }

    #[cfg(test)]
    pub(super) fn conversations(&self, id: EndpointId) -> f32 {
        let knowledge = self.knowledge.as_ref().expect("it is its policy");
        knowledge.index.conversations(id.number() as u32)
    }

    /// Takes that an endpoint is removed. Its number may be given to another.
    pub fn removed(&mut self, id: EndpointId) {
        if let Some(knowledge) = &mut self.knowledge {
            knowledge.index.forget(id.number() as u32);
        }
    }

    /// The knowledge of an endpoint's process; `None` under a policy that learns nothing of it.
    #[must_use]
    pub fn learned(&self, id: EndpointId, process: u64, now: Duration) -> Option<Learned> {
        self.knowledge.as_ref().map(|knowledge| knowledge.learned(id, process, now))
    }

    /// Whether an endpoint's own report about its cache would say something new.
    pub fn wants_report(&mut self, id: EndpointId, process: u64) -> bool {
        self.knowledge.as_mut().is_some_and(|knowledge| knowledge.wants_report(id, process))
    }

    /// Takes an endpoint's own report about its cache.
    pub fn reported(&mut self, id: EndpointId, process: u64, report: &CacheReport) {
        if let Some(knowledge) = &mut self.knowledge {
            knowledge.reported(id, process, report);
        }
    }
}
