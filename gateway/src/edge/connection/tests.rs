//! How a connection is driven within its limits.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;

use forebay_base::shortage::Resource;

use super::*;
use crate::net::connection_limits::ConnectionLimits;

/// Drives a connection whose client sends a request just when the gateway ends it, and that closes once
/// the answer is out, after `answering`. Returns how that ended, and when.
async fn driven(answering: Duration, limits: Limits) -> (Result<(), ConnectionError>, Duration) {
    let clients = ConnectionLimits::new(1, Resource::Files);
    let address = [127, 0, 0, 1].into();
    let counted = clients.admit(address, clients.place().await, 1, 1).expect("room");
    let start = Instant::now();
    let activity = Activity::new(start, true);
    drop(activity.begin());
    let (mut ends, mut flight) = (false, None);
    let mut answer = pin!(sleep(Duration::MAX));
    let connection = |cx: &mut Context<'_>, step| {
        match step {
            Drive::End => ends = true,
            Drive::Poll if ends && flight.is_none() => {
                flight = Some(activity.begin());
                answer.as_mut().reset(Instant::now() + answering);
            }
            Drive::Poll => {}
        }
        answer.as_mut().poll(cx).map(Ok)
    };
    let ended =
        drive(connection, &activity, &counted, (Arc::new(limits), &Drain::default()), false).await;
    (ended, start.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_request_that_comes_as_an_idle_connection_ends_has_the_time_of_a_request() {
    let second = Duration::from_secs(1);
    let limits = Limits {
        idle_timeout: 75 * second,
        write_timeout: 120 * second,
        total_timeout: 1000 * second,
        ..Limits::default()
    };
    let (ended, after) = driven(600 * second, limits.clone()).await;
    assert!(ended.is_ok(), "{ended:?}");
    assert_eq!(after.as_secs(), 675);
    let (ended, after) = driven(2000 * second, limits).await;
    assert!(ended.is_err(), "an answer took too long");
    assert_eq!(after.as_secs(), 1075);
}
