//! Consistent hashing with bounded loads: the endpoint to which the request's key leads, or the next
//! one that has not much more to do than the others.
//!
//! The key is the session, or else the beginning of the prompt: its first block. A request that has
//! neither goes to the least busy endpoint.
//!
//! Source: Mirrokni, Thorup, Zadimoghaddam, "Consistent Hashing with Bounded Loads", SODA 2018.

use super::candidate::EndpointId;
use super::suitable::Suitable;
use crate::prompt::Prompt;

/// How much more than the mean an endpoint may have in flight.
const BOUND: f64 = 1.25;
/// The points of the ring that are looked at. By the paper, the expected number is
/// 2/(BOUND - 1)² = 32 even under an adversary; more are needed where few endpoints are suitable.
const LOOKED_AT: usize = 256;

/// Chooses the first suitable endpoint from the request's key on that is within the bound.
pub(super) fn consistent_hash(suitable: &Suitable<'_>) -> Option<EndpointId> {
    let key = suitable.prompt().and_then(Prompt::key);
    key.and_then(|key| within_bound(suitable, key)).or_else(|| suitable.least_busy())
}

/// The first suitable endpoint from `key` on that is within the bound.
pub(super) fn within_bound(suitable: &Suitable<'_>, key: u64) -> Option<EndpointId> {
    let (in_flight, ready) = suitable.load();
    let bound = (BOUND * (in_flight as f64 + 1.0) / ready.max(1) as f64).ceil() as u32;
    let has_room = |id: &EndpointId| {
        suitable.get(*id).is_some_and(|candidate| candidate.in_flight < bound)
            && suitable.admits(*id)
    };
    suitable.from(key).take(LOOKED_AT).find(has_room)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use forebay_config::Pick;

    use super::super::tests::{Pool, candidate, prompted};
    use super::super::{Candidate, Requirements};
    use super::*;

    fn pool(count: u16) -> Pool {
        Pool::new(Pick::ConsistentHash, &(1..=count).map(candidate).collect::<Vec<_>>())
    }

    fn session(session: u64, block: u64) -> Requirements {
        prompted(Prompt { session: Some(session), blocks: [block].into(), bytes: 600 })
    }

    #[test]
    fn a_session_leads_to_one_endpoint_whatever_it_says() {
        for count in [1, 2, 8, 100] {
            let picks = |block| pool(count).pick(&session(7, block));
            assert_eq!(picks(1), picks(2));
            assert!(picks(1).is_some());
        }
    }

    #[test]
    fn without_a_session_the_beginning_of_the_prompt_is_the_key() {
        let prompt = |blocks: &[u64]| {
            prompted(Prompt { blocks: blocks.into(), bytes: 2000, ..Prompt::default() })
        };
        let mut places = BTreeMap::new();
        for first in 0..100 {
            let port = pool(8).pick(&prompt(&[first, first + 1]));
            assert_eq!(pool(8).pick(&prompt(&[first])), port);
            *places.entry(port).or_insert(0) += 1;
        }
        assert_eq!(places.len(), 8, "{places:?}");
    }

    #[test]
    fn no_endpoint_gets_more_than_a_quarter_above_the_mean_by_one_key() {
        let mut pool = pool(8);
        for _ in 0..400 {
            pool.give(&session(7, 1), Duration::ZERO);
        }
        let loads = pool.loads();
        assert!(*loads.iter().max().expect("eight") <= 63, "{loads:?}: the mean is 50");
    }

    #[test]
    fn one_that_is_full_or_failed_the_request_hands_its_keys_on() {
        let mut pool = pool(8);
        let own = pool.pick(&session(7, 1)).expect("room");
        let avoiding = Requirements { avoid: [own.into()].into(), ..session(7, 1) };
        let next = pool.pick(&avoiding);
        assert!(next.is_some() && next != Some(own));
        pool.set(own, Candidate { room: 0, ..candidate(own) });
        assert_eq!(pool.pick(&session(7, 1)), next);
    }

    #[test]
    fn a_request_without_a_key_goes_to_the_least_busy() {
        let mut pool = pool(2);
        pool.set(1, Candidate { in_flight: 3, ..candidate(1) });
        assert_eq!(pool.pick(&Requirements::default()), Some(2));
    }
}
