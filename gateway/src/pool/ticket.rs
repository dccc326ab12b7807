//! One request's way through its pool: its requirements and failures, and the decision whether it
//! is tried again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use forebay_scheduling::pick::{Requirements, Suitable};
use forebay_scheduling::prompt::Prompt;
use forebay_scheduling::queue::{Entry, Place};
use forebay_scheduling::retry_budget::RetryBudget;
use forebay_telemetry::context::TraceContext;
use tokio::time::Instant;

use super::expected_start::ExpectedStart;
use super::scheduling::Scheduling;
use super::{Pool, Slot};
use crate::answer::failure::{Cause, Failure};
use crate::answer::refusal::Refusal;
use crate::pool::endpoint::Process;

/// The number of unexplained deaths of replicas after which a request that was in flight at all of
/// them is not tried again. A rolling restart can look like two such deaths: of the replica that
/// the request was at, and of the one that it moved to. The third try prefers a replica that was
/// started since.
const FATAL_DEATHS: usize = 3;

/// The same for a request whose answer has begun, of deaths with nothing generated between them.
const FATAL_DEATHS_OF_BEGUN: usize = 2;

/// The number of tokens that a replica generates before its death says nothing against the request:
/// one that kills replicas does so while its prompt is computed, or with its first tokens.
const INNOCENT_AFTER: u64 = 4;

/// How often one answer is continued: each time its prompt, and all of it so far, is computed anew.
const MOST_SEAMS: u32 = 32;

/// The number of replicas' own errors after which the last one is passed on as the answer.
const FINAL_ERRORS: u32 = 2;

/// A request in its pool, over all its tries.
pub(crate) struct Ticket {
    pub(crate) entry: Entry,
    pub(super) accepted: Instant,
    /// The end of the request's own time.
    pub(super) deadline: Instant,
    pub(super) place: Option<Place>,
    /// Whether it had its turn: an endpoint has been given to it before.
    pub(super) released: bool,
    pub(super) requirements: Requirements,
    failures: Failures,
    pub(crate) hold_time: HoldTime,
    /// Its place in its trace, if it is traced: a decision that it brings about links to it.
    pub(super) trace: Option<TraceContext>,
    /// When its client gives up, if the request says so.
    pub(super) gives_up: Option<Instant>,
    pub(super) fallback: Fallback,
    /// Shows its client when it will start, if it gets heartbeats.
    pub(super) expected: Option<Arc<ExpectedStart>>,
}

/// The time that a request was held so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct HoldTime {
    pub(crate) all: Duration,
    /// The part of it in which no endpoint was ready.
    pub(crate) cold: Duration,
}

/// A request's failed tries.
#[derive(Default)]
struct Failures {
    /// Tries at which a replica may have worked on it.
    counted_tries: u32,
    /// Processes that ended with it in flight, each once.
    deaths: Vec<Arc<Process>>,
    /// How many of these had ended when a part of the answer last came.
    deaths_before: usize,
    /// How often another replica had to go on with the answer.
    seams: u32,
    /// Replicas' own errors about it.
    errors: u32,
    /// Whether a part of the answer has gone out: another replica goes on with it.
    begun: bool,
    /// Whether that replica must turn tokens into text.
    compares: bool,
    /// Whether the answer broke since the request was last queued.
    broke: bool,
}

/// The consequence for a request that its pool can't serve in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// It is refused.
    None,
    /// Another pool gets it.
    Pool,
    /// Another pool gets it, at the latest when this one has held it for this time.
    PoolAfter(Duration),
}

impl Ticket {
    pub(crate) fn new(entry: Entry, accepted: Instant, deadline: Instant) -> Self {
        Self {
            entry,
            accepted,
            deadline,
            place: None,
            released: false,
            requirements: Requirements::default(),
            failures: Failures::default(),
            hold_time: HoldTime::default(),
            trace: None,
            gives_up: None,
            fallback: Fallback::None,
            expected: None,
        }
    }

