//! One try of a request at one replica, up to the point where something can go out to the client.
//!
//! An answer is kept back until its first event is judged or, if it is plain, until it is complete
//! or too long to keep. A request that fails until then can be tried elsewhere.

use std::pin::pin;

use bytes::Bytes;
use forebay_scheduling::prompt::Prompt;
use futures_util::future::poll_immediate;
use http::{HeaderValue, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::api::Api;
use crate::answer::failure::{Cause, Failure};
use crate::answer::meter::Tokens;
use crate::answer::not_continued::NotContinued;
use crate::answer::plain::{AnswerHead, PlainAnswer, PlainEnd, is_event_stream};
use crate::answer::stream::{AnswerStream, Step};
use crate::exchange::continuation::{Continuation, Way};
use crate::exchange::dispatch::{Delivery, EditedRequest, RequestKind, Strip};
use crate::exchange::outgoing::{Outgoing, OutgoingHead};
use crate::exchange::send::{send, stalled};
use crate::exchange::upstream::UpstreamBody;
use crate::net::clock;
use crate::pool::Slot;
use crate::read::body_memory::without_body;
use crate::read::continuable::{ContinuableBody, has_several_prompts};
use crate::read::edit::{Asked, EditedBody, Edits, edit};
use crate::read::head::ClientHead;
use crate::read::known_headers::{KnownHeader, SESSION};
use crate::read::prompt::{Contents, Owner};
use crate::read::scan::Scan;
use crate::route::Destination;
use crate::text::rope::Rope;
use crate::wire::head::ResponseHead;

/// A request of an inference API, read whole.
pub(crate) struct InferenceRequest {
    pub(crate) api: Api,
    pub(crate) head: Box<ClientHead>,
    pub(crate) body: Bytes,
    pub(crate) scan: Scan,
    /// Whether the client asks for an event stream.
    pub(crate) stream: bool,
}

/// An answer of which something can go out to the client.
pub(crate) struct Committed {
    pub(crate) head: ResponseHead,
    pub(crate) start: AnswerStart,
}

/// An answer as far as it is known when it is committed.
pub(crate) enum AnswerStart {
    /// A plain answer, complete.
    Whole(Rope, Tokens),
    /// A replica's refusal of the client's request, complete.
    Refused(Rope),
    /// A plain answer that is too long to be kept back.
    Long(Rope, UpstreamBody, PlainAnswer),
    Stream(Rope, UpstreamBody, Box<AnswerStream>),
}

impl RequestKind for InferenceRequest {
    type Answer = Box<Committed>;

    fn shows_engine(&self) -> bool {
        self.api.takes_engine()
    }

    fn edited(&self, to: &Destination, settings: &forebay_config::Pool) -> EditedRequest<'_> {
        let reports = self.reports_token_ids(settings);
        let EditedBody { body, strip_usage, token_ids } =
            self.edited_body(to.served.as_deref(), settings, reports.is_ok());
        let token_ids = match (reports, token_ids) {
            (Err(why), _) => Err(why),
            (Ok(()), Asked::No) => Err(NotContinued::NoTokenIds),
            (Ok(()), asked) => Ok(asked == Asked::Gateway),
        };
        EditedRequest { head: OutgoingHead::Client(&self.head), body, strip_usage, token_ids }
    }

    fn continuation(self, way: Way) -> Result<Box<Continuation>, NotContinued> {
        let head = usize::try_from(without_body(&self.head.parts)).unwrap_or(usize::MAX);
        let body = ContinuableBody::of(self.api, &self.body, &self.scan, head);
        Ok(Box::new(Continuation::new(self.head, body, way)))
    }

    fn prompt(&self, owner: Owner<'_>) -> Option<Prompt> {
        let session = match self.head.known.has(KnownHeader::Session) {
            true => self.head.parts.headers.get(SESSION).map(HeaderValue::as_bytes),
            false => None,
        };
        let session = session.filter(|name| !name.is_empty());
        match &self.scan.contents {
            Some(contents) => Some(contents.prompt(owner, session)),
            // A session is worth the same endpoint whatever it asks for.
            None => session.map(|_| Contents::default().prompt(owner, session)),
        }
    }

    async fn attempt(&self, to: &Delivery<'_>, slot: &Slot) -> Result<Box<Committed>, Failure> {
        Attempt { request: self, to, slot }.run().await
    }
}

