//! The way of one request to its answer: admitted, held, tried, tried again, passed on, recorded.
//!
//! Nothing goes out to the client before an answer is judged, so a request that fails until then
//! can be tried elsewhere. Dropping any future of this room ends its request. Uses all rooms below
//! it.
//!
//! In the order of a request's way: `proxy` admits it and finds its pool; `dispatch` holds it,
//! tries again and falls back; `attempt` is one try, with `outgoing` (the request for replicas), `send`,
//! `upstream` (connections) and `misfit` (whose fault a refusal is); `respond` writes the answer's
//! head, or `heartbeat` keeps the client alive until there is one; `finish` counts the answer or
//! gives it to `relay`, which `cutoff` may end early, and which tells by `client_pace` a slow client
//! from a slow replica. If the replica is lost, `continuation` finds another one that goes on with a
//! stream, whose state is its `successor`; `move_rules` bound its moves. `record` accompanies the request, with
//! `allowance` (the tenant's limits), `progress` (times and tries), `access_log`, and for a traced request
//! its `steps`, which become `spans`. The waits of a
//! request beside that for its answer begin `late`.

pub(crate) mod access_log;
pub(crate) mod allowance;
pub(crate) mod answer_body;
pub(crate) mod attempt;
pub(crate) mod client_pace;
pub(crate) mod continuation;
pub(crate) mod cutoff;
pub(crate) mod dispatch;
pub(crate) mod finish;
pub(crate) mod heartbeat;
pub(crate) mod late;
pub(crate) mod misfit;
pub(crate) mod move_rules;
pub(crate) mod no_reply;
pub(crate) mod outgoing;
pub(crate) mod progress;
pub(crate) mod proxy;
pub(crate) mod record;
pub(crate) mod relay;
pub(crate) mod respond;
pub(crate) mod send;
pub(crate) mod spans;
pub(crate) mod steps;
pub(crate) mod successor;
pub(crate) mod upstream;
