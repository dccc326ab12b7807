//! Whose time passes while an answer comes: the replica's or the client's. The replica is a socket.

use std::future::{pending, poll_fn};
use std::net::IpAddr;
use std::sync::Arc;

use http::Request;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::join;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::answer::api::Api;
use crate::answer::not_continued::NotContinued;
use crate::exchange::outgoing::{Outgoing, OutgoingHead, Rights};
use crate::exchange::upstream::Connection;
use crate::net::socket::ClientSocket;
use crate::pool::Pool;
use crate::pool::endpoint::{Probe, Probed};
use crate::pool::tests::ticket;
use crate::read::context::{Client, RequestContext};
use crate::read::head::ClientHead;

const PATIENCE: Duration = Duration::from_secs(20);
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
const CHUNK: &[u8] =
    b"data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\"finish_reason\":null}]}\n\n";

fn head() -> ClientHead {
    let request = Request::post("/v1/chat/completions").body(()).expect("valid");
    ClientHead::known(request.into_parts().0)
}

/// A relay of a stream that no other replica goes on with, and the replica's side of its connection.
async fn relay() -> (Relay, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let deadline = Instant::now() + PATIENCE;
    let replica = async {
        let (mut replica, _) = listener.accept().await.expect("a connection");
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(replica.read_u8().await.expect("a request"));
        }
        replica.write_all(HEAD).await.expect("sent");
        replica
    };
    let gateway = async {
        let connection = Connection::get(address, true, PATIENCE, deadline).await;
        let connection = connection.map_err(|none| none.failure.message).expect("it listens");
        let outgoing = Outgoing::new(OutgoingHead::own(head()), Rope::default(), Rights::default());
        connection.send(&outgoing).await.expect("an answer").1
    };
    let (replica, upstream) = join!(replica, gateway);
    let pool = Pool::new(forebay_config::Pool::named("p"), Arc::default());
    pool.add_endpoint(address);
    pool.probed(address, Probe::Health, Probed::Answered);
    let slot = pool.hold(&mut ticket(PATIENCE.as_secs())).await.expect("ready");
    let client =
        Client { socket: ClientSocket::unwatched(), address: Some(IpAddr::from([10, 0, 0, 1])) };
    let record = Record::begin(RequestContext::new(&head(), client));
    let form = AnswerForm::Stream(Box::new(AnswerStream::new(Api::ChatCompletions, false, None)));
    let (lost, ending) = (slot.lost(), CancellationToken::new());
    let cutoff = Cutoff::new(Box::pin(pending()), lost, ending);
    let successor = Successor::new(Err(NotContinued::Off), Duration::ZERO, clock::now());
    let start = (Rope::default(), upstream, form);
    (Relay::new(start, slot, record, (PATIENCE, deadline), (cutoff, successor)), replica)
}

/// Takes the next chunk, as soon as it is there.
async fn take(relay: &mut Relay) {
    let frame = poll_fn(|cx| relay.poll_frame(cx));
    let frame = timeout(PATIENCE, frame).await.expect("in time").expect("more").expect("whole");
    assert_eq!(frame, CHUNK);
}

#[tokio::test]
async fn the_time_for_which_the_replica_is_waited_for_is_not_the_clients() {
    let (mut relay, mut replica) = relay().await;
    for _ in 0..3 {
        let sends = async {
            sleep(Duration::from_millis(30)).await;
            replica.write_all(CHUNK).await.expect("sent");
        };
        join!(take(&mut relay), sends);
    }
    assert_eq!(relay.pace.slow(), Duration::ZERO);
    // Now the client does not take what is there.
    let late = Duration::from_millis(60);
    replica.write_all(CHUNK).await.expect("sent");
    sleep(late).await;
    take(&mut relay).await;
    assert!(relay.pace.slow() >= late, "{:?}", relay.pace.slow());
}

#[tokio::test]
async fn the_time_of_a_search_for_another_replica_is_not_the_clients() {
    let (mut relay, mut replica) = relay().await;
    replica.write_all(CHUNK).await.expect("sent");
    take(&mut relay).await;
    relay.successor = Successor::searching(Box::pin(pending()), clock::now());
    let searching = timeout(Duration::from_millis(60), poll_fn(|cx| relay.poll_frame(cx)));
    assert!(searching.await.is_err(), "nothing comes");
    // The next replica has gone on.
    let _ = relay.data(Bytes::from_static(CHUNK));
    assert_eq!(relay.pace.slow(), Duration::ZERO);
}

#[tokio::test]
async fn a_client_that_is_always_behind_gets_no_more_than_the_time_for_one_request() {
    let (mut relay, replica) = relay().await;
    // As much as the sockets take, so that the replica is never waited for.
    let (chunks, mut sent) = (CHUNK.repeat(1000), 0);
    while let Ok(Ok(())) = timeout(Duration::from_millis(100), replica.writable()).await {
        sent += replica.try_write(&chunks).unwrap_or_default();
    }
    relay.deadline = clock::now();
    relay.moments.merge -= MERGE;
    let mut passed = Vec::new();
    while let Some(frame) = poll_fn(|cx| relay.poll_frame(cx)).await {
        passed.extend_from_slice(&frame.expect("whole"));
        // So that tokio's budget does not end a read.
        yield_now().await;
    }
    assert!(passed.len() < sent / 2, "{} of {sent} bytes", passed.len());
    let end = String::from_utf8_lossy(&passed[passed.len().saturating_sub(400)..]);
    assert!(end.contains("The time for one request is over."), "{end}");
}