impl InferenceRequest {
    fn edited_body(
        &self,
        served: Option<&str>,
        settings: &forebay_config::Pool,
        ask_token_ids: bool,
    ) -> EditedBody {
        let edits = Edits {
            model: served,
            ask_usage: self.api.usage_on_request(),
            drop_priority: !settings.allow_priority,
            ask_token_ids,
        };
        edit(&self.body, &self.scan, &edits)
    }

    /// Whether the answer's token ids can be had, so that another replica can go on with it.
    fn reports_token_ids(&self, settings: &forebay_config::Pool) -> Result<(), NotContinued> {
        if !self.api.reports_token_ids() {
            return Err(NotContinued::Api);
        }
        if settings.continuation == forebay_config::Continue::Off {
            return Err(NotContinued::Off);
        }
        let prompts = self.scan.prompt.clone().filter(|_| self.api == Api::Completions);
        if self.scan.n.is_some_and(|n| n > 1)
            || prompts.is_some_and(|at| has_several_prompts(&self.body[at]))
        {
            return Err(NotContinued::Choices);
        }
        Ok(())
    }
}

/// One try at one endpoint.
struct Attempt<'a> {
    request: &'a InferenceRequest,
    to: &'a Delivery<'a>,
    slot: &'a Slot,
}

impl Attempt<'_> {
    async fn run(&self) -> Result<Box<Committed>, Failure> {
        // Only the gateway asked for them: the client's request is complete without.
        let optional = self.to.token_ids == Ok(true);
        if optional && self.slot.refuses_token_ids() {
            return self.once(Err(NotContinued::NoTokenIds)).await;
        }
        let committed = self.once(self.to.token_ids).await?;
        if !optional || !may_refuse_token_ids(&committed) {
            return Ok(committed);
        }
        let committed = self.once(Err(NotContinued::NoTokenIds)).await?;
        // What it refuses in any case is the client's own, and may name the field by chance.
        if !matches!(committed.start, AnswerStart::Refused(_)) {
            self.slot.note_refuses_token_ids();
        }
        Ok(committed)
    }

    /// Sends the request once. `token_ids`: whether the ids of tokens are asked for, and taken out of
    /// the answer again.
    async fn once(
        &self,
        token_ids: Result<Strip, NotContinued>,
    ) -> Result<Box<Committed>, Failure> {
        let stall = self.to.settings.upstream.stall_timeout;
        let dispatched = clock::now();
        let due = dispatched + stall;
        let (head, upstream) = if token_ids == self.to.token_ids {
            self.send(&self.to.outgoing, due).await?
        } else {
            let (served, settings) = (self.to.served.as_deref(), &self.to.settings);
            let EditedBody { body, .. } = self.request.edited_body(served, settings, false);
            self.send(&self.to.outgoing.with_body(body), due).await?
        };
        let kind = head.content_type();
        let start = if is_event_stream(kind) && head.status == StatusCode::OK {
            // One limit for head and first event: a server keeps a connection alive also while its
            // engine hangs. A stream that the client did not ask for is timed from its head.
            let since = if self.request.stream { dispatched } else { clock::now() };
            self.stream(upstream, since + stall, token_ids).await?
        } else {
            self.plain(AnswerHead::new(&head, kind), upstream).await?
        };
        Ok(Box::new(Committed { head, start }))
    }

    /// Sends the request and waits for the answer's head. `due` is the limit for a stream's first
    /// event, and so for its head.
    async fn send(
        &self,
        outgoing: &Outgoing<'_>,
        due: Instant,
    ) -> Result<(ResponseHead, UpstreamBody), Failure> {
        let upstream = &self.to.settings.upstream;
        // A stream's head comes at once. A plain answer's head comes only when all of it is there,
        // however long that takes: only the request's deadline limits it.
        let due = self.request.stream.then_some(due);
        send(outgoing, self.slot.address, upstream, due, self.to.deadline).await
    }

    /// Reads a stream up to the first event that can be judged, which must come before `due`.
    async fn stream(
        &self,
        mut upstream: UpstreamBody,
        due: Instant,
        token_ids: Result<Strip, NotContinued>,
    ) -> Result<AnswerStart, Failure> {
        let (api, strip_usage) = (self.request.api, self.to.strip_usage);
        // It is needed where the gateway writes an answer's end.
        let known = (strip_usage || token_ids.is_ok()).then(|| self.slot.fingerprint()).flatten();
        let mut stream = AnswerStream::new(api, strip_usage, known);
        if let Ok(strip) = token_ids {
            stream.record_token_ids(strip);
        }
        loop {
            let data = timeout_at(due, upstream.data()).await.map_err(|_| self.stalled())?;
            let Some(bytes) = data.transpose()? else {
                let message = "The stream ended before its first output.";
                return Err(Failure::new(Cause::Truncated, message));
            };
            match stream.feed(bytes, clock::now()) {
                Step::Hold => {}
                Step::Retry(failure) => return Err(failure),
                // A failure in the same bytes is for the relay to report: the answer has begun.
                Step::Pass(out) | Step::Failed(out, _) => {
                    return Ok(AnswerStart::Stream(out, upstream, Box::new(stream)));
                }
            }
        }
    }

    /// Keeps a plain answer back until it is complete, up to a bound. A replica's failure is never
    /// passed on.
    async fn plain(
        &self,
        head: AnswerHead,
        mut upstream: UpstreamBody,
    ) -> Result<AnswerStart, Failure> {
        let settings = &self.to.settings.upstream;
        let bound = usize::try_from(settings.commit_size.bytes()).unwrap_or(usize::MAX);
        let misfit = |body: &[u8]| self.to.misfit.failure(head.status, body);
        let mut answer = PlainAnswer::new(self.request.api, head, bound);
        let stall = settings.stall_timeout;
        loop {
            let data = {
                let mut data = pin!(upstream.data());
                // Nearly all answers come whole with their heads, and need no timer.
                match poll_immediate(data.as_mut()).await {
                    Some(data) => data,
                    None => timeout(stall, data).await.map_err(|_| self.stalled())?,
                }
            };
            let Some(data) = data else { break };
            answer.feed(data?);
            // An answer that is complete can still be judged, however long it is.
            if answer.is_long() && !upstream.is_over() {
                if let Some(failure) = misfit(b"") {
                    return Err(failure);
                }
                if answer.is_failure() {
                    break;
                }
                return Ok(AnswerStart::Long(answer.commit(), upstream, answer));
            }
        }
        match answer.end() {
            PlainEnd::Answered(body, tokens) => Ok(AnswerStart::Whole(body.into(), tokens)),
            PlainEnd::Client(body) => match misfit(&body) {
                Some(failure) => Err(failure),
                None => Ok(AnswerStart::Refused(body.into())),
            },
            PlainEnd::Retry(failure) => Err(failure),
        }
    }

    fn stalled(&self) -> Failure {
        stalled(self.to.settings.upstream.stall_timeout)
    }
}

/// Whether a replica may have refused a request because of the field by which the gateway asks for token
/// ids: a server that checks fields names the one that it does not know.
fn may_refuse_token_ids(committed: &Committed) -> bool {
    let AnswerStart::Refused(body) = &committed.start else { return false };
    matches!(committed.head.status, StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY)
        && body.slices().any(|slice| memchr::memmem::find(slice, b"return_token_ids").is_some())
}
