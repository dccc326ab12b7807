//! Reads a request's body whole, within its bounds of size, time and memory.

use std::future::{Future, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::Either;
use http_body::{Body as HttpBody, Frame};
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::answer::refusal::Refusal;
use crate::net::upload::{Upload, UploadError};
use crate::read::body_memory::{BodyShare, MemoryFull};

/// The least memory for a body that does not come in one piece.
const LEAST_ROOM: usize = 64 << 10;

/// A frame of a body, or its end.
type NextFrame = Option<Result<Frame<Bytes>, UploadError>>;

/// Reads a request's body whole. Its bytes and those of the request's `head` count in `share`. A
/// body that comes in one frame is not copied.
///
/// Most bodies come with their heads, and are read at once. They need no timer, and a request that
/// is held keeps no room for reading.
pub(crate) fn read(
    mut body: Upload,
    limit: u64,
    within: Duration,
    mut share: BodyShare,
    head: u64,
) -> impl Future<Output = Result<Bytes, Refusal>> {
    // If the length is known, the body is refused before a byte is read.
    if body.size_hint().lower() > limit {
        return Either::Left(ready(Err(Refusal::BodyTooLarge(limit))));
    }
    let head = usize::try_from(head).unwrap_or(usize::MAX);
    let mut next = body.frame().now_or_never();
    if body.is_end_stream()
        && let Some(Some(Ok(frame))) = next.take_if(|next| matches!(next, Some(Ok(_))))
    {
        let data = frame.into_data().unwrap_or_default();
        let read = match data.len() as u64 > limit {
            true => Err(Refusal::BodyTooLarge(limit)),
            false => take(&mut share, data.len().saturating_add(head)),
        };
        return Either::Left(ready(read.map(|()| share.keep(data))));
    }
    let reading = timeout(within, collect(body, next, limit, share, head));
    Either::Right(Box::pin(async move { reading.await.map_err(|_| Refusal::BodyTooSlow(within))? }))
}

/// Reads an unwanted body and discards it. If the connection were closed while the client still
/// sends, the client would not see the answer.
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
    // A longer body is cut off with the answer.
    let _ = timeout(within, all).await;
}

/// Reads the rest of a body behind `next`, which is there already.
async fn collect(
    mut body: Upload,
    mut next: Option<NextFrame>,
    limit: u64,
    mut share: BodyShare,
    mut head: usize,
) -> Result<Bytes, Refusal> {
    // The head's memory is taken together with that of a body which is there already.
    if next.is_none() {
        take(&mut share, std::mem::take(&mut head))?;
    }
    let longest = body.size_hint().exact().unwrap_or(limit);
    let (mut first, mut all) = (Bytes::new(), Vec::new());
    loop {
        let frame = match next.take() {
            Some(frame) => frame,
            None => body.frame().await,
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| {
            if error.is_client_gone() {
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
            take(&mut share, data.len().saturating_add(std::mem::take(&mut head)))?;
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
    if head > 0 {
        // There is no body.
        take(&mut share, head)?;
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

/// The memory for a body of which `size` bytes have come: twice as much, but at most `longest`. A
/// length that a client only claims takes no memory.
fn capacity(size: usize, longest: u64) -> usize {
    let longest = usize::try_from(longest).unwrap_or(usize::MAX);
    size.saturating_mul(2).max(LEAST_ROOM).min(longest).max(size)
}

fn take(share: &mut BodyShare, bytes: usize) -> Result<(), Refusal> {
    share.grow(bytes as u64).map_err(|full| match full {
        MemoryFull::All => Refusal::BodiesFull,
        MemoryFull::Owner => Refusal::ClientBodiesFull(share.owner().to_string()),
    })
}
