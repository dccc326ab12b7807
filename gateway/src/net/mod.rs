//! Connections: those of clients with their TLS, time limits, numbers and drain, and those to
//! replicas.
//!
//! Every client connection has one owner, and one alarm for all its time limits. Uses `answer` for
//! the causes of failures and `figures` for counts.
//!
//! `hangup_set` notices that other sides hang up. For clients: `socket` notices that one leaves, `tls` encrypts, `host` reads a host's name;
//! `activity` and `alarm` have the time limits, `clock` has the time of a poll, `wake_flag` shows
//! whether a connection's task was woken by them, `upload` and `linger` have bodies that are not
//! read; `upgrade` hands a connection over to another protocol, `http_date` has the text of `date`,
//! `h2_tasks` drives the requests of HTTP/2, `connection_limits` counts connections, and `drain`
//! waits for them. For replicas: `dial`. Both share `machine_limits` and `file_shares`.

pub(crate) mod activity;
pub(crate) mod alarm;
pub(crate) mod clock;
pub(crate) mod connection_limits;
pub(crate) mod dial;
pub(crate) mod drain;
pub(crate) mod file_shares;
pub(crate) mod h2_tasks;
pub(crate) mod hangup_set;
pub(crate) mod host;
pub(crate) mod http_date;
pub(crate) mod linger;
pub mod machine_limits;
pub(crate) mod socket;
pub(crate) mod tls;
pub(crate) mod upgrade;
pub(crate) mod upload;
pub(crate) mod wake_flag;
