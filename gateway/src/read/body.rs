//! Reads a request's body whole.

use std::time::Duration;

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::answer::refusal::Refusal;
use crate::net::upload::Upload;
use crate::read::body_memory::{Full, Share};

/// Room that is made at once for a body that does not come in one piece.
const LEAST_ROOM: usize = 64 << 10;

/// Reads a request's body whole, counted as its `share` of all beside the request's `head`. One that
/// came in one frame is not copied.
pub(crate) async fn read(
    body: Upload,
    limit: u64,
    within: Duration,
    mut share: Share,
    head: u64,
) -> Result<Bytes, Refusal> {
    // A length given beforehand is refused before a byte is read.
    if body.size_hint().lower() > limit {
        return Err(Refusal::BodyTooLarge(limit));
    }
    take(&mut share, usize::try_from(head).unwrap_or(usize::MAX))?;
    timeout(within, collect(body, limit, share)).await.map_err(|_| Refusal::BodyTooSlow(within))?
}

/// Takes what comes of a body that is not wanted, keeping none of it: a client that still sends
/// would not see an answer on a connection that is closed meanwhile.
pub(crate) async fn discard(mut body: Upload, limit: u64, within: Duration) {
    let all = async {
        let mut size = 0;
        while let Some(Ok(frame)) = body.frame().await {
            size += frame.data_ref().map_or(0, |data| data.len() as u64);
            if size > limit {
                break;
            }
        }
    };
    // What takes longer is cut off with the answer.
    let _ = timeout(within, all).await;
}

async fn collect(mut body: Upload, limit: u64, mut share: Share) -> Result<Bytes, Refusal> {
    let longest = body.size_hint().exact().unwrap_or(limit);
    let (mut first, mut all) = (Bytes::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is_incomplete_message() || error.is_closed() {
                Refusal::ClientLeft
            } else {
                Refusal::BadBody(format!("The request body could not be read: {error}."))
            }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        let size = first.len() + all.len() + data.len();
        if size as u64 > limit {
            return Err(Refusal::BodyTooLarge(limit));
        }
        if first.is_empty() && all.is_empty() {
            take(&mut share, data.len())?;
            first = data;
            continue;
        }
        if size > all.capacity() {
            let capacity = capacity(size, longest);
            take(&mut share, capacity - all.capacity())?;
            all.reserve_exact(capacity - all.len());
        }
        if !first.is_empty() {
            all.extend_from_slice(&first);
            share.shrink(first.len() as u64);
            first = Bytes::new();
        }
        all.extend_from_slice(&data);
    }
    if all.is_empty() {
        return Ok(share.keep(first));
    }
    let spare = all.capacity() - all.len();
    if spare > all.len() / 4 {
        all.shrink_to_fit();
        share.shrink(spare as u64);
    }
    Ok(share.keep(all.into()))
}

/// Room for a body of which `size` bytes are there: twice as much, so that a length that is only
/// claimed takes no memory, and no more than `longest`.
fn capacity(size: usize, longest: u64) -> usize {
    let longest = usize::try_from(longest).unwrap_or(usize::MAX);
    size.saturating_mul(2).max(LEAST_ROOM).min(longest).max(size)
}

fn take(share: &mut Share, bytes: usize) -> Result<(), Refusal> {
    share.grow(bytes as u64).map_err(|full| match full {
        Full::All => Refusal::BodiesFull,
        Full::Source => Refusal::ClientBodiesFull(share.source().to_string()),
    })
}
