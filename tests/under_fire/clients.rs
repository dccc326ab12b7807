//! Clients that send requests at once, and checks of their answers.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use crate::support::{Forebay, chat, eventually, exchange, json, status};

/// Waits until this many endpoints are ready.
pub fn ready(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} endpoints are ready"), || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("endpoints").values();
        endpoints.filter(|endpoint| endpoint["health"] == "ready").count() == count
    });
}

/// Has replicas that have just begun answer short requests until each takes all that comes: each first
/// token makes room for two more.
pub fn warm(forebay: &Forebay, count: usize) {
    for _ in 0..7 {
        assert_eq!(Requests::send(forebay.address, count, &chat(true, 1)).broken(), 0);
    }
}

/// Waits until this many requests are in flight.
pub fn in_flight(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} requests are in flight"), || {
        forebay.signals()["inFlight"] == count
    });
}

/// Requests that wait for their answers.
pub struct Requests(Vec<JoinHandle<String>>);

impl Requests {
    /// Sends the request `count` times at once.
    pub fn send(address: SocketAddr, count: usize, request: &[u8]) -> Self {
        let client = |_| {
            let request = request.to_vec();
            std::thread::spawn(move || exchange(address, &request))
        };
        Self((0..count).map(client).collect())
    }

    /// Waits for all answers.
    pub fn answers(self) -> Vec<String> {
        self.0.into_iter().map(|client| client.join().expect("no panic")).collect()
    }

    /// Checks that every answer is a whole plain one.
    pub fn are_answered(self) {
        for answer in self.answers() {
            assert_eq!(status(&answer), 200, "{answer}");
            assert!(json(&answer).get("error").is_none(), "{answer}");
        }
    }

    /// Checks that every answer is a stream that ends properly, whole or with an error event.
    /// Returns the number of those with an error event.
    pub fn broken(self) -> usize {
        let broke = |answer: &String| {
            assert_eq!(status(answer), 200, "{answer}");
            assert!(answer.contains("data: [DONE]\n\n"), "left hanging: {answer}");
            let broke = answer.contains("data: {\"error\":");
            assert!(broke != answer.contains("\"finish_reason\":\"length\""), "{answer}");
            broke
        };
        self.answers().iter().filter(|answer| broke(answer)).count()
    }
}
