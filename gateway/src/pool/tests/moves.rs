use tokio::sync::oneshot::Receiver;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::pool::UnderWay;

type Stream = (Ticket, Box<Slot>);

/// A stream at an endpoint.
fn stream(pool: &Arc<Pool>) -> Stream {
    let mut ticket = ticket(600);
    let slot = pool.hold(&mut ticket).now_or_never().expect("there is room").expect("released");
    (ticket, slot)
}

/// Five streams at an endpoint that drains, and their waits for room at another one.
fn five_streams_leave() -> (Arc<Pool>, Vec<Stream>, Vec<Receiver<UnderWay>>) {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    let streams: Vec<_> = (0..5).map(|_| stream(&pool)).collect();
    ready(&pool, 2);
    pool.drain_endpoint(address(1), true);
    let rooms = streams.iter().map(|(ticket, slot)| slot.room_elsewhere(ticket)).collect();
    (pool, streams, rooms)
}

#[tokio::test(start_paused = true)]
async fn streams_move_a_few_at_a_time_to_endpoints_with_room() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 10}"#);
    ready(&pool, 1);
    let streams: Vec<_> = (0..8).map(|_| stream(&pool)).collect();
    ready(&pool, 2);
    pool.drain_endpoint(address(1), true);
    let mut rooms: Vec<_> =
        streams.iter().map(|(ticket, slot)| slot.room_elsewhere(ticket)).collect();
    let mut moved = Vec::new();
    for (n, (ticket, slot)) in streams.into_iter().enumerate() {
        // Those before it have moved, so it is among the next four.
        let under_way = rooms[n].try_recv().expect("room");
        if let Some(room) = rooms.get_mut(n + 4) {
            assert_eq!(room.try_recv().err(), Some(TryRecvError::Empty), "four at a time");
        }
        let next = slot.place_elsewhere(&ticket).expect("room");
        assert_eq!((slot.address, next.address), (address(1), address(2)));
        assert_eq!(pool.signals().in_flight, 9, "one has two places");
        drop(under_way);
        slot.ended(End::Moved);
        moved.push(next);
    }
    let signals = pool.signals();
    let old = signals.endpoints["127.0.0.1:1"].as_ref().expect("known");
    assert_eq!((old.in_flight, old.completed, old.failed), (0, 0, 0), "nothing is held against it");
}

