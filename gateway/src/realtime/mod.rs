//! WebSocket sessions (`/v1/realtime`).
//!
//! A session is one request until its handshake is answered, and takes the same way: `exchange`
//! admits it, holds it and tries replicas. Then bytes pass both ways until either side closes. A
//! drain ends a session between two frames, never within one. Uses all rooms below it.
//!
//! `handshake` is the request, and `session` the time after it: `relay` carries the bytes, `frames`
//! finds the frames among them, and `usage` counts the tokens that the replica reports.

mod frames;
pub(crate) mod handshake;
mod relay;
pub(crate) mod session;
mod usage;