    /// Sets where its client reads when it will start.
    pub(crate) fn shows(&mut self, expected: Option<Arc<ExpectedStart>>) {
        self.expected = expected;
    }

    /// Notes that its wait is over.
    pub(super) fn starts(&self) {
        if let Some(expected) = &self.expected {
            expected.set(None);
        }
    }

    /// Notes that a part of the answer has gone out: `tokens` since another replica last had to go on
    /// with it. Tries that failed before do not count any more. Deaths do, unless the answer went on
    /// for long since. Only this pool can go on with the answer, and it may hold it anew.
    pub(crate) fn progressed(&mut self, tokens: u64) {
        let failures = &mut self.failures;
        (failures.begun, failures.counted_tries, failures.errors) = (true, 0, 0);
        failures.seams += 1;
        if tokens >= INNOCENT_AFTER {
            failures.deaths.clear();
        }
        failures.deaths_before = failures.deaths.len();
        failures.broke = true;
        self.hold_time = HoldTime::default();
        self.fallback = Fallback::None;
    }

    /// Takes the notice that the answer broke since the request was last queued.
    pub(super) fn take_break(&mut self) -> bool {
        std::mem::take(&mut self.failures.broke)
    }

    /// Whether a part of the answer has gone out.
    pub(super) fn has_begun(&self) -> bool {
        self.failures.begun
    }

    /// The number of replicas that died with it in flight, for logs.
    pub(super) fn deaths(&self) -> &'static str {
        match self.failures.deaths.len() {
            2 => "two",
            3 => "three",
            _ => "several",
        }
    }

    /// Sets the model, by the name that the replica receives.
    pub(crate) fn model(&mut self, name: Option<Arc<str>>) {
        self.requirements.model = name;
    }

    /// Sets its prompt, for policies that read it.
    pub(crate) fn prompt(&mut self, prompt: Option<Prompt>) {
        self.requirements.prompt = prompt.map(Arc::new);
    }

    /// Sets whether the first token of its answer will be seen: whether it asks for a stream.
    pub(crate) fn streams(&mut self, streams: bool) {
        self.requirements.streamed = streams;
    }

    /// Sets when its client gives up, if the request says so.
    pub(crate) fn gives_up(&mut self, at: Option<Instant>) {
        self.gives_up = at;
    }

    /// Sets its place in its trace, if it is traced.
    pub(crate) fn traced(&mut self, trace: Option<TraceContext>) {
        self.trace = trace;
    }

    /// Sets whether a replica that goes on with its answer must turn tokens into text.
    pub(crate) fn compares(&mut self, compares: bool) {
        self.failures.compares = compares;
    }

    /// Whether a replica that goes on with its answer must turn tokens into text.
    pub(super) fn needs_text(&self) -> bool {
        self.failures.compares
    }

    /// Notes that the process in this place can't go on with its answer.
    pub(crate) fn refused_by(&mut self, slot: &Slot) {
        self.requirements.refused.insert(slot.process.id());
    }

    /// Sets what happens if its pool can't serve it in time.
    pub(crate) fn set_fallback(&mut self, fallback: Fallback) {
        self.fallback = fallback;
    }

    /// The time for which its pool may still hold it. `hold`: the pool's own limit for all of its
    /// holds together.
    pub(super) fn rest_of_hold(&self, hold: Duration) -> Duration {
        let longest = match self.fallback {
            Fallback::PoolAfter(after) => after.min(hold),
            Fallback::Pool | Fallback::None => hold,
        };
        longest.saturating_sub(self.hold_time.all)
    }

    /// The moment until which it can wait from `now` on: the end of the hold, the request's own
    /// deadline, or its client's.
    pub(super) fn waits_until(&self, hold: Duration, now: Instant) -> Instant {
        let end_of_hold = now + self.rest_of_hold(hold);
        end_of_hold.min(self.deadline).min(self.gives_up.unwrap_or(end_of_hold))
    }

    /// The number of its arrival in the pool.
    pub(crate) fn seq(&self) -> u64 {
        self.place.map_or(0, |place| place.seq)
    }
}

