use std::sync::Arc;

use tokio::io::{DuplexStream, duplex};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::*;

/// Both ends of a session, and how it ended.
struct Session {
    client: DuplexStream,
    replica: DuplexStream,
    drain: Drain,
    traffic: Arc<Traffic>,
    ended: JoinHandle<Ended>,
}

fn session(limits: Limits) -> Session {
    let (client, near) = duplex(1 << 16);
    let (replica, far) = duplex(1 << 16);
    let (drain, traffic) = (Drain::default(), Arc::<Traffic>::default());
    let (draining, counted) = (drain.clone(), Arc::clone(&traffic));
    let ended = tokio::spawn(async move {
        let _connection = draining.count();
        let around = (&limits, &draining, &*counted);
        relay(near, far, around, |_| {}, std::future::pending()).await
    });
    Session { client, replica, drain, traffic, ended }
}

fn text(payload: &[u8]) -> Vec<u8> {
    [&[0x81, payload.len() as u8], payload].concat()
}

/// A client's, masked.
const GOODBYE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 3, 233];

async fn hear(client: &mut DuplexStream, expected: &[u8]) {
    let mut heard = vec![0; expected.len()];
    client.read_exact(&mut heard).await.expect("open");
    assert_eq!(heard, expected);
}

/// The code of the close that is all that comes, after so many seconds.
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
    client.write_all(&GOODBYE).await.expect("open");
    assert_eq!(client.read(&mut [0; 9]).await.expect("an end"), 0, "nothing comes after");
    u16::from_be_bytes([head[2], head[3]])
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_a_session_once_nothing_was_said_for_a_second() {
    let Session { mut client, mut replica, drain, traffic, ended } = session(Limits::default());
    drain.begin();
    for _ in 0..5 {
        sleep(Duration::from_millis(900)).await;
        replica.write_all(&text(b"on")).await.expect("open");
        hear(&mut client, &text(b"on")).await;
        sleep(Duration::from_millis(900)).await;
        client.write_all(&text(b"go")).await.expect("open");
        hear(&mut replica, &text(b"go")).await;
    }
    assert_eq!(closed(&mut client, 1).await, 1001);
    assert_eq!(ended.await.expect("no panic"), Ended::Drained);
    assert_eq!(replica.read(&mut [0; 9]).await.expect("an end"), 0);
    let carried = |side: &Carried| (side.messages(), side.bytes());
    assert_eq!(carried(&traffic.client), (5, 20 + GOODBYE.len() as u64));
    assert_eq!(carried(&traffic.replica), (5, 20));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_busy_session_between_two_frames_before_its_deadline() {
    let Session { mut client, mut replica, drain, ended, .. } = session(Limits::default());
    let talking = tokio::spawn(async move {
        // Each piece ends one frame and begins the next.
        let (head, rest) = ([0x81, 4, b'a'], [b'b', b'c', b'd', 0x81, 4, b'a']);
        let mut said = replica.write_all(&head).await;
        while said.is_ok() {
            sleep(Duration::from_millis(300)).await;
            said = replica.write_all(&rest).await;
        }
    });
    let deadline = Instant::now() + Duration::from_secs(8);
    let finishing = tokio::spawn(async move { drain.finish(deadline).await });
    let mut heard = Vec::new();
    while !heard.ends_with(b" down.") {
        assert_ne!(client.read_buf(&mut heard).await.expect("open"), 0, "{heard:?}");
    }
    client.write_all(&GOODBYE).await.expect("open");
    assert_eq!(ended.await.expect("no panic"), Ended::CutOff);
    assert!(Instant::now() < deadline);
    assert_eq!(finishing.await.expect("no panic"), Err(1), "it was busy to the last");
    talking.await.expect("no panic");
    let whole = text(b"abcd");
    let (frames, close) = heard.split_at(heard.len() / whole.len() * whole.len());
    let cut = frames.chunks(whole.len()).position(|frame| frame != whole).unwrap_or(0);
    let close = [&frames[cut * whole.len()..], close].concat();
    assert!(cut > 10, "{cut} frames");
    assert_eq!(close[..4], [0x88, close.len() as u8 - 2, 3, 233]);
}

#[tokio::test(start_paused = true)]
async fn every_end_but_a_sides_own_is_told() {
    let limits = |idle, total| Limits {
        session_idle_timeout: Duration::from_secs(idle),
        session_timeout: Duration::from_secs(total),
        ..Limits::default()
    };
    let mut idle = session(limits(20, 60));
    assert_eq!(closed(&mut idle.client, 20).await, 1001);
    assert_eq!(idle.ended.await.expect("no panic"), Ended::Idle);

    let mut long = session(limits(60, 20));
    assert_eq!(closed(&mut long.client, 20).await, 1001);
    assert_eq!(long.ended.await.expect("no panic"), Ended::TooLong);

    let mut dead = session(limits(60, 60));
    dead.replica.write_all(&text(b"a")).await.expect("open");
    hear(&mut dead.client, &text(b"a")).await;
    drop(dead.replica);
    assert_eq!(closed(&mut dead.client, 0).await, 1011);
    assert_eq!(dead.ended.await.expect("no panic"), Ended::Broken);

    let mut polite = session(limits(60, 60));
    polite.replica.write_all(&frames::close(1000, "")).await.expect("open");
    drop(polite.replica);
    hear(&mut polite.client, &frames::close(1000, "")).await;
    assert_eq!(polite.client.read(&mut [0]).await.expect("an end"), 0, "told once");
    assert_eq!(polite.ended.await.expect("no panic"), Ended::Closed);

    let left = session(limits(60, 60));
    drop(left.client);
    assert_eq!(left.ended.await.expect("no panic"), Ended::Closed);
}

#[tokio::test(start_paused = true)]
async fn what_a_replica_said_before_it_hung_up_is_passed_on() {
    let (mut client, near) = duplex(1 << 16);
    let (mut replica, said) = duplex(1 << 16);
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
    let far = tokio::io::join(said, hung_up);
    let around = (&limits, &drain, &traffic);
    let (ended, ()) = tokio::join!(relay(near, far, around, |_| {}, std::future::pending()), heard);
    assert_eq!(ended, Ended::Closed);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_answer_a_close_is_waited_for_a_second() {
    let session = session(Limits { session_idle_timeout: PAUSE, ..Limits::default() });
    let start = Instant::now();
    assert_eq!(session.ended.await.expect("no panic"), Ended::Idle);
    assert!(start.elapsed() < PAUSE + FAREWELL + Duration::from_millis(5));
    drop(session.client);
}
