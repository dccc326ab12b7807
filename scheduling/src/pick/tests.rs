use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_config::Pick;
use proptest::prelude::*;

use super::*;
use crate::prompt::Prompt;

/// An endpoint at this port of the loopback address.
pub(super) fn add(candidates: &mut Candidates, candidate: Candidate) -> EndpointId {
    candidates.add(SocketAddr::from(([127, 0, 0, 1], port_of(&candidate))), candidate)
}

/// The port of an endpoint that is added: the number of its first process.
fn port_of(candidate: &Candidate) -> u16 {
    u16::try_from(candidate.process).expect("it is a port")
}

pub(super) fn candidate(port: u16) -> Candidate {
    Candidate { process: port.into(), ready: true, room: 4, in_flight: 0, suspect: false }
}

/// A pool whose endpoints are named by their ports.
pub(super) struct Pool {
    candidates: Candidates,
    picker: Picker,
    ports: Vec<u16>,
    pub(super) ids: Vec<EndpointId>,
}

impl Pool {
    pub(super) fn new(policy: Pick, all: &[Candidate]) -> Self {
        let (candidates, picker) = (Candidates::default(), Picker::new(Pick::default(), 1));
        let mut pool = Self { candidates, picker, ports: Vec::new(), ids: Vec::new() };
        pool.picker.set_policy(policy, &mut pool.candidates);
        all.iter().for_each(|one| pool.add(*one));
        pool
    }

    pub(super) fn add(&mut self, candidate: Candidate) {
        self.ids.push(add(&mut self.candidates, candidate));
        self.ports.push(port_of(&candidate));
    }

    pub(super) fn id(&self, port: u16) -> EndpointId {
        self.ids[self.ports.iter().position(|known| *known == port).expect("it was added")]
    }

    fn port(&self, id: EndpointId) -> u16 {
        self.ports[self.ids.iter().rposition(|known| *known == id).expect("it was added")]
    }

    pub(super) fn remove(&mut self, port: u16) {
        self.candidates.remove(self.id(port));
        self.picker.removed(self.id(port));
    }

    pub(super) fn set(&mut self, port: u16, candidate: Candidate) {
        self.candidates.set(self.id(port), candidate);
    }