impl Pool {
    /// Decides whether a request whose try failed is tried again. Its number of tries and the
    /// pool's retry budget limit that, and so do unexplained deaths of replicas. If a replica is
    /// not set up for the request, the request goes to each ready endpoint once.
    pub(super) fn try_again(
        &self,
        state: &mut Scheduling,
        ticket: &mut Ticket,
        slot: &Slot,
        failure: &Failure,
    ) -> Result<(), Refusal> {
        let cause = failure.cause;
        if cause == Cause::Shortage {
            // The gateway waited for an end of the shortage until the request's time was over.
            return Err(Refusal::Shortage(failure.message.clone()));
        }
        let (process, now) = (&slot.process, Instant::now());
        let begun = ticket.has_begun();
        let Ticket { requirements, failures, .. } = ticket;
        requirements.avoid.insert(process.id());
        // A drained, deleted or unlisted endpoint was stopped by an order. If a local replica is
        // unlisted because it crashed, its supervisor reports that, which outranks this.
        if state.endpoints.get(slot.id).is_none_or(|endpoint| endpoint.is_draining()) {
            process.stopped();
        }
        if cause.is_end() {
            requirements.began_after.get_or_insert_with(Process::latest);
        }
        if cause.is_death() && failures.deaths.iter().all(|death| death.id() != process.id()) {
            failures.deaths.push(Arc::clone(process));
        }
        failures.counted_tries += u32::from(cause.is_counted_try());
        failures.errors += u32::from(cause == Cause::Server);
        // An order that explains an end may have become known since.
        let unexplained =
            |deaths: &[Arc<Process>]| deaths.iter().filter(|death| !death.was_stopped()).count();
        let barren = unexplained(&failures.deaths[failures.deaths_before..]);
        if unexplained(&failures.deaths) >= FATAL_DEATHS
            || (begun && barren >= FATAL_DEATHS_OF_BEGUN)
        {
            return Err(Refusal::Poison);
        }
        if failures.seams > MOST_SEAMS {
            let counted_tries = failures.seams;
            return Err(Refusal::Exhausted { counted_tries, last: failure.clone() });
        }
        if begun {
            requirements.refused.extend(self.abilities.unable(failures.compares));
            // If others are ready, and all of them would begin anew, waiting does not help.
            let some_ready = |refused: BTreeSet<u64>| {
                let model = requirements.model.clone();
                let request = Requirements { model, refused, ..Requirements::default() };
                Suitable::of(state.endpoints.candidates(), &request).could_serve()
            };
            let mut refused = requirements.refused.clone();
            refused.insert(process.id());
            if some_ready([process.id()].into()) && !some_ready(refused) {
                let message = "No ready replica goes on with an answer from its token ids.";
                return Err(Refusal::Failed(Failure::new(Cause::NotContinued, message)));
            }
        }
        if cause.is_misfit() {
            requirements.refused.insert(process.id());
            let served = Suitable::of(state.endpoints.candidates(), requirements).could_serve();
            return if served { Ok(()) } else { Err(Refusal::Failed(failure.clone())) };
        }
        if failures.errors >= FINAL_ERRORS {
            return Err(Refusal::Failed(failure.clone()));
        }
        // The budget is against repeated work. An answer that has begun is continued, not repeated.
        let free = begun || !cause.is_counted_try();
        let in_budget = |budget: &mut RetryBudget| {
            free || budget.withdraw(now.saturating_duration_since(self.began))
        };
        if failures.counted_tries < self.settings().upstream.max_tries
            && in_budget(&mut state.budget)
        {
            Ok(())
        } else {
            Err(Refusal::Exhausted { counted_tries: failures.counted_tries, last: failure.clone() })
        }
    }
}
