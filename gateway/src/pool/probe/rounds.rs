//! Rounds: the probes of endpoints that answer, many together.
//!
//! Of ten thousand idle endpoints three thousand are asked each second. So an endpoint that answers
//! costs no timer and no wake of its own: its prober is handed over to the rounds, which look at all
//! that are due in steps of 50 ms. They ask for its health or its models on its kept connection, and
//! read the answer one step later. A list of models shows as well that it answers, so it takes the place
//! of a health probe. A connection that hangs up is noticed at once, by one set for all.
//!
//! The rounds do what is usual. With anything else the prober goes back to its endpoint's task: no good
//! answer within 0.8 s, another probe than for its health, no kept connection. So does one whose
//! task is woken.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

use super::connection::{AnswerReader, ParkedConnection, ProbeConnection, ProbeRequest};
use super::pace::Pace;
use super::{KEPT_TIMEOUT, MAX_ANSWER, Prober};
use crate::net::file_shares::{GIVEN_UP, UPSTREAM_FILES};
use crate::net::hangup_set::HangupSet;
use crate::pool::endpoint::{Due, IDLE, Probe, Probed, SPREAD, Urgency};
use crate::pool::model_registry;

/// How many visits are made before other tasks of the thread get their turn.
const AT_ONCE: usize = 256;
/// The bytes that are read at once.
const READ: usize = 16 << 10;

/// The probers of one gateway's endpoints that answer.
pub(crate) struct Rounds {
    pub(super) pace: Pace,
    visits: Mutex<Visits>,
    /// A visit is due earlier than all others were.
    earlier: Notify,
    /// The kept connections; `None` if the system has no descriptor for the set.
    hangups: Option<Arc<HangupSet>>,
}

/// The work that a visit leaves to the endpoint's task.
#[derive(Debug)]
pub(super) enum Errand {
    /// Look at the endpoint again.
    Look,
    /// Send this probe, which was begun at this time.
    Probe(Probe, Urgency, Instant),
    /// List its models.
    List,
    /// End: the pool has no such endpoint.
    End,
}

#[derive(Default)]
struct Visits {
    seats: Seats,
    /// Their numbers, by the steps at which they are due, or were to be.
    steps: BTreeMap<u64, Vec<u64>>,
    buffers: Buffers,
}

/// The visits that are not over. Each has a number of its own: its seat, and how many visits had begun
/// by then.
#[derive(Default)]
struct Seats {
    all: Vec<Option<(u64, Visit)>>,
    free: Vec<u32>,
    begun: u32,
}

impl Seats {
    fn add(&mut self, visit: Visit) -> u64 {
        let seat = self.free.pop().unwrap_or_else(|| {
            self.all.push(None);
            u32::try_from(self.all.len() - 1).expect("fewer endpoints than addresses")
        });
        self.begun = self.begun.wrapping_add(1);
        let number = u64::from(self.begun) << 32 | u64::from(seat);
        self.all[seat as usize] = Some((number, visit));
        number
    }

    fn get(&mut self, number: u64) -> Option<&mut Visit> {
        let (own, visit) = self.all.get_mut(number as u32 as usize)?.as_mut()?;
        (*own == number).then_some(visit)
    }

    fn remove(&mut self, number: u64) -> Option<Visit> {
        self.get(number)?;
        let seat = number as u32;
        self.free.push(seat);
        self.all[seat as usize].take().map(|(_, visit)| visit)
    }

    fn iter(&mut self) -> impl Iterator<Item = &mut Visit> {
        self.all.iter_mut().flatten().map(|(_, visit)| visit)
    }
}

struct Buffers {
    request: Vec<u8>,
    answer: Box<[u8]>,
}

impl Default for Buffers {
    fn default() -> Self {
        Self { request: Vec::new(), answer: vec![0; READ].into_boxed_slice() }
    }
}