    pub(super) fn list<'a>(&mut self, port: u16, names: impl IntoIterator<Item = (&'a str, bool)>) {
        self.candidates.list(self.id(port), names);
    }

    fn choose(&mut self, request: &Requirements, now: Duration) -> Option<(Choice, Candidate)> {
        let choice = self.picker.pick(&self.candidates, request, now)?;
        Some((choice, *self.candidates.get(choice.id).expect("it was picked")))
    }

    /// The endpoint that a request would get at the beginning.
    pub(super) fn pick(&mut self, request: &Requirements) -> Option<u16> {
        let id = self.choose(request, Duration::ZERO)?.0.id;
        Some(self.port(id))
    }

    /// The endpoints of requests that end before the next ones begin.
    pub(super) fn picks(&mut self, count: usize, request: &Requirements) -> Vec<u16> {
        let picks = std::iter::from_fn(|| {
            let (choice, candidate) = self.choose(request, Duration::ZERO)?;
            self.candidates.given(choice.id, candidate);
            Some(self.port(choice.id))
        });
        picks.take(count).collect()
    }

    /// Gives an endpoint a request that stays there. Its room stays as it is.
    pub(super) fn give(&mut self, request: &Requirements, now: Duration) -> Option<Box<Given>> {
        self.give_to(request, now).1
    }

    /// Gives an endpoint a request, and returns its port too.
    pub(super) fn give_to(
        &mut self,
        request: &Requirements,
        now: Duration,
    ) -> (u16, Option<Box<Given>>) {
        let (choice, candidate) = self.choose(request, now).expect("room");
        let in_flight = candidate.in_flight + 1;
        self.candidates.given(choice.id, Candidate { in_flight, ..candidate });
        let given = self.picker.given(&self.candidates, choice, request, now);
        (self.port(choice.id), given)
    }

    /// Ends a request that the policy learns nothing from.
    pub(super) fn leave_port(&mut self, port: u16) {
        self.leave_id(self.id(port));
    }

    /// Ends a request that was answered.
    pub(super) fn end(&mut self, given: Box<Given>, now: Duration) {
        self.leave_id(given.choice().id);
        self.picker.ended(&given, true, now);
    }

    /// Ends a request that was answered with so many tokens.
    pub(super) fn end_after(&mut self, mut given: Box<Given>, generated: u64, now: Duration) {
        self.leave_id(given.choice().id);
        let usage = Usage { generated, ..Usage::default() };
        given.set_usage(usage);
        self.picker.ended(&given, true, now);
    }

    /// Ends a request of which the replica reports what was cached.
    pub(super) fn end_with(
        &mut self,
        mut given: Box<Given>,
        cached: Option<u64>,
        now: Duration,
    ) -> Option<CachedTokens> {
        self.leave_id(given.choice().id);
        let usage = Usage { prompt: 10_000, cached, generated: 10 };
        given.set_usage(usage);
        self.picker.ended(&given, true, now)
    }

    /// The endpoints whose processes should hold a beginning of this request's prompt.
    pub(super) fn remembered(&self, request: &Requirements) -> Vec<u16> {
        let prompt = request.prompt.as_deref().expect("it has a prompt");
        let found = self.picker.find(prompt);
        found.all().iter().map(|found| self.ports[found.endpoint as usize]).collect()
    }

    /// Reports that an endpoint's engine sleeps.
    pub(super) fn sleeps(&mut self, port: u16) {
        self.reported(port, &CacheReport { asleep: true, ..CacheReport::default() });
    }

    /// Reports the counters of an endpoint's cache.
    pub(super) fn counts(&mut self, port: u16, counters: (u64, u64)) {
        let counters = Some(counters);
        self.reported(port, &CacheReport { counters, ..CacheReport::default() });
    }

    fn reported(&mut self, port: u16, report: &CacheReport) {
        let id = self.id(port);
        let process = self.candidates.get(id).expect("it is there").process;
        self.picker.reported(id, process, report);
    }

    /// The policy's knowledge of an endpoint.
    pub(super) fn learned(&self, id: EndpointId, now: Duration) -> Learned {
        let process = self.candidates.get(id).expect("it is there").process;
        self.picker.learned(id, process, now).expect("it is its policy")
    }

    /// How far prefix affinity trusts its index.
    pub(super) fn trust(&self) -> f64 {
        self.picker.trust().expect("it is its policy")
    }

    /// Ends a request that was not answered.
    pub(super) fn fail(&mut self, given: Box<Given>, now: Duration) {
        self.leave_id(given.choice().id);
        self.picker.ended(&given, false, now);
    }

    fn leave_id(&mut self, id: EndpointId) {
        if let Some(candidate) = self.candidates.get(id).copied() {
            let in_flight = candidate.in_flight - 1;
            self.candidates.set(id, Candidate { in_flight, ..candidate });
        }
    }

    /// The conversations that go on at an endpoint.
    pub(super) fn conversations(&self, port: u16) -> f32 {
        self.picker.conversations(self.id(port))
    }

    /// Shows the first token of a request.
    pub(super) fn first_token(&mut self, given: &mut Given, now: Duration) {
        self.picker.first_token(given, now);
    }

    /// The requests in flight at each endpoint, in the order in which they were added.
    pub(super) fn loads(&self) -> Vec<u32> {
        let of = |id: &EndpointId| self.candidates.get(*id).map(|one| one.in_flight);
        self.ids.iter().filter_map(of).collect()
    }

    /// Reports that an endpoint's first token took this long.
    pub(super) fn observe(&mut self, port: u16, took: Duration, now: Duration) {
        let (choice, any) = (Choice::of(self.id(port)), Requirements::default());
        if let Some(mut given) = self.picker.given(&self.candidates, choice, &any, now - took) {
            self.picker.first_token(&mut given, now);
        }
    }
}

