//! Streams under way, and their answers compared with those of a replica that never fails.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use serde_json::{Value, json};

use super::reply::{Reply, ask, parse};
use super::{connect, eventually, post};

pub const CHAT: &str = "/v1/chat/completions";

/// A streamed chat with an answer of `tokens` tokens. Each `n` has another text.
pub fn chat(n: usize, tokens: u32, more: Value) -> Value {
    let mut body = json!({
        "model": "sim", "stream": true, "max_tokens": tokens, "ignore_eos": true,
        "messages": [{"role": "user", "content": format!("story {n}")}],
    });
    let more = more.as_object().expect("an object").clone();
    body.as_object_mut().expect("an object").extend(more);
    body
}

/// A request under way, of which some bytes have been read.
pub struct Running {
    reader: JoinHandle<()>,
    read: Arc<Mutex<Vec<u8>>>,
}

impl Running {
    pub fn start(address: SocketAddr, path: &str, body: &Value) -> Self {
        let mut stream = connect(address);
        stream.write_all(&post(path, &body.to_string())).expect("sent");
        let mut answer = vec![0; 1500];
        // The answer has begun, and some text is there.
        stream.read_exact(&mut answer).expect("an answer begins");
        let read = Arc::new(Mutex::new(answer));
        let shared = Arc::clone(&read);
        let reader = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(length @ 1..) = stream.read(&mut piece) {
                shared.lock().expect("no panic").extend(&piece[..length]);
            }
        });
        Self { reader, read }
    }

    /// Waits until the answer so far has this text.
    pub fn wait_for(&self, text: &str) {
        eventually(text, || {
            let read = self.read.lock().expect("no panic");
            String::from_utf8_lossy(&read).contains(text)
        });
    }

    pub fn end(self) -> Reply {
        self.reader.join().expect("no panic");
        let read = self.read.lock().expect("no panic");
        parse(&read)
    }
}

/// The events of a stream, without its end mark.
pub fn events(reply: &Reply) -> Vec<Value> {
    let text = reply.text();
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let data = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let events = data.filter(|data| *data != "[DONE]");
    events.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

/// A stream's events without what differs from request to request.
pub fn comparable(reply: &Reply) -> Vec<Value> {
    let mut events = events(reply);
    let first = events.first().expect("events").clone();
    for event in &mut events {
        assert_eq!(event["id"], first["id"], "one id in {event}");
        assert_eq!(event["created"], first["created"], "one time");
        let members = event.as_object_mut().expect("an object");
        members.remove("id");
        members.remove("created");
    }
    events
}

/// Checks that a stream through the gateway is what a replica sends that never fails.
pub fn assert_unbroken(reply: &Reply, replica: SocketAddr, path: &str, body: &Value) {
    assert!(reply.whole && reply.status == 200, "{reply:?}");
    let want = ask(replica, &post(path, &body.to_string()));
    let (got, want) = (comparable(reply), comparable(&want));
    if body.get("stop").is_some() {
        // A replica holds text back that may begin a stop string, so behind a seam the same text comes in
        // other pieces.
        assert_eq!(text(&got), text(&want), "{body}");
        assert_eq!(got.last(), want.last(), "{body}");
    } else {
        assert_same_events(&got, &want, body);
    }
}

/// The text of a chat's events.
fn text(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str()).collect()
}

fn assert_same_events(got: &[Value], want: &[Value], body: &Value) {
    for (at, (got, want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got, want, "event {at} of the answer to {body}");
    }
    assert_eq!(got.len(), want.len(), "{body}");
}
