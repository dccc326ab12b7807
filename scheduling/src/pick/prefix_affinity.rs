//! Prefix affinity: an endpoint that remembers the prompt, unless others would answer much sooner.
//!
//! A filter, never an order. The endpoint of the session's last turn, or else those that should hold
//! most of the prompt, are preferred as long as the request can expect its first token there not
//! much later than at the best endpoint: by some times the time that working on the remembered part
//! would take. Another endpoint would spend that on it, and so would make all others wait there, too. Among several, the one with the least
//! expected time is chosen. So load alone decides where all endpoints hold the prefix, and a hot prefix
//! spreads as soon as its holders are busy: first to as many endpoints as the index names, and then to
//! those that are idle.
//!
//! Where conversations go on, a new one that begins as many others do is placed for all of its turns: its
//! beginning is no reason to prefer an endpoint. The endpoint with the fewest conversations gets it.
//!
//! For a prompt that no endpoint remembers, gateways that don't talk to each other come to the same
//! endpoint: the one to which its first block leads on a ring, if that one is about as good as the
//! best.
//!
//! Sources: the filter with a bound on the time to the first token is llm-d's ("optimized
//! baseline"); the ring with bounded loads is that of `consistent_hash.rs`.

use std::array::from_fn;
use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;

use super::candidate::EndpointId;
use super::choice::Choice;
use super::consistent_hash::within_bound;
use super::expected::SharedTerms;
use super::knowledge::Knowledge;
use super::suitable::Suitable;
use crate::prefix::index::{Found, HOLDERS};
use crate::prompt::{BLOCK_BYTES, Prompt};

/// In a pool of no more open endpoints than this, all are compared; in a larger one, the least busy
/// one and some that are drawn.
const ALL: usize = 12;
const DRAWN: usize = 4;
/// The part of the longest match that makes an endpoint's match good enough.
const GOOD: f64 = 0.8;
/// How many times the work that a match saves a first token may come later for a match of the whole
/// prompt; for a part of it as many times less, and no less than once. Work that is done twice makes all
/// others wait that come after it, so in a busy pool a match is worth more than it saves the request
/// itself. A beginning that many prompts share is worth that only once.
const PATIENCE: f64 = 4.0;
/// The longest time by which a first token may come later for a match, in seconds.
const LATEST: f64 = 20.0;
/// The least share of prompts that go on with a conversation for a pool to be one of conversations.
const LASTING: f32 = 0.5;
/// By how many times the work on its beginning a conversation's first token may be delayed, so that its
/// later turns find room in a cache.
const SPREADS: f64 = 2.0;
/// The part of a cache up to which a beginning may be copied to other caches.
const COPIED: f64 = 0.125;
/// How many times the mean number of requests in flight, and how many more, an endpoint may have to
/// be preferred. Beyond it decoding would be shared out badly.
const BUSIER: (f64, f64) = (1.5, 4.0);
/// A beginning is hot if hardly more was written since it was last used than so many times the rest of
/// the prompt: nearly every request there has it.
const HOT: u32 = 2;
/// How much later an endpoint may answer to be about as good as the best: a part of its time, and some
/// seconds.
const ABOUT: (f64, f64) = (1.1, 0.02);

/// An endpoint with the time to the first token that is expected there.
#[derive(Clone, Copy, Debug)]
struct Rated {
    choice: Choice,
    seconds: f64,
}

