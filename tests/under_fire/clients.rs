//! Clients that ask at once, and what they may be told.

use std::net::SocketAddr;
use std::thread::JoinHandle;

use crate::support::{Forebay, eventually, exchange, json, status};

/// Waits until so many endpoints are ready.
pub fn ready(forebay: &Forebay, count: usize) {
    eventually("so many endpoints are ready", || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("endpoints").values();
        endpoints.filter(|endpoint| endpoint["health"] == "ready").count() == count
    });
}

/// Waits until so many requests are at endpoints.
pub fn in_flight(forebay: &Forebay, count: usize) {
    eventually("so many requests are in flight", || forebay.signals()["inFlight"] == count);
}

/// Requests under way.
pub struct Asking(Vec<JoinHandle<String>>);

impl Asking {
    /// Asks `count` times at once.
    pub fn all(address: SocketAddr, count: usize, request: &[u8]) -> Self {
        let client = |_| {
            let request = request.to_vec();
            std::thread::spawn(move || exchange(address, &request))
        };
        Self((0..count).map(client).collect())
    }

    pub fn answers(self) -> Vec<String> {
        self.0.into_iter().map(|client| client.join().expect("no panic")).collect()
    }

    /// Every one is a whole plain answer.
    pub fn are_answered(self) {
        for answer in self.answers() {
            assert_eq!(status(&answer), 200, "{answer}");
            assert!(json(&answer).get("error").is_none(), "{answer}");
        }
    }

    /// Every one is a stream with an end of its own, whole or with an error event; how many of the
    /// latter there are.
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
