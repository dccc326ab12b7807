//! Generated loads whose prompts have beginnings in common, each from a seed. They show what a pick
//! policy gains by sending a prompt to the replica that remembers it, and where it must not.
//!
//! Arrivals are a Poisson process; lengths of texts are log-normal.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::content::{PromptContent, Segment};
use super::generate::{log_normal, normal};
use super::{Request, SECOND, Trace, Us};

/// The length of each load, in seconds.
const LENGTH: f64 = 1200.0;

/// A load of prompts with common beginnings.
pub(crate) struct ConversationShape {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    make: fn(&mut Conversations),
}

/// All of them.
pub(crate) const CONVERSATIONS: [ConversationShape; 6] = [
    ConversationShape {
        name: "multi-turn",
        about: "20 minutes of chats of 3 to 12 turns, about a sixth of their prompts new each time",
        make: multi_turn,
    },
    ConversationShape {
        name: "shared-system-prompt",
        about: "20 minutes of questions behind one system prompt of 4,000 tokens",
        make: shared_system_prompt,
    },
    ConversationShape {
        name: "hot-prefix",
        about: "20 minutes of questions about 400 documents of 8,000 tokens, half of them about one",
        make: hot_prefix,
    },
    ConversationShape {
        name: "long-tail",
        about: "20 minutes of questions about 3,000 documents of 6,000 tokens, few of them often",
        make: long_tail,
    },
    ConversationShape {
        name: "coding-agents",
        about: "20 minutes of agents with 20 to 60 turns, of whose prompts 95 % are known",
        make: coding_agents,
    },
    ConversationShape {
        name: "nothing-shared",
        about: "20 minutes of prompts of 3,000 tokens that have nothing in common",
        make: nothing_shared,
    },
];

/// A load in the making.
struct Conversations {
    random: SmallRng,
    /// The number of the last text.
    texts: u64,
    requests: Vec<(Request, PromptContent)>,
}

impl ConversationShape {
    pub(super) fn generate(&self, seed: u64) -> Trace {
        let random = SmallRng::seed_from_u64(seed);
        let mut all = Conversations { random, texts: 0, requests: Vec::new() };
        (self.make)(&mut all);
        all.requests.sort_by_key(|(request, _)| request.at);
        let (requests, contents) = all.requests.into_iter().unzip();
        let length = (LENGTH * SECOND as f64) as Us;
        Trace { name: self.name.to_owned(), began_ms: 0, length, requests, contents }
    }
}

impl Conversations {
    /// The times of a Poisson process with this rate a second.
    fn arrivals(&mut self, rate: f64) -> Vec<f64> {
        let (mut times, mut t) = (Vec::new(), 0.0);
        loop {
            t -= (1.0 - self.random.random::<f64>()).ln() / rate;
            if t >= LENGTH {
                return times;
            }
            times.push(t);
        }
    }

    /// A text that nothing else contains.
    fn text(&mut self, tokens: u32) -> Segment {
        self.texts += 1;
        Segment { id: self.texts, tokens }
    }

    /// The same with a length by chance.
    fn some_text(&mut self, median: f64) -> Segment {
        let tokens = log_normal(&mut self.random, median, 0.5, 10.0 * median);
        self.text(tokens)
    }

    fn request(&mut self, at: f64, segments: &[Segment], output: u32, session: Option<u64>) {
        if at < LENGTH {
            let content = PromptContent { segments: segments.into(), session };
            let at = (at * SECOND as f64) as Us;
            self.requests.push((Request { at, prompt: content.tokens(), output }, content));
        }
    }

    /// Sessions at this rate: each begins with `first`, and goes on for `turns` turns with an answer
    /// and a new message in each. `pause`: the median time from one request to the next.
    fn sessions(
        &mut self,
        rate: f64,
        first: impl Fn(&mut Self) -> Vec<Segment>,
        turns: std::ops::RangeInclusive<u32>,
        (message, answer, pause): (f64, f64, f64),
    ) {
        for start in self.arrivals(rate) {
            let mut segments = first(self);
            let session = self.random.random();
            let mut at = start;
            for _ in 0..self.random.random_range(turns.clone()) {
                let message = self.some_text(message);
                segments.push(message);
                let answer = self.some_text(answer);
                self.request(at, &segments, answer.tokens, Some(session));
                segments.push(answer);
                at += pause * (0.6 * normal(&mut self.random)).exp();
            }
        }
    }

