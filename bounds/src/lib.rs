//! What keeps a process serving, whatever is around it: listeners that no client can fill
//! ([`Listener`]), lines on the side that never stand in a request's way ([`Output`], [`print`]),
//! and threads that are missed when they fall silent ([`Heartbeats`]).

mod connection;
mod heartbeat;
mod listener;
mod metric;
mod output;
pub mod print;
mod requests;
mod seat;

pub use connection::Connection;
pub use heartbeat::Heartbeats;
pub use listener::{Listener, bind};
pub use metric::describe;
pub use output::{Lines, Output, Sink};
pub use requests::{Counted, CountedLayer, Watched};
pub use seat::{Bounds, Peer};
