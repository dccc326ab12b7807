//! Least load: the endpoint with the fewest requests in flight.

use super::candidate::EndpointId;
use super::suitable::Suitable;

/// Chooses the suitable endpoint with the fewest requests in flight. Equals take turns.
pub(super) fn least_load(suitable: &Suitable<'_>) -> Option<EndpointId> {
    suitable.least_busy()
}

#[cfg(test)]
mod tests {
    use forebay_config::Pick;

    use super::super::tests::{Pool, candidate};
    use super::super::{Candidate, Requirements};

    #[test]
    fn the_endpoint_with_the_fewest_requests_is_chosen() {
        let endpoint = |port, in_flight| Candidate { in_flight, ..candidate(port) };
        let full = Candidate { room: 0, ..endpoint(4, 0) };
        let avoided = Requirements { avoid: [2].into(), ..Requirements::default() };
        for (case, all, request, want) in [
            ("none", vec![], Requirements::default(), None),
            ("the least", vec![endpoint(1, 5), endpoint(2, 3)], Requirements::default(), Some(2)),
            ("one is full", vec![endpoint(1, 5), full], Requirements::default(), Some(1)),
            ("the least failed it", vec![endpoint(1, 5), endpoint(2, 3)], avoided, Some(1)),
        ] {
            assert_eq!(Pool::new(Pick::LeastLoad, &all).pick(&request), want, "{case}");
        }
    }

    #[test]
    fn equals_take_turns() {
        let mut pool = Pool::new(Pick::LeastLoad, &[1, 2, 3].map(candidate));
        let picks = pool.picks(6, &Requirements::default());
        assert_eq!(picks, [1, 2, 3, 1, 2, 3]);
    }
}