/// Chooses an endpoint.
pub(super) fn prefix_affinity(
    suitable: &Suitable<'_>,
    knowledge: &mut Knowledge,
    random: &mut SmallRng,
    now: Duration,
) -> Option<Choice> {
    let none = Prompt::default();
    let prompt = suitable.prompt().unwrap_or(&none);
    let lives = |found: &Found| {
        let candidate = suitable.get(EndpointId::of(found.endpoint));
        candidate.is_some_and(|candidate| candidate.process == found.process)
    };
    let matches = knowledge.index.find(prompt, lives);
    let session = prompt.session.and_then(|session| knowledge.index.session(session));
    let shared = knowledge.expected.shared(now);
    let trust = knowledge.correction.trust();
    let mut rating = Rating { suitable, knowledge, prompt, matches: matches.all(), shared, trust };
    // Of equals, the least busy one is the first, so that they take turns.
    let least = suitable.least_busy();
    let mut best = least.and_then(|id| rating.rate(id));
    if suitable.open() == 1 {
        return best.map(|only| only.choice);
    }
    // A conversation that begins and will go on needs another comparison, of all that were rated.
    let begins = matches.shared() && session.is_none() && rating.begins();
    let mut all: Vec<_> = best.filter(|_| begins).into_iter().collect();
    let mut compare = |rated: Option<Rated>| {
        all.extend(rated.filter(|_| begins));
        best = sooner(best, rated);
    };
    if suitable.open() <= ALL {
        suitable.each_open(|id| {
            if least != Some(id) {
                compare(rating.rate(id));
            }
        });
    } else {
        // All are drawn before one is rated: their memory is far apart, and is fetched at once.
        let drawn: [_; DRAWN] = from_fn(|_| suitable.draw(|most| random.random_range(0..most)));
        for id in drawn.into_iter().flatten() {
            compare(rating.rate(id));
        }
        for found in matches.all() {
            compare(rating.rate_found(found));
        }
    }
    let best = best?;
    if begins {
        let chosen = rating.least_crowded(&all, best).choice;
        return Some(Choice { begins: true, ..chosen });
    }
    if let Some(preferred) = rating.preferred(session.as_ref(), best) {
        let spare = if session.is_none() { rating.spare(preferred) } else { None };
        return Some(spare.unwrap_or(preferred).choice);
    }
    let first = matches.all().is_empty().then(|| prompt.blocks.first()).flatten();
    let led = first.and_then(|first| within_bound(suitable, *first));
    let led = led.and_then(|id| rating.rate(id));
    let led = led.filter(|led| led.seconds <= best.seconds * ABOUT.0 + ABOUT.1);
    Some(led.unwrap_or(best).choice)
}

/// The one of two endpoints that answers sooner.
fn sooner(one: Option<Rated>, other: Option<Rated>) -> Option<Rated> {
    match (one, other) {
        (Some(one), Some(other)) if other.seconds >= one.seconds => Some(one),
        (one, other) => other.or(one),
    }
}

/// The rating of endpoints for one request.
struct Rating<'a> {
    suitable: &'a Suitable<'a>,
    knowledge: &'a mut Knowledge,
    prompt: &'a Prompt,
    matches: &'a [Found],
    shared: SharedTerms,
    /// The part of a match that turns out to be cached.
    trust: f64,
}