    /// Questions at this rate, each about one of the documents, which `which` chooses.
    fn questions(
        &mut self,
        rate: f64,
        documents: &[Segment],
        which: impl Fn(&mut SmallRng) -> usize,
    ) {
        for at in self.arrivals(rate) {
            let document = documents[which(&mut self.random)];
            let question = self.some_text(200.0);
            let output = log_normal(&mut self.random, 150.0, 0.5, 1_000.0);
            self.request(at, &[document, question], output, None);
        }
    }
}

fn multi_turn(load: &mut Conversations) {
    let system = load.text(600);
    let first = |load: &mut Conversations| vec![system, load.some_text(1_500.0)];
    load.sessions(2.5, first, 3..=12, (300.0, 250.0, 25.0));
}

fn shared_system_prompt(load: &mut Conversations) {
    let system = load.text(4_000);
    load.questions(24.0, &[system], |_| 0);
}

fn hot_prefix(load: &mut Conversations) {
    let documents: Vec<_> = (0..400).map(|_| load.text(8_000)).collect();
    load.questions(14.0, &documents, |random| match random.random::<bool>() {
        true => 0,
        false => random.random_range(1..400),
    });
}

fn long_tail(load: &mut Conversations) {
    let documents: Vec<_> = (0..3_000).map(|_| load.text(6_000)).collect();
    // The k-th is asked about in proportion to 1/k, by the inverse of that sum's approximation.
    load.questions(14.0, &documents, |random| {
        let at = 3_000f64.powf(random.random::<f64>());
        (at as usize - 1).min(2_999)
    });
}

fn coding_agents(load: &mut Conversations) {
    let system = load.text(9_000);
    let first = |load: &mut Conversations| vec![system, load.some_text(6_000.0)];
    load.sessions(0.1, first, 20..=60, (900.0, 200.0, 8.0));
}

fn nothing_shared(load: &mut Conversations) {
    for at in load.arrivals(20.0) {
        let prompt = load.some_text(3_000.0);
        let output = log_normal(&mut load.random, 150.0, 0.5, 1_000.0);
        load.request(at, &[prompt], output, None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_load_has_its_prompts_in_order_within_its_length() {
        for shape in &CONVERSATIONS {
            let trace = shape.generate(7);
            assert!(trace.requests.len() > 2_000, "{}: {}", shape.name, trace.requests.len());
            assert!(trace.requests.is_sorted_by_key(|request| request.at), "{}", shape.name);
            assert_eq!(trace.requests.len(), trace.contents.len());
            for (request, content) in trace.requests.iter().zip(&trace.contents) {
                assert!(request.at < trace.length && request.prompt == content.tokens());
            }
            assert_eq!(trace, shape.generate(7), "a seed gives the same load again");
        }
    }

    #[test]
    fn the_share_that_an_endless_cache_knows_is_that_of_the_description() {
        for (name, want) in [
            ("multi-turn", 0.75..0.9),
            ("shared-system-prompt", 0.9..0.97),
            ("hot-prefix", 0.93..0.99),
            ("long-tail", 0.8..0.95),
            ("coding-agents", 0.94..0.98),
            ("nothing-shared", 0.0..0.001),
        ] {
            let shape = CONVERSATIONS.iter().find(|shape| shape.name == name).expect("known");
            let (mut cache, mut known, mut all) = (HashSet::new(), 0, 0);
            for content in shape.generate(7).contents {
                let blocks = content.blocks(256);
                all += blocks.len();
                known += blocks.into_iter().filter(|block| !cache.insert(*block)).count();
            }
            let share = known as f64 / all as f64;
            assert!(want.contains(&share), "{name}: {share}");
        }
    }
}
