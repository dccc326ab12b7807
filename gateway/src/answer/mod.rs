//! The meaning of a replica's answer: output, end, failure; tokens and times. Also the ways in
//! which a request can end: its outcome, a replica's failure, a refusal of the gateway.
//!
//! Bytes and times go in, bytes and a verdict come out. Pure; uses `text`.
//!
//! `api` has the peculiarities of each API. `judge` reads one event or body. `stream` and `plain`
//! pass an answer through it (`passing` has the bytes of a frame), with `meter` for its tokens, `fingerprint` for a removed usage chunk,
//! and `abridged` for a long answer. `token_record` keeps a stream's token ids (`token_ids`), and joins the
//! parts of an answer that another replica continued; `shown_text` shows where it can be cut, `stream_memory` bounds what is kept; `not_continued` has the reasons why it may not.
//! The ends of a request are `failure` (its consequences are in
//! `ejection`), `refusal` (with the tenants' `limit`) and `outcome`. `traffic` counts a session.

pub(crate) mod abridged;
pub(crate) mod api;
pub(crate) mod ejection;
pub(crate) mod failure;
pub(crate) mod fingerprint;
pub(crate) mod judge;
pub(crate) mod limit;
pub(crate) mod meter;
pub(crate) mod not_continued;
pub(crate) mod outcome;
pub(crate) mod passing;
pub(crate) mod plain;
pub(crate) mod refusal;
pub(crate) mod seam_patches;
pub(crate) mod shown_text;
pub(crate) mod stream;
pub(crate) mod stream_memory;
pub(crate) mod template;
pub(crate) mod token_ids;
pub(crate) mod token_record;
pub(crate) mod traffic;
