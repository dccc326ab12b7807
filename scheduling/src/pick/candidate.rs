//! One endpoint of a pool, as policies see it.

use crate::models::ListId;

/// The number of an endpoint among its pool's candidates. It is used again once the endpoint is
/// removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(u32);

/// One endpoint as a policy sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The number of its process. A process that began later has a larger one.
    pub process: u64,
    /// Whether it takes requests at all, even if it is full now.
    pub ready: bool,
    /// How many more requests it can take; zero if it is not ready.
    pub room: u32,
    /// Requests in flight there.
    pub in_flight: u32,
    /// Whether it has work and produces nothing, so that its engine may hang.
    pub suspect: bool,
}

/// An endpoint, with what orders it: in one cache line, since the picks of a large pool find few of them in
/// the cache.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(super) struct Seat {
    pub(super) candidate: Candidate,
    pub(super) list: ListId,
    /// The number of the last request that it was given. Equals take turns: the one whose last
    /// request is the longest ago is first.
    pub(super) turn: u64,
}

const _: () = assert!(size_of::<Option<Seat>>() == align_of::<Seat>());

/// An endpoint's place in an order: its requests in flight, its turn, its number. They are one number
/// here, so that two are compared at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank(u128);

impl EndpointId {
    /// The smallest number.
    pub(super) const FIRST: Self = Self(0);

    /// The endpoint with this number.
    pub(super) fn of(number: u32) -> Self {
        Self(number)
    }

    /// The endpoint at this place among the candidates.
    pub(super) fn at(place: usize) -> Self {
        Self(u32::try_from(place).expect("fewer than 2^32 endpoints"))
    }

    /// The number. Numbers are small: they are used again.
    #[must_use]
    pub fn number(self) -> usize {
        self.0 as usize
    }
}

impl Rank {
    /// The place behind all endpoints.
    pub(super) const NONE: Self = Self(u128::MAX);

    pub(super) fn new(in_flight: u32, turn: u64, EndpointId(number): EndpointId) -> Self {
        Self(u128::from(in_flight) << 96 | u128::from(turn) << 32 | u128::from(number))
    }

    /// The endpoint.
    pub(super) fn id(self) -> EndpointId {
        EndpointId(self.0 as u32)
    }
}

impl Seat {
    pub(super) fn rank(&self, id: EndpointId) -> Rank {
        Rank::new(self.candidate.in_flight, self.turn, id)
    }
}
