//! `/v1/realtime` of the simulated vLLM: audio in, a transcription out.

mod common;

use common::{PATIENCE, ask, eventually, get, tiny};
use forebay_loadtests::sim::Sim;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

type Socket = WebSocketStream<TcpStream>;

async fn open(sim: &Sim) -> Socket {
    let stream = TcpStream::connect(sim.addr()).await.expect("it listens");
    let opened = tokio_tungstenite::client_async("ws://sim/v1/realtime?model=tiny", stream).await;
    let (mut socket, response) = opened.expect("a session");
    assert_eq!(response.headers()["server"], "uvicorn");
    assert_eq!(event(&mut socket).await["type"], "session.created");
    socket
}

async fn say(socket: &mut Socket, event: Value) {
    socket.send(Message::text(event.to_string())).await.expect("open");
}

async fn event(socket: &mut Socket) -> Value {
    let message = timeout(PATIENCE, socket.next()).await.expect("in time").expect("open");
    serde_json::from_str(message.expect("whole").to_text().expect("text")).expect("JSON")
}

/// Silence of this many samples.
fn audio(samples: usize) -> Value {
    // Two zero bytes a sample; three samples make eight letters.
    json!({"type": "input_audio_buffer.append", "audio": "AAAAAAAA".repeat(samples / 3)})
}

#[tokio::test]
async fn audio_is_transcribed_piece_by_piece_and_counted() {
    let sim = tiny(&[]).await;
    let mut socket = open(&sim).await;
    say(&mut socket, json!({"type": "session.update", "model": "tiny"})).await;
    for _ in 0..2 {
        say(&mut socket, audio(48_000)).await;
        say(&mut socket, json!({"type": "input_audio_buffer.commit"})).await;
        say(&mut socket, audio(48_000)).await;
        say(&mut socket, json!({"type": "input_audio_buffer.commit", "final": true})).await;
        let (mut text, mut deltas) = (String::new(), 0);
        let done = loop {
            let event = event(&mut socket).await;
            if event["type"] != "transcription.delta" {
                break event;
            }
            text += event["delta"].as_str().expect("a text");
            deltas += 1;
        };
        assert_eq!(done["type"], "transcription.done", "{done}");
        assert_eq!((done["text"].as_str(), deltas), (Some(text.as_str()), 18), "3 words a second");
        // Three seconds are 37.5 tokens of 80 ms; the prompt is counted before the first token.
        let usage = json!({"prompt_tokens": 38, "completion_tokens": 18, "total_tokens": 56,
            "prompt_tokens_details": null, "completion_tokens_details": null});
        assert_eq!(done["usage"], usage);
    }
}

#[tokio::test]
async fn mistakes_are_errors_and_the_session_goes_on() {
    let sim = tiny(&[]).await;
    let mut socket = open(&sim).await;
    for (sent, code) in [
        (json!({"type": "input_audio_buffer.commit"}), "model_not_validated"),
        (json!({"type": "session.update", "model": "other"}), "model_not_found"),
        (json!({"type": "input_audio_buffer.append", "audio": "!"}), "invalid_audio"),
        (json!({"type": "hello"}), "unknown_event"),
    ] {
        say(&mut socket, sent).await;
        let error = event(&mut socket).await;
        assert_eq!((&error["type"], &error["code"]), (&json!("error"), &json!(code)), "{error}");
    }
}

#[tokio::test]
async fn the_work_ends_with_its_client_and_the_session_with_its_server() {
    let sim = tiny(&["--decode-step-ms=20", "--stop-delay=0s"]).await;
    let mut socket = open(&sim).await;
    say(&mut socket, json!({"type": "session.update", "model": "tiny"})).await;
    say(&mut socket, audio(1_200_000)).await;
    say(&mut socket, json!({"type": "input_audio_buffer.commit"})).await;
    assert_eq!(event(&mut socket).await["type"], "transcription.delta");
    assert_eq!(sim.running(), 1);
    drop(socket);
    eventually("the work ends", || sim.running() == 0).await;

    let mut socket = open(&sim).await;
    sim.terminate();
    let last = timeout(PATIENCE, socket.next()).await.expect("in time").expect("a close");
    assert!(matches!(last, Ok(Message::Close(Some(frame))) if u16::from(frame.code) == 1012));
}

#[tokio::test]
async fn only_a_handshake_with_a_key_is_agreed_to() {
    let sim = tiny(&["--api-key=secret"]).await;
    let stream = TcpStream::connect(sim.addr()).await.expect("it listens");
    assert!(tokio_tungstenite::client_async("ws://sim/v1/realtime", stream).await.is_err());
    let sim = tiny(&[]).await;
    assert_eq!(ask(sim.addr(), &get("/v1/realtime")).await.code(), 404);
}
