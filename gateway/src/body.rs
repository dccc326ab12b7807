//! Reads a request's body whole.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::bodies::Share;
use crate::refusal::Refusal;
use crate::upload::Upload;

/// Reads a request's body whole, counted as its `share` of all. One that came in one frame is not
/// copied.
pub(crate) async fn read(
    body: Upload,
    limit: u64,
    within: Duration,
    share: Share,
) -> Result<Bytes, Refusal> {
    // A length given beforehand is refused before a byte is read.
    if body.size_hint().lower() > limit {
        return Err(Refusal::BodyTooLarge(limit));
    }
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
    let expected = body.size_hint().exact();
    let (mut first, mut all) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is_incomplete_message() || error.is_closed() {
                Refusal::ClientLeft
            } else {
                Refusal::BadBody(format!("The request body could not be read: {error}."))
            }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if (first.len() + all.len() + data.len()) as u64 > limit {
            return Err(Refusal::BodyTooLarge(limit));
        }
        if !share.grow(data.len() as u64) {
            return Err(Refusal::BodiesFull);
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            if all.is_empty() {
                // Reserved once, where the length is known.
                all.reserve(expected.map_or(first.len() + data.len(), |len| len as usize));
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&data);
        }
    }
    Ok(share.keep(if all.is_empty() { first } else { all.freeze() }))
}
