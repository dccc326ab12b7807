//! Whose turn it is: the lanes of all classes, in the order in which the next release looks at them.
//!
//! The order is strict: a higher class before a lower one, and within a class requests that are
//! tried again, then those that can meet the objective, then the late ones. Two shares bound what
//! strictness can do. A lane that is passed over gains a part of a turn with each release. When it
//! has gained a whole one, it goes first, once.

use forebay_config::PriorityClass;

/// The classes, the highest first.
const CLASSES: [PriorityClass; PriorityClass::COUNT] =
    [PriorityClass::High, PriorityClass::Normal, PriorityClass::Low];

/// A whole turn, in the parts that shares are counted in.
const WHOLE: u32 = 10_000;

/// The share of its class's releases that late requests get while others wait that can still meet
/// the objective: one in 20. Each of them costs an answer in time, so it is small.
const LATE_SHARE: u32 = WHOLE / 20;

/// The releases from which the share of late requests is seen: two of theirs when they get one in 20.
const SEEN: u32 = 40;

/// A request's lane within its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// It had its turn, and is tried again.
    Again,
    /// It can still meet the objective, or none is set.
    InTime,
    /// It can no longer meet the objective.
    Late,
}

/// The number of requests in each lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LaneCounts {
    pub(super) again: usize,
    pub(super) in_time: usize,
    pub(super) late: usize,
}

impl LaneCounts {
    pub(super) fn all(self) -> usize {
        self.again + self.in_time + self.late
    }

    /// The count of one lane.
    pub(super) fn of(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Again => &mut self.again,
            Lane::InTime => &mut self.in_time,
            Lane::Late => &mut self.late,
        }
    }
}

/// The parts of a turn that each class has gained, and the late requests of each class.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Turns {
    /// The share of each class while a higher one waits, in parts of [`WHOLE`].
    lower_share: u32,
    classes: [u32; PriorityClass::COUNT],
    late: [u32; PriorityClass::COUNT],
    /// The share of the latest releases that the late requests of each class got.
    seen_late: [SeenShare; PriorityClass::COUNT],
}

/// The share of releases that a lane got since it began to wait: a mean in which older ones fade.
#[derive(Clone, Copy, Debug)]
struct SeenShare {
    share: f64,
    releases: u32,
}

impl Default for SeenShare {
    /// Nothing was seen yet. It may get all, as it does behind a burst after which no more come.
    fn default() -> Self {
        Self { share: 1.0, releases: 1 }
    }
}

impl SeenShare {
    fn record(&mut self, own: bool) {
        self.releases = (self.releases + 1).min(SEEN);
        self.share += (f64::from(u8::from(own)) - self.share) / f64::from(self.releases);
    }
}

impl Turns {
    /// Sets the share of the releases that each class gets at least while a higher one waits, 0 to 1.
    pub(super) fn set_lower_share(&mut self, share: f64) {
        self.lower_share = (share.clamp(0.0, 1.0) * f64::from(WHOLE)) as u32;
    }

    /// The share of the releases that each class gets at least while a higher one waits, 0 to 1.
    pub(super) fn lower_share(&self) -> f64 {
        f64::from(self.lower_share) / f64::from(WHOLE)
    }

    /// The share of late requests, 0 to 1.
    pub(super) fn late_share() -> f64 {
        f64::from(LATE_SHARE) / f64::from(WHOLE)
    }

    /// Notes that the first late request of a class begins to wait.
    pub(super) fn late_begin(&mut self, class: PriorityClass) {
        self.seen_late[class as usize] = SeenShare::default();
    }

    /// The share of the latest releases that the late requests of a class got while they waited, 0 to 1.
    pub(super) fn seen_late_share(&self, class: PriorityClass) -> f64 {
        self.seen_late[class as usize].share.max(Self::late_share())
    }

    /// All lanes in the order of the next release.
    pub(super) fn order(&self) -> [(PriorityClass, Lane); 3 * PriorityClass::COUNT] {
        let mut classes = CLASSES;
        classes.sort_by_key(|class| self.classes[*class as usize] < WHOLE);
        let mut order = [(PriorityClass::High, Lane::Again); 3 * PriorityClass::COUNT];
        for (lanes, class) in order.chunks_exact_mut(3).zip(classes) {
            let (second, third) = match self.late[class as usize] < WHOLE {
                true => (Lane::InTime, Lane::Late),
                false => (Lane::Late, Lane::InTime),
            };
            lanes.copy_from_slice(&[(class, Lane::Again), (class, second), (class, third)]);
        }
        order
    }

    /// Notes a release. `left`: what each class still holds.
    pub(super) fn released(
        &mut self,
        class: PriorityClass,
        lane: Lane,
        left: [LaneCounts; PriorityClass::COUNT],
    ) {
        for (at, share) in self.seen_late.iter_mut().enumerate() {
            let own = lane == Lane::Late && at == class as usize;
            if own || left[at].late > 0 {
                share.record(own);
            }
        }
        let spent = |gained: &mut u32| *gained -= if *gained >= WHOLE { WHOLE } else { 0 };
        spent(&mut self.classes[class as usize]);
        for lower in CLASSES.into_iter().filter(|other| *other > class) {
            let gained = &mut self.classes[lower as usize];
            let waits = left[lower as usize].all() > 0;
            *gained = if waits { (*gained + self.lower_share).min(WHOLE) } else { 0 };
        }
        let late = &mut self.late[class as usize];
        match lane {
            Lane::Late => spent(late),
            Lane::InTime if left[class as usize].late > 0 => {
                *late = (*late + LATE_SHARE).min(WHOLE)
            }
            Lane::InTime => *late = 0,
            Lane::Again => {}
        }
    }
}
