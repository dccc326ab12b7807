//! Listeners that no client can fill, for the ports that operators and KEDA use.
//!
//! Each state of a connection has a time limit. A full listener closes the connection that has
//! waited longest in favour of a new one, but never one with a request in flight.

mod connection;
mod listener;
mod requests;
mod table;

pub use connection::Connection;
pub use listener::{Listener, bind};
pub use requests::{TrackLayer, Tracked, TrackedBody};
pub use table::{Bounds, Peer};
