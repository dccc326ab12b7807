use std::time::Duration;

use forebay_scheduling::pick::Candidate;
use forebay_scheduling::room::LimitRule;
use proptest::prelude::*;

use super::*;
use crate::answer::failure::{Cause, Failure};
use crate::pool::endpoint::{Due, Occupancy, Probed, Pulse, Rules};

const LIMIT: LimitRule = LimitRule { most: 2, learned: false };
const RULES: Rules = Rules { limit: LIMIT, eject_after: 2, freeze: Duration::from_secs(3) };

/// Something that happens at one of the endpoints.
#[derive(Clone, Copy, Debug)]
enum Event {
    Added,
    Left,
    ComesBack,
    Probe {
        answers: bool,
    },
    Given {
        streamed: bool,
    },
    /// A request ends there.
    Ended {
        failure: Option<Cause>,
    },
    /// The first token of a request comes.
    FirstToken,
    SessionBegins,
    /// Something comes from the engine.
    Beat,
    Drain(bool),
    Relief,
}

fn any_event() -> impl Strategy<Value = Event> {
    let causes = vec![
        Cause::QueueFull,
        Cause::Aborted,
        Cause::Connection,
        Cause::Server,
        Cause::Stalled,
        Cause::EngineDead,
    ];
    let failure = prop::option::of(prop::sample::select(causes));
    prop_oneof![
        2 => Just(Event::Added),
        1 => Just(Event::Left),
        1 => Just(Event::ComesBack),
        6 => prop::bool::weighted(0.8).prop_map(|answers| Event::Probe { answers }),
        6 => any::<bool>().prop_map(|streamed| Event::Given { streamed }),
        4 => failure.prop_map(|failure| Event::Ended { failure }),
        3 => Just(Event::FirstToken),
        1 => Just(Event::SessionBegins),
        4 => Just(Event::Beat),
        1 => any::<bool>().prop_map(Event::Drain),
        1 => Just(Event::Relief),
    ]
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// The requests at an endpoint: its pulse, and their parts in its room.
struct Held {
    pulse: Pulse,
    occupancies: Vec<Occupancy>,
}

/// Makes the event happen. `held`: what requests hold of their endpoints.
fn happen(
    set: &mut EndpointSet,
    held: &mut BTreeMap<u16, Held>,
    (port, event): (u16, Event),
    now: Instant,
) {
    let Some(id) = set.id(address(port)) else {
        if matches!(event, Event::Added) {
            set.add(address(port), Endpoint::new(RULES, now), now);
        }
        return;
    };
    let last = set.is_last(id);
    match event {
        Event::Added => {}
        Event::Left => {
            if set.change(id, now, Endpoint::leave) == Some(false) {
                set.remove(id);
                held.remove(&port);
            }
        }
        Event::ComesBack => {
            if set.get(id).is_some_and(Endpoint::is_gone) {
                set.change(id, now, |endpoint| endpoint.come_back(RULES, now));
            }
        }
        Event::Probe { answers } => {
            set.change(id, now, |endpoint| {
                let outcome =
                    if answers { Probed::Answered } else { Probed::Silent("nothing".into()) };
                if let Due::Now(probe, _) = endpoint.due(Duration::default, false, now) {
                    endpoint.probed(probe, outcome, last, now);
                }
            });
        }
        Event::Given { streamed } => {
            if set.candidates().get(id).is_some_and(|candidate| candidate.room > 0) {
                let (_, endpoint, occupancy) =
                    set.give(id, (2, streamed), now).expect("it is there");
                let pulse = endpoint.pulse();
                let held = held
                    .entry(port)
                    .or_insert_with(|| Held { pulse: pulse.clone(), occupancies: Vec::new() });
                held.pulse = pulse;
                held.occupancies.push(occupancy);
            }
        }
        Event::FirstToken => {
            if let Some(one) = held.get_mut(&port).and_then(|held| held.occupancies.first_mut()) {
                set.change(id, now, |endpoint| endpoint.first_token(one, now));
            }
        }
        Event::Ended { failure } => {
            let occupancy = held.get_mut(&port).and_then(|held| held.occupancies.pop());
            set.change(id, now, |endpoint| {
                if endpoint.in_flight() > 0 {
                    match failure {
                        None => endpoint.request_completed(true, now),
                        Some(cause) => {
                            endpoint.request_failed(&Failure::new(cause, "why"), last, now);
                        }
                    }
                    endpoint.given_back(false, now);
                }
                if let Some(occupancy) = occupancy {
                    endpoint.vacate(occupancy, failure.is_none(), now);
                }
            });
        }
        Event::SessionBegins => {
            set.change(id, now, |endpoint| {
                if endpoint.in_flight() > 0 {
                    endpoint.session_began(now);
                }
            });
        }
        Event::Beat => {
            if let Some(held) = held.get(&port) {
                held.pulse.beat(now);
            }
        }
        Event::Drain(draining) => {
            set.change(id, now, |endpoint| endpoint.drain(draining));
        }
        Event::Relief => set.relieve_hung(now),
    }
}

proptest! {
    // Whatever happens, and whatever time passes, a walk over all endpoints finds the same.
    #[test]
    fn the_set_is_as_a_walk_over_all_endpoints_finds_it(
        events in prop::collection::vec((0..4u16, any_event(), 0..1500u64), 0..80),
    ) {
        let mut now = Instant::now();
        let (mut set, mut held) = (EndpointSet::default(), BTreeMap::new());
        for (port, event, ms) in events {
            happen(&mut set, &mut held, (port, event), now);
            now += Duration::from_millis(ms);
            set.advance(now);
            let walk: Vec<(Option<Candidate>, Candidate)> = set
                .iter()
                .map(|(name, id, endpoint)| {
                    let address = name.parse().expect("an address");
                    assert_eq!(set.id(address), Some(id));
                    (set.candidates().get(id).copied(), endpoint.candidate(now))
                })
                .collect();
            for (kept, found) in &walk {
                prop_assert_eq!(kept.as_ref(), Some(found), "after {:?}", event);
            }
            let ready = walk.iter().filter(|(_, candidate)| candidate.ready).count();
            prop_assert_eq!(set.any_ready(), ready > 0);
            for (_, id, endpoint) in set.iter() {
                let others = ready - usize::from(endpoint.is_ready());
                prop_assert_eq!(set.is_last(id), others == 0);
            }
            let starting =
                set.iter().filter(|(.., endpoint)| endpoint.health() == Health::Starting).count();
            prop_assert_eq!(set.any_starting(), starting > 0);
            let hung: BTreeSet<_> = set
                .iter()
                .filter(|(.., endpoint)| endpoint.is_hung())
                .map(|(_, id, _)| id)
                .collect();
            prop_assert_eq!(&set.hung, &hung);
            let tracked = set.tracked.iter().flatten().filter(|one| one.due.is_some()).count();
            prop_assert_eq!(set.due.len(), tracked, "one moment for each endpoint at most");
        }
    }
}