/// A request with this prompt.
pub(super) fn prompted(prompt: Prompt) -> Requirements {
    Requirements { prompt: Some(Arc::new(prompt)), ..Requirements::default() }
}

/// The first processes of the suitable endpoints. `models`: an endpoint's port, a name that it lists, and
/// whether that is a base model.
fn suitable(all: &[Candidate], models: &[(u16, &str, bool)], request: &Requirements) -> Vec<u16> {
    let mut candidates = Candidates::default();
    let ids: Vec<_> = all.iter().map(|one| (add(&mut candidates, *one), port_of(one))).collect();
    for (id, port) in &ids {
        let mut listed = models.iter().filter(|(of, ..)| of == port).peekable();
        if listed.peek().is_some() {
            candidates.list(*id, listed.map(|(_, name, base)| (*name, *base)));
        }
    }
    let suitable = Suitable::of(&candidates, request);
    ids.iter().filter(|(id, _)| suitable.admits(*id)).map(|(_, port)| *port).collect()
}

#[test]
fn an_endpoint_that_failed_the_request_or_may_hang_is_the_last_resort() {
    let (suspect, full) =
        (Candidate { suspect: true, ..candidate(2) }, Candidate { room: 0, ..candidate(3) });
    let failed = Requirements { avoid: [1].into(), ..Requirements::default() };
    assert_eq!(suitable(&[candidate(1), suspect], &[], &Requirements::default()), [1]);
    assert_eq!(suitable(&[candidate(1), suspect], &[], &failed), [1, 2], "no other is ready");
    assert_eq!(suitable(&[candidate(1), full], &[], &failed), [0; 0], "the other is full");
    let starting = Candidate { ready: false, room: 0, ..candidate(3) };
    assert_eq!(suitable(&[candidate(1), starting], &[], &failed), [1]);
}

#[test]
fn a_request_that_lost_a_replica_gets_a_process_that_began_since_if_one_has_room() {
    let (old, new) = (candidate(1), Candidate { in_flight: 3, process: 9, ..candidate(2) });
    let lost = Requirements { began_after: Some(8), ..Requirements::default() };
    assert_eq!(suitable(&[old, new], &[], &lost), [9], "for every policy");
    assert_eq!(suitable(&[old, new], &[], &Requirements::default()), [1, 9]);
    assert_eq!(suitable(&[old], &[], &lost), [1], "an old one is better than none");
    let full = Candidate { room: 0, ..new };
    assert_eq!(suitable(&[old, full], &[], &lost), [1], "and so while the new one is full");
    let failed = Requirements { avoid: [9].into(), ..lost };
    assert_eq!(suitable(&[old, new], &[], &failed), [1], "the new one failed it too");
}

#[test]
fn an_endpoint_that_refused_the_request_never_gets_it_again() {
    let refused = Requirements { refused: [1].into(), ..Requirements::default() };
    assert_eq!(suitable(&[candidate(1)], &[], &refused), [0; 0]);
    let mut candidates = Candidates::default();
    add(&mut candidates, candidate(1));
    assert!(!Suitable::of(&candidates, &refused).could_serve());
    assert!(Suitable::of(&candidates, &Requirements::default()).could_serve());
}

#[test]
fn a_model_that_one_endpoint_lists_is_not_sent_elsewhere() {
    let adapter = (2, "adapter", false);
    let request = Requirements { model: Some("adapter".into()), ..Requirements::default() };
    let full = Candidate { room: 0, ..candidate(2) };
    let both = [(1, "base", true), adapter];
    assert_eq!(suitable(&[candidate(1), candidate(2)], &both, &request), [2]);
    assert_eq!(suitable(&[candidate(1), full], &[adapter], &request), [0; 0]);
}

const POLICIES: [Pick; 5] = [
    Pick::LeastLoad,
    Pick::RoundRobin,
    Pick::PowerOfTwo,
    Pick::ConsistentHash,
    Pick::PrefixAffinity,
];