/// A prober while the rounds have it.
struct Visit {
    prober: Box<Prober>,
    connection: Option<ParkedConnection>,
    /// The step at which it is due. The list of another step may have it, too.
    step: u64,
    inquiry: Option<Box<Inquiry>>,
    /// The endpoint's task.
    task: oneshot::Sender<(Box<Prober>, Errand)>,
}

/// A request under way.
struct Inquiry {
    question: Question,
    begun: Instant,
    reader: AnswerReader,
    /// The endpoint has closed its side meanwhile.
    closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Health,
    Models {
        /// A probe was due. A list shows as well that it answers.
        probes: bool,
    },
}

/// The next turn of a visit.
enum NextTurn {
    At(Instant),
    Leave(Errand),
}

impl Rounds {
    pub(crate) fn new(now: Instant) -> Self {
        let hangups = HangupSet::new().map(Arc::new);
        if let Err(error) = &hangups {
            tracing::warn!("connections that replicas close are noticed late: {error}");
        }
        let (visits, earlier) = (Mutex::default(), Notify::new());
        Self { pace: Pace::new(now), visits, earlier, hangups: hangups.ok() }
    }

    /// Makes the rounds while it is polled.
    pub(crate) async fn make(self: Arc<Self>) -> Infallible {
        tokio::select! {
            never = self.watch_connections() => never,
            never = self.give_places() => never,
            never = self.take_steps() => never,
        }
    }

    /// Hands a prober over until its endpoint's task has something to do, or is woken. `None` if the
    /// rounds have ended.
    pub(super) async fn visit(
        &self,
        prober: Box<Prober>,
        at: Instant,
        wake: &Notify,
    ) -> Option<(Box<Prober>, Errand)> {
        let (number, mut errand) = self.begin(prober, at);
        let _ended = EndedVisit { rounds: self, number };
        tokio::select! {
            biased;
            errand = &mut errand => return errand.ok(),
            () = wake.notified() => {}
        }
        match self.end(number) {
            Some(visit) => Some((visit.over(self).0, Errand::Look)),
            None => errand.await.ok(),
        }
    }

    fn begin(
        &self,
        mut prober: Box<Prober>,
        at: Instant,
    ) -> (u64, oneshot::Receiver<(Box<Prober>, Errand)>) {
        let connection = prober.kept.take().and_then(ProbeConnection::park);
        let (task, errand) = oneshot::channel();
        let mut visits = self.visits.lock();
        let step = self.pace.step(at);
        let number = visits.seats.add(Visit { prober, connection, step, inquiry: None, task });
        if let (Some(hangups), Some(visit)) = (&self.hangups, visits.seats.get(number))
            && let Some(connection) = &visit.connection
            && let Err(error) = hangups.add(connection, number)
        {
            tracing::debug!("the close of a kept connection is noticed late: {error}");
        }
        self.list(&mut visits.steps, number, step);
        (number, errand)
    }

    /// Lists a visit for a step.
    fn list(&self, steps: &mut BTreeMap<u64, Vec<u64>>, number: u64, step: u64) {
        if steps.first_key_value().is_none_or(|(first, _)| step < *first) {
            self.earlier.notify_one();
        }
        steps.entry(step).or_default().push(number);
    }

    fn end(&self, number: u64) -> Option<Visit> {
        self.visits.lock().seats.remove(number)
    }

    async fn watch_connections(&self) -> Infallible {
        if let Some(hangups) = &self.hangups {
            match hangups.report(|number| self.hung_up(number)).await {
                Ok(never) => match never {},
                Err(error) => {
                    tracing::warn!("connections that replicas close are noticed late: {error}");
                }
            }
        }
        pending().await
    }

    /// An endpoint has closed its side of a kept connection.
    fn hung_up(&self, number: u64) {
        let mut visits = self.visits.lock();
        let Visits { seats, steps, .. } = &mut *visits;
        let Some(visit) = seats.get(number) else { return };
        if let Some(inquiry) = &mut visit.inquiry {
            // Its answer may have come before.
            inquiry.closed = true;
        } else if visit.connection.take().is_some_and(|kept| kept.is_fresh()) {
            // Sooner than an idle connection is closed: it is asked why.
            visit.prober.closed = true;
            visit.step = self.pace.step(Instant::now());
            self.list(steps, number, visit.step);
        }
    }