#[tokio::test(start_paused = true)]
async fn streams_whose_clients_do_not_read_do_not_keep_others_from_moving() {
    let (pool, _streams, mut rooms) = five_streams_leave();
    // Four may move, and do not.
    tokio::time::advance(Duration::from_secs(9)).await;
    pool.tick();
    assert_eq!(rooms[4].try_recv().err(), Some(TryRecvError::Empty));
    tokio::time::advance(Duration::from_secs(1)).await;
    pool.tick();
    assert!(rooms[4].try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn no_more_streams_move_at_a_time_however_long_a_prompt_takes() {
    let (pool, _streams, mut rooms) = five_streams_leave();
    let mut under_way: Vec<_> =
        rooms[..4].iter_mut().map(|room| room.try_recv().expect("room")).collect();
    under_way.iter().for_each(UnderWay::begun);
    tokio::time::advance(Duration::from_secs(60)).await;
    pool.tick();
    assert_eq!(rooms[4].try_recv().err(), Some(TryRecvError::Empty));
    under_way.pop();
    pool.tick();
    assert!(rooms[4].try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stream_takes_its_place_elsewhere_only_when_it_goes_there() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let (leaving, old) = stream(&pool);
    ready(&pool, 2);
    pool.drain_endpoint(address(1), true);
    let mut room = old.room_elsewhere(&leaving);
    let under_way = room.try_recv().expect("room");
    assert_eq!(pool.signals().in_flight, 1, "its client does not read yet");
    let (_, other) = stream(&pool);
    assert_eq!(other.address, address(2), "a new request gets the place");
    assert!(old.place_elsewhere(&leaving).is_none());
    drop(under_way);
    let mut room = old.room_elsewhere(&leaving);
    assert_eq!(room.try_recv().err(), Some(TryRecvError::Empty));
    other.ended(End::Complete);
    assert!(room.try_recv().is_ok());
    assert_eq!(old.place_elsewhere(&leaving).expect("room").address, address(2));
}

#[tokio::test(start_paused = true)]
async fn a_stream_gets_only_the_place_that_no_held_request_can_use() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let (leaving, old) = stream(&pool);
    ready(&pool, 2);
    let (_, full) = stream(&pool);
    pool.drain_endpoint(address(1), true);
    let mut held = ticket(600);
    let mut hold = Box::pin(pool.hold(&mut held));
    assert!(hold.as_mut().now_or_never().is_none());
    let mut room = old.room_elsewhere(&leaving);
    assert_eq!(room.try_recv().err(), Some(TryRecvError::Empty));
    full.ended(End::Complete);
    let first = hold.as_mut().now_or_never().expect("it has waited").expect("released");
    assert_eq!(room.try_recv().err(), Some(TryRecvError::Empty), "the stream goes on where it is");
    first.ended(End::Complete);
    assert!(room.try_recv().is_ok());
    assert_eq!(old.place_elsewhere(&leaving).expect("room").address, address(2));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_while_it_waits_for_room_keeps_none() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 2}"#);
    ready(&pool, 1);
    let ((one, first), (other, second)) = (stream(&pool), stream(&pool));
    pool.drain_endpoint(address(1), true);
    let gone = first.room_elsewhere(&one);
    let mut room = second.room_elsewhere(&other);
    drop(gone);
    first.ended(End::Complete);
    ready(&pool, 2);
    assert!(room.try_recv().is_ok());
    assert_eq!(pool.signals().in_flight, 1, "the place that it got went with it");
}

#[tokio::test(start_paused = true)]
async fn a_stream_may_move_once_its_endpoint_has_drained_for_long_enough() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    let (ticket, slot) = stream(&pool);
    let mut drained = Box::pin(slot.drained_for(Duration::from_secs(5)));
    assert!(drained.as_mut().now_or_never().is_none());
    pool.drain_endpoint(address(1), true);
    assert!(drained.as_mut().now_or_never().is_none());
    tokio::time::advance(Duration::from_secs(4)).await;
    assert!(drained.as_mut().now_or_never().is_none(), "four seconds");
    let mut room = slot.room_elsewhere(&ticket);
    // It serves again.
    pool.drain_endpoint(address(1), false);
    assert_eq!(room.try_recv().err(), Some(TryRecvError::Closed), "nothing has to move");
    tokio::time::advance(Duration::from_secs(60)).await;
    assert!(drained.as_mut().now_or_never().is_none());
    let since = Instant::now();
    pool.drain_endpoint(address(1), true);
    drained.await;
    assert_eq!(since.elapsed().as_secs(), 5, "from the beginning of the second drain");
}

#[tokio::test(start_paused = true)]
async fn no_stream_moves_while_the_zero_barrier_is_up() {
    let pool = pool(r#"{"name": "p"}"#);
    ready(&pool, 1);
    let (ticket, slot) = stream(&pool);
    ready(&pool, 2);
    pool.set_barrier(Some((1, Duration::from_secs(5))));
    pool.drain_endpoint(address(1), true);
    let mut room = slot.room_elsewhere(&ticket);
    assert_eq!(room.try_recv().err(), Some(TryRecvError::Empty));
    pool.set_barrier(None);
    assert!(room.try_recv().is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_unused_place_says_nothing_about_its_endpoint_nor_about_the_length_of_answers() {
    let pool = pool(r#"{"name": "p", "maxInFlight": 1}"#);
    ready(&pool, 1);
    let sound = [Cause::Shortage, Cause::NotContinued, Cause::Moved].map(failure).map(End::of);
    for end in sound.into_iter().chain([End::Unused, End::Moved]) {
        let (_, slot) = stream(&pool);
        tokio::time::advance(Duration::from_secs(5)).await;
        slot.ended(end);
        let signals = pool.signals();
        let endpoint = signals.endpoints["127.0.0.1:1"].as_ref().expect("known");
        let counts = (endpoint.in_flight, endpoint.completed, endpoint.failed);
        assert_eq!(counts, (0, 0, 0), "the place is free, and nothing is held against it");
        assert_eq!(endpoint.health, forebay_signals::Health::Ready);
        assert_eq!(pool.scheduling.lock().readiness.times.service, Default::default());
    }
    let (_, slot) = stream(&pool);
    tokio::time::advance(Duration::from_secs(5)).await;
    slot.ended(End::Complete);
    assert_ne!(pool.scheduling.lock().readiness.times.service, Default::default());
}