/// An endpoint as the reference keeps it.
#[derive(Clone, Debug)]
struct Reference {
    id: EndpointId,
    candidate: Candidate,
    /// Each name with whether it is a base model; `None` before it has listed any.
    listed: Option<Vec<(&'static str, bool)>>,
    turn: u64,
}

/// The rules of [`Suitable`], by walks over all endpoints.
struct Walk<'a>(&'a [Reference], &'a Requirements);

impl<'a> Walk<'a> {
    fn knows(&self, one: &Reference) -> bool {
        let Some(model) = self.1.model.as_deref() else { return true };
        let mut listing = self.0.iter().flat_map(|other| other.listed.iter().flatten());
        let names = |name: &(&str, bool)| name.0 == model;
        match &one.listed {
            Some(list) if list.iter().any(names) => true,
            None if listing.clone().any(|name| names(name) && name.1) => true,
            _ => !listing.any(names),
        }
    }

    fn suitable(&self) -> Vec<&'a Reference> {
        let last_resort = |one: &&Reference| {
            one.candidate.suspect || self.1.avoid.contains(&one.candidate.process)
        };
        let known: Vec<_> = self.0.iter().filter(|one| self.knows(one)).collect();
        let others_ready = known.iter().any(|one| one.candidate.ready && !last_resort(one));
        let mut eligible = known;
        eligible.retain(|one| {
            one.candidate.room > 0
                && !(others_ready && last_resort(one))
                && !self.1.refused.contains(&one.candidate.process)
        });
        let younger =
            |one: &&Reference| self.1.began_after.is_none_or(|last| one.candidate.process > last);
        if eligible.iter().any(younger) {
            eligible.retain(younger);
        }
        eligible
    }

    fn load(&self) -> (u64, usize) {
        let known = self.0.iter().filter(|one| self.knows(one) && one.candidate.ready);
        known.fold((0, 0), |(in_flight, count), one| {
            (in_flight + u64::from(one.candidate.in_flight), count + 1)
        })
    }

    fn could_serve(&self) -> bool {
        let refused = |one: &Reference| self.1.refused.contains(&one.candidate.process);
        self.0.iter().any(|one| one.candidate.ready && !refused(one) && self.knows(one))
    }
}