    /// Closes connections that no request is under way on, when others need their places among the open
    /// files.
    async fn give_places(&self) -> Infallible {
        loop {
            tokio::select! {
                () = UPSTREAM_FILES.wanted() => self.close_idle(|| UPSTREAM_FILES.is_scarce()),
                () = UPSTREAM_FILES.called_in() => self.close_idle(|| true),
            }
        }
    }

    /// Closes such connections, an eighth of them at a time, while `is_scarce`.
    fn close_idle(&self, is_scarce: impl Fn() -> bool) {
        let mut visits = self.visits.lock();
        let mut some = true;
        while some && is_scarce() {
            let idle = visits.seats.iter();
            let idle = idle.filter(|visit| visit.inquiry.is_none() && visit.connection.is_some());
            some = idle.step_by(GIVEN_UP).map(|visit| visit.connection = None).count() > 0;
        }
    }

    async fn take_steps(&self) -> Infallible {
        loop {
            let first = self.visits.lock().steps.first_key_value().map(|(step, _)| *step);
            let Some(step) = first else {
                self.earlier.notified().await;
                continue;
            };
            let time = self.pace.time(step);
            if time > Instant::now() {
                tokio::select! {
                    () = sleep_until(time) => {}
                    () = self.earlier.notified() => {}
                }
                continue;
            }
            let due = self.visits.lock().steps.remove(&step).unwrap_or_default();
            for some in due.chunks(AT_ONCE) {
                let now = Instant::now();
                some.iter().for_each(|number| self.take_turn(*number, step, now));
                tokio::task::yield_now().await;
            }
        }
    }

    /// Does what is due of a visit in this step.
    fn take_turn(&self, number: u64, step: u64, now: Instant) {
        let mut visits = self.visits.lock();
        let Visits { seats, steps, buffers } = &mut *visits;
        let Some(visit) = seats.get(number).filter(|visit| visit.step == step) else {
            return;
        };
        match visit.turn(buffers, now) {
            NextTurn::At(at) => {
                // Not in this step again.
                visit.step = self.pace.step(at).max(step + 1);
                self.list(steps, number, visit.step);
            }
            NextTurn::Leave(errand) => {
                let visit = seats.remove(number);
                drop(visits);
                if let Some((prober, task)) = visit.map(|visit| visit.over(self)) {
                    // Its task may have ended.
                    let _ = task.send((prober, errand));
                }
            }
        }
    }
}

/// Ends a visit when the endpoint's task ends.
struct EndedVisit<'a> {
    rounds: &'a Rounds,
    number: u64,
}

impl Drop for EndedVisit<'_> {
    fn drop(&mut self) {
        self.rounds.end(self.number);
    }
}

impl Visit {
    /// Does what is due now.
    fn turn(&mut self, buffers: &mut Buffers, now: Instant) -> NextTurn {
        if let Some(then) = self.receive(buffers, now) {
            return then;
        }
        let at = match self.prober.begin(now) {
            None => return NextTurn::Leave(Errand::End),
            Some(Due::Now(Probe::Health, _)) => return self.probe(&mut buffers.request, now),
            Some(Due::Now(probe, urgency)) => {
                return NextTurn::Leave(Errand::Probe(probe, urgency, now));
            }
            Some(Due::At(at)) => at,
        };
        if let Some(list) = self.prober.next_list
            && now < list
        {
            return match self.prober.wants_waiting(now) {
                true => NextTurn::Leave(Errand::Look),
                false => NextTurn::At(at.min(list)),
            };
        }
        if !self.prober.wants_cache_report()
            && self.ask(Question::Models { probes: false }, &mut buffers.request, now)
        {
            return NextTurn::At(now);
        }
        NextTurn::Leave(Errand::List)
    }

