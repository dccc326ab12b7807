//! Round robin: each endpoint in turn.

use super::candidate::EndpointId;
use super::suitable::Suitable;

/// How many endpoints that can't take a request are passed over before the least busy one is
/// chosen instead: where few of many endpoints know a model, turns would take long to find.
const PASSED_OVER: usize = 64;

/// The endpoint whose turn was last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turn(Option<(u64, EndpointId)>);

/// Chooses the suitable endpoint that comes next, in the order in which their processes began.
pub(super) fn round_robin(suitable: &Suitable<'_>, turn: &mut Turn) -> Option<EndpointId> {
    let next = suitable.open_after(turn.0).take(PASSED_OVER).find(|(_, id)| suitable.admits(*id));
    match next {
        Some(place) => {
            turn.0 = Some(place);
            Some(place.1)
        }
        None => suitable.least_busy(),
    }
}

#[cfg(test)]
mod tests {
    use forebay_config::Pick;

    use super::super::tests::{Pool, candidate};
    use super::super::{Candidate, Requirements};

    #[test]
    fn each_has_its_turn_whatever_its_load() {
        let busy = Candidate { in_flight: 50, ..candidate(2) };
        let mut pool = Pool::new(Pick::RoundRobin, &[candidate(1), busy, candidate(3)]);
        assert_eq!(pool.picks(7, &Requirements::default()), [1, 2, 3, 1, 2, 3, 1]);
    }

    #[test]
    fn one_that_is_full_or_failed_the_request_is_passed_over() {
        let full = Candidate { room: 0, ..candidate(2) };
        let mut pool = Pool::new(Pick::RoundRobin, &[candidate(1), full, candidate(3)]);
        assert_eq!(pool.picks(4, &Requirements::default()), [1, 3, 1, 3]);
        let avoiding = Requirements { avoid: [1].into(), ..Requirements::default() };
        assert_eq!(pool.picks(2, &avoiding), [3, 3]);
    }

    #[test]
    fn one_that_comes_takes_part_and_one_that_goes_does_not() {
        let mut pool = Pool::new(Pick::RoundRobin, &[candidate(1), candidate(2)]);
        assert_eq!(pool.picks(1, &Requirements::default()), [1]);
        pool.add(candidate(3));
        assert_eq!(pool.picks(3, &Requirements::default()), [2, 3, 1]);
        pool.remove(2);
        assert_eq!(pool.picks(3, &Requirements::default()), [3, 1, 3]);
    }

    #[test]
    fn a_model_that_few_list_is_found_among_many() {
        let all: Vec<_> = (1..200).map(candidate).collect();
        let mut pool = Pool::new(Pick::RoundRobin, &all);
        for number in 1..200 {
            let adapter = (number == 150).then_some(("adapter", false));
            pool.list(number, [("base", true)].into_iter().chain(adapter));
        }
        let request = Requirements { model: Some("adapter".into()), ..Requirements::default() };
        assert_eq!(pool.picks(2, &request), [150, 150]);
    }
}