/// A change of the endpoints. The first number chooses one of them.
#[derive(Clone, Debug)]
enum Change {
    Add(Candidate),
    Remove(usize),
    Set(usize, Candidate),
    Given(usize, Candidate),
    List(usize, Vec<(&'static str, bool)>),
    Unlist(usize),
}

fn any_candidate() -> impl Strategy<Value = Candidate> {
    let states = (0..12u64, 0..3u32, 0..3u32, any::<bool>(), prop::bool::weighted(0.3));
    states.prop_map(|(process, room, in_flight, ready, suspect)| Candidate {
        process,
        ready,
        room: if ready { room } else { 0 },
        in_flight,
        suspect,
    })
}

fn any_change() -> impl Strategy<Value = Change> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    let names = prop::collection::vec((name, any::<bool>()), 0..3);
    prop_oneof![
        3 => any_candidate().prop_map(Change::Add),
        1 => any::<usize>().prop_map(Change::Remove),
        3 => (any::<usize>(), any_candidate()).prop_map(|(at, one)| Change::Set(at, one)),
        3 => (any::<usize>(), any_candidate()).prop_map(|(at, one)| Change::Given(at, one)),
        2 => (any::<usize>(), names).prop_map(|(at, names)| Change::List(at, names)),
        1 => any::<usize>().prop_map(Change::Unlist),
    ]
}

fn any_request() -> impl Strategy<Value = Requirements> {
    let model = prop::option::of(prop::sample::select(vec!["a", "b", "c", "d"]));
    let processes = || prop::collection::btree_set(0..12u64, 0..4);
    let prompt = (prop::option::of(0..9u64), prop::collection::vec(any::<u64>(), 0..3));
    (model, processes(), processes(), prop::option::of(0..12u64), prompt).prop_map(
        |(model, avoid, refused, began_after, (session, blocks))| Requirements {
            model: model.map(Into::into),
            avoid,
            refused,
            began_after,
            streamed: true,
            prompt: Some(Arc::new(Prompt { session, blocks: blocks.into(), bytes: 2000 })),
        },
    )
}

/// Makes the change in both. Numbers of endpoints are of the caller's present ones.
fn change(candidates: &mut Candidates, all: &mut Vec<Reference>, given: &mut u64, change: Change) {
    let count = all.len();
    let at = |at: usize| (count > 0).then(|| at % count);
    match change {
        Change::Add(candidate) => {
            let id = add(candidates, candidate);
            all.push(Reference { id, candidate, listed: None, turn: 0 });
        }
        Change::Remove(one) => {
            if let Some(at) = at(one) {
                candidates.remove(all.swap_remove(at).id);
            }
        }
        Change::Set(one, candidate) => {
            if let Some(at) = at(one) {
                candidates.set(all[at].id, candidate);
                all[at].candidate = candidate;
            }
        }
        Change::Given(one, candidate) => {
            if let Some(at) = at(one) {
                *given += 1;
                candidates.given(all[at].id, candidate);
                (all[at].candidate, all[at].turn) = (candidate, *given);
            }
        }
        Change::List(one, names) => {
            if let Some(at) = at(one) {
                candidates.list(all[at].id, names.iter().copied());
                all[at].listed = Some(names);
            }
        }
        Change::Unlist(one) => {
            if let Some(at) = at(one) {
                candidates.unlist(all[at].id);
                all[at].listed = None;
            }
        }
    }
}

proptest! {
    #[test] // after any changes, for any request
    fn the_kept_order_picks_as_a_walk_over_all_endpoints_does(
        changes in prop::collection::vec((any_change(), any_request()), 1..60),
    ) {
        let (mut candidates, mut all, mut given) = (Candidates::default(), Vec::new(), 0);
        candidates.keep_ring(true);
        let mut pickers = POLICIES.map(|policy| (policy, Picker::new(policy, 1)));
        for (step, request) in changes {
            change(&mut candidates, &mut all, &mut given, step);
            let walk = Walk(&all, &request);
            let want = walk.suitable();
            let suitable = Suitable::of(&candidates, &request);
            for one in &all {
                let admitted = want.iter().any(|other| other.id == one.id);
                prop_assert_eq!(suitable.admits(one.id), admitted, "{:?} {:?}", one, request);
            }
            let place = |one: &&&Reference| (one.candidate.in_flight, one.turn, one.id);
            let least = want.iter().min_by_key(place).map(|one| one.id);
            for (policy, picker) in &mut pickers {
                let picked = picker.pick(&candidates, &request, Duration::ZERO).map(|one| one.id);
                prop_assert_eq!(picked.is_some(), least.is_some(), "{} {:?}", policy, request);
                let suits = picked.is_none_or(|id| want.iter().any(|one| one.id == id));
                prop_assert!(suits, "{} {:?} {:?}", policy, picked, request);
                if *policy == Pick::LeastLoad {
                    prop_assert_eq!(picked, least, "{:?}", request);
                }
            }
            let places: BTreeSet<_> = (0..64)
                .filter_map(|at| suitable.draw(|most| at % most))
                .collect();
            prop_assert!(places.iter().all(|id| suitable.admits(*id)));
            let load = walk.load();
            prop_assert_eq!(suitable.load(), load);
            prop_assert_eq!(suitable.could_serve(), walk.could_serve());
            let count = |of: fn(&Candidate) -> bool| {
                all.iter().filter(|one| of(&one.candidate)).count()
            };
            prop_assert_eq!(candidates.ready(), count(|one| one.ready));
            prop_assert_eq!(candidates.have_room(), count(|one| one.room > 0) > 0);
        }
    }
}