    /// Sends a health probe. If the endpoint is idle and a list is due before the next probe, asks for the
    /// models instead.
    fn probe(&mut self, request: &mut Vec<u8>, now: Instant) -> NextTurn {
        let lists = self.prober.next_list.is_some_and(|list| list < now + IDLE + SPREAD);
        let question = match lists && self.prober.lists_for_probe() {
            true => Question::Models { probes: true },
            false => Question::Health,
        };
        self.ask_probe(question, request, now)
    }

    /// Sends the request of a probe, or leaves the probe to the endpoint's task.
    fn ask_probe(&mut self, question: Question, request: &mut Vec<u8>, now: Instant) -> NextTurn {
        match self.ask(question, request, now) {
            true => NextTurn::At(now),
            false => NextTurn::Leave(Errand::Probe(Probe::Health, Urgency::Answering, now)),
        }
    }

    /// Sends a request; false if there is no connection that takes it.
    fn ask(&mut self, question: Question, buffer: &mut Vec<u8>, now: Instant) -> bool {
        let Some(connection) = &mut self.connection else { return false };
        let (target, request) = (self.prober.target(), ProbeRequest::get(question.path()));
        if connection.send(&target, &request, buffer).is_err() {
            self.connection = None;
            return false;
        }
        let reader = AnswerReader::default();
        self.inquiry = Some(Box::new(Inquiry { question, begun: now, reader, closed: false }));
        true
    }

    /// Reads the answer to the request that is under way. `None` if nothing is left to do for it.
    fn receive(&mut self, buffers: &mut Buffers, now: Instant) -> Option<NextTurn> {
        let (inquiry, connection) = (self.inquiry.as_mut()?, self.connection.as_mut()?);
        let (question, begun) = (inquiry.question, inquiry.begun);
        let ((status, body), keeps) =
            match connection.receive(&mut inquiry.reader, &mut buffers.answer, now) {
                Ok(None) if now < begun + KEPT_TIMEOUT => return Some(NextTurn::At(now)),
                Ok(Some(((status, body), keeps)))
                    if question.takes(status) && body.len() <= MAX_ANSWER =>
                {
                    ((status, body), keeps)
                }
                _ => {
                    // A new connection shows why. Bytes that answer no request may have been here.
                    self.connection = None;
                    return Some(NextTurn::Leave(match question {
                        Question::Health | Question::Models { probes: true } => {
                            Errand::Probe(Probe::Health, Urgency::Answering, begun)
                        }
                        Question::Models { probes: false } => Errand::List,
                    }));
                }
            };
        self.prober.closed |= inquiry.closed;
        if inquiry.closed || !keeps {
            self.connection = None;
        }
        self.inquiry = None;
        match question {
            Question::Health => {
                self.prober.report(Probe::Health, Probed::Answered);
            }
            Question::Models { probes } => {
                let models = status.is_success().then(|| model_registry::parse(&body)).flatten();
                let listed = models.is_some();
                self.prober.listed(models);
                match (probes, listed) {
                    (false, _) => {}
                    (true, true) => {
                        self.prober.report(Probe::Health, Probed::Answered);
                    }
                    (true, false) => {
                        return Some(self.ask_probe(Question::Health, &mut buffers.request, now));
                    }
                }
            }
        }
        None
    }

    /// Takes the prober back, with its connection unless a request is under way there.
    fn over(self, rounds: &Rounds) -> (Box<Prober>, oneshot::Sender<(Box<Prober>, Errand)>) {
        let Self { mut prober, connection, inquiry, task, .. } = self;
        if let Some(connection) = connection
            && inquiry.is_none()
        {
            if let Some(hangups) = &rounds.hangups {
                hangups.remove(&connection);
            }
            prober.kept = connection.unpark();
        }
        (prober, task)
    }
}

impl Question {
    fn path(self) -> &'static str {
        match self {
            Self::Health => "/health",
            Self::Models { .. } => "/v1/models",
        }
    }

    /// Whether an answer with this status says what is usual.
    fn takes(self, status: StatusCode) -> bool {
        self != Self::Health || status.is_success()
    }
}

#[cfg(test)]
mod tests;