impl Rating<'_> {
    /// The time that is expected at a suitable endpoint.
    fn rate(&mut self, id: EndpointId) -> Option<Rated> {
        let candidate = self.suitable.admitted(id)?;
        let found = self.matches.iter().find(|found| {
            found.endpoint as usize == id.number() && found.process == candidate.process
        });
        let (blocks, age) = found.map_or((0, 0), |found| (found.blocks, found.age));
        let choice = Choice { blocks, age, ..Choice::of(id) };
        let new = choice.new_bytes(self.prompt, self.trust);
        let seconds = self.knowledge.expected.seconds(id, candidate, new, &self.shared);
        Some(Rated { choice, seconds })
    }

    fn rate_found(&mut self, found: &Found) -> Option<Rated> {
        self.rate(EndpointId::of(found.endpoint)).filter(|rated| rated.choice.blocks > 0)
    }

    /// Whether the prompt, which has a beginning that others share, begins a conversation that will go on,
    /// and any cache can take that beginning.
    fn begins(&self) -> bool {
        let Some(found) = self.matches.first() else { return false };
        let beginning = f64::from(found.blocks) * BLOCK_BYTES as f64;
        let takes = self.knowledge.horizon(EndpointId::of(found.endpoint), found.process) as f64;
        self.knowledge.index.going_on() >= LASTING && beginning <= takes * COPIED
    }

    /// The endpoint for a new conversation whose beginning others share: of those that answer soon enough,
    /// the one with the fewest conversations for its cache. Work on the beginning is done once, and the
    /// cache is needed for each later turn. A copy of the beginning counts as one more conversation.
    fn least_crowded(&self, all: &[Rated], best: Rated) -> Rated {
        let beginning = self.matches.first().map_or(0, |found| found.blocks);
        let bytes = f64::from(beginning) * BLOCK_BYTES as f64 * self.trust;
        let later = SPREADS * self.knowledge.expected.work(bytes as u64);
        let latest = best.seconds + later.min(LATEST);
        let most = self.most_in_flight();
        let crowd = |rated: &Rated| {
            let id = rated.choice.id;
            let candidate = self.suitable.get(id)?;
            let fits = rated.seconds <= latest && f64::from(candidate.in_flight) <= most;
            let copies = if rated.choice.blocks < beginning { 1.0 } else { 0.0 };
            let count = self.knowledge.index.conversations(id.number() as u32) + copies;
            let takes = self.knowledge.horizon(id, candidate.process).max(1);
            fits.then_some((f64::from(count) / takes as f64, *rated))
        };
        let fewest = all.iter().filter_map(crowd).min_by(|(one, a), (other, b)| {
            one.total_cmp(other).then(a.seconds.total_cmp(&b.seconds))
        });
        fewest.map_or(best, |(_, rated)| rated)
    }

    /// The most requests in flight that an endpoint may have to be preferred.
    fn most_in_flight(&self) -> f64 {
        let (in_flight, ready) = self.suitable.load();
        in_flight as f64 / ready.max(1) as f64 * BUSIER.0 + BUSIER.1
    }

    /// An idle endpoint that should hold a hot beginning as well, while the preferred one has others to
    /// work on first: where an entry of the index names no more holders, those that it does not name
    /// had the beginning before, or will.
    fn spare(&mut self, preferred: Rated) -> Option<Rated> {
        let Choice { blocks, age, .. } = preferred.choice;
        let rest = (self.prompt.blocks.len() as u32).saturating_sub(blocks).max(1);
        let good = (f64::from(blocks) * GOOD) as u32;
        let named = self.matches.iter().filter(|found| found.blocks >= good).count();
        let new = preferred.choice.new_bytes(self.prompt, self.trust);
        let alone = self.knowledge.expected.work(new);
        if named < HOLDERS
            || age > rest.saturating_mul(HOT)
            || preferred.seconds <= 2.0 * alone + ABOUT.1
        {
            return None;
        }
        let id = self.suitable.least_busy()?;
        let idle = self.suitable.get(id)?.in_flight == 0;
        let unnamed = self.rate(id)?.choice.blocks < good;
        let choice = Choice { id, ..preferred.choice };
        (idle && unnamed).then_some(Rated { choice, ..preferred })
    }

    /// The endpoint that is preferred to the best one for what it remembers.
    fn preferred(&mut self, session: Option<&Found>, best: Rated) -> Option<Rated> {
        let mut found = self.matches.iter();
        // The longest match of those that can take it.
        let first = found.find_map(|found| self.rate_found(found))?;
        let most = self.most_in_flight();
        let fits = |rating: &mut Self, rated: &Rated| {
            let saved = f64::from(rated.choice.blocks) * BLOCK_BYTES as f64;
            let saved = saved * rating.trust;
            let part = saved / f64::from(rating.prompt.bytes.max(1));
            let saved = rating.knowledge.expected.work(saved as u64);
            let later = (saved * (PATIENCE * part).max(1.0)).min(LATEST);
            let candidate = rating.suitable.get(rated.choice.id);
            candidate.is_some_and(|candidate| f64::from(candidate.in_flight) <= most)
                && rated.seconds <= best.seconds + later
        };
        let own = session.and_then(|session| self.rate_found(session));
        if let Some(own) = own.filter(|own| fits(self, own)) {
            return Some(own);
        }
        let good = (f64::from(first.choice.blocks) * GOOD) as u32;
        let mut preferred = Some(first).filter(|first| fits(self, first));
        for found in found.take_while(|found| found.blocks >= good) {
            if let Some(rated) = self.rate_found(found)
                && preferred.is_none_or(|other| rated.seconds < other.seconds)
                && fits(self, &rated)
            {
                preferred = Some(rated);
            }
        }
        preferred
    }
}

#[cfg(test)]
mod tests;
