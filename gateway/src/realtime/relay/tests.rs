use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;

/// Both ends of a session, and its end.
struct TestSession {
    client: DuplexStream,
    replica: DuplexStream,
    drain: Drain,
    traffic: Arc<Traffic>,
    ended: JoinHandle<SessionEnd>,
}

fn session(limits: Limits) -> TestSession {
    let (client, near) = duplex(1 << 16);
    let (replica, far) = duplex(1 << 16);
    let (drain, traffic) = (Drain::default(), Arc::<Traffic>::default());
    let (draining, counted) = (drain.clone(), Arc::clone(&traffic));
    let ended = tokio::spawn(async move {
        let _connection = draining.count();
        let around = (&limits, &draining, &*counted);
        relay(near, far, around, |_| {}, std::future::pending()).await
    });
    TestSession { client, replica, drain, traffic, ended }
}

fn text(payload: &[u8]) -> Vec<u8> {
    [&[0x81, payload.len() as u8], payload].concat()
}

/// A client's close, masked.
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 3, 233];

async fn receives(client: &mut DuplexStream, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    client.read_exact(&mut heard).await.expect("open");
    assert_eq!(heard, expected);
}

/// Waits for a close after `after` seconds, and nothing else. Returns its code.
async fn closed(client: &mut DuplexStream, after: u64) -> u16 {
    let start = Instant::now();
    let mut head = [0; 4];
    client.read_exact(&mut head).await.expect("open");
    let waited = start.elapsed().as_millis() as u64;
    assert!((after * 1000..=after * 1000 + 2).contains(&waited), "{waited} ms");
    assert_eq!(head[0], 0x88);
    let mut reason = vec![0; usize::from(head[1]) - 2];
    client.read_exact(&mut reason).await.expect("whole");
    assert!(std::str::from_utf8(&reason).expect("text").ends_with('.'));
    client.write_all(&CLOSE).await.expect("open");
    assert_eq!(client.read(&mut [0; 9]).await.expect("an end"), 0, "nothing comes after");
    u16::from_be_bytes([head[2], head[3]])
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_session_after_a_second_without_traffic() {
    let TestSession { mut client, mut replica, drain, traffic, ended } = session(Limits::default());
    drain.begin();
    for _ in 0..5 {
        sleep(Duration::from_millis(900)).await;
        replica.write_all(&text(b"on")).await.expect("open");
        receives(&mut client, &text(b"on")).await;
        sleep(Duration::from_millis(900)).await;
        client.write_all(&text(b"go")).await.expect("open");
        receives(&mut replica, &text(b"go")).await;
    }
    assert_eq!(closed(&mut client, 1).await, 1001);
    assert_eq!(ended.await.expect("no panic"), SessionEnd::Drained);
    assert_eq!(replica.read(&mut [0; 9]).await.expect("an end"), 0);
    let carried = |side: &SideTraffic| (side.messages(), side.bytes());
    assert_eq!(carried(&traffic.client), (5, 20 + CLOSE.len() as u64));
    assert_eq!(carried(&traffic.replica), (5, 20));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_busy_session_between_two_frames_before_its_deadline() {
    let TestSession { mut client, mut replica, drain, ended, .. } = session(Limits::default());
    let talking = tokio::spawn(async move {
        // Each write ends one frame and begins the next.
        let (head, rest) = ([0x81, 4, b'a'], [b'b', b'c', b'd', 0x81, 4, b'a']);
        let mut sent = replica.write_all(&head).await;
        while sent.is_ok() {
            sleep(Duration::from_millis(300)).await;
            sent = replica.write_all(&rest).await;
        }
    });
    let deadline = Instant::now() + Duration::from_secs(8);
    let finishing = tokio::spawn(async move { drain.finish(deadline).await });
    let mut heard = Vec::new();
    while !heard.ends_with(b" down.") {
        assert_ne!(client.read_buf(&mut heard).await.expect("open"), 0, "{heard:?}");
    }
    client.write_all(&CLOSE).await.expect("open");
    assert_eq!(ended.await.expect("no panic"), SessionEnd::CutOff);
    assert!(Instant::now() < deadline);
    assert_eq!(finishing.await.expect("no panic"), Err(1), "it was busy until the cut-off");
    talking.await.expect("no panic");
    let whole = text(b"abcd");
    let (frames, close) = heard.split_at(heard.len() / whole.len() * whole.len());
    let cut = frames.chunks(whole.len()).position(|frame| frame != whole).unwrap_or(0);
    let close = [&frames[cut * whole.len()..], close].concat();
    assert!(cut > 10, "{cut} frames");
    assert_eq!(close[..4], [0x88, close.len() as u8 - 2, 3, 233]);
}

#[tokio::test(start_paused = true)]
async fn the_gateway_sends_a_close_unless_a_side_ends_the_session() {
    let limits = |idle, total| Limits {
        session_idle_timeout: Duration::from_secs(idle),
        session_timeout: Duration::from_secs(total),
        ..Limits::default()
    };
    let mut idle = session(limits(20, 60));
    assert_eq!(closed(&mut idle.client, 20).await, 1001);
    assert_eq!(idle.ended.await.expect("no panic"), SessionEnd::Idle);

    let mut long = session(limits(60, 20));
    assert_eq!(closed(&mut long.client, 20).await, 1001);
    assert_eq!(long.ended.await.expect("no panic"), SessionEnd::TooLong);

    let mut dead = session(limits(60, 60));
    dead.replica.write_all(&text(b"a")).await.expect("open");
    receives(&mut dead.client, &text(b"a")).await;
    drop(dead.replica);
    assert_eq!(closed(&mut dead.client, 0).await, 1011);
    assert_eq!(dead.ended.await.expect("no panic"), SessionEnd::Broken);

    let mut polite = session(limits(60, 60));
    polite.replica.write_all(&frames::close(1000, "")).await.expect("open");
    drop(polite.replica);
    receives(&mut polite.client, &frames::close(1000, "")).await;
    assert_eq!(polite.client.read(&mut [0]).await.expect("an end"), 0, "one close only");
    assert_eq!(polite.ended.await.expect("no panic"), SessionEnd::Closed);

    let left = session(limits(60, 60));
    drop(left.client);
    assert_eq!(left.ended.await.expect("no panic"), SessionEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn frames_that_a_replica_sent_before_it_hung_up_are_passed_on() {
    let (mut client, near) = duplex(1 << 16);
    let (mut replica, replies) = duplex(1 << 16);
    let hung_up = duplex(1).0;
    let (limits, drain, traffic) = (Limits::default(), Drain::default(), Traffic::default());
    let heard = async {
        client.write_all(&text(b"more")).await.expect("open");
        sleep(Duration::from_millis(10)).await;
        let last = [text(b"last"), frames::close(1000, "")].concat();
        replica.write_all(&last).await.expect("open");
        drop(replica);
        let mut heard = Vec::new();
        client.read_to_end(&mut heard).await.expect("an end");
        assert_eq!(heard, last);
    };
    let far = tokio::io::join(replies, hung_up);
    let around = (&limits, &drain, &traffic);
    let (ended, ()) = tokio::join!(relay(near, far, around, |_| {}, std::future::pending()), heard);
    assert_eq!(ended, SessionEnd::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_client_has_a_second_to_answer_a_close() {
    let session = session(Limits { session_idle_timeout: PAUSE, ..Limits::default() });
    let start = Instant::now();
    assert_eq!(session.ended.await.expect("no panic"), SessionEnd::Idle);
    assert!(start.elapsed() < PAUSE + FAREWELL + Duration::from_millis(5));
    drop(session.client);
}
