//! A WebSocket session of `/v1/realtime`: audio in, a transcription out.
//!
//! Pieces of audio wait until the client commits. From then on each is a request to the engine, one after
//! the other, and its tokens go to the client as they come. When the session ends, the engine's work on it
//! is dropped.

use crate::sim::api::fault::Fault;
use crate::sim::api::realtime::{self, Complaint, Order};
use crate::sim::engine::{Output, SeqEvent, Ticket};
use crate::sim::shared::Shared;
use crate::sim::text::{Cursor, Script};
use futures_util::{SinkExt, StreamExt};
use hyper::header::{self, HeaderMap};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role};

/// The key of a WebSocket handshake; `None` if the head is not that of one.
pub(crate) fn key(headers: &HeaderMap) -> Option<&str> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let websocket = text(header::UPGRADE)?.eq_ignore_ascii_case("websocket");
    text(header::SEC_WEBSOCKET_KEY).filter(|_| websocket)
}

/// Serves a session until its client leaves or the server closes. `read`: bytes that came with the head.
pub(crate) async fn serve(
    shared: &Arc<Shared>,
    stream: TcpStream,
    read: Vec<u8>,
    mut closing: watch::Receiver<bool>,
) {
    let mut socket = WebSocketStream::from_partially_read(stream, read, Role::Server, None).await;
    let mut session = Session::new(Arc::clone(shared));
    let mut events = VecDeque::from([realtime::created()]);
    loop {
        while let Some(event) = events.pop_front() {
            if socket.send(Message::text(event)).await.is_err() {
                return;
            }
        }
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => events.extend(session.take(&text)),
                // The socket answers pings and a close by itself.
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            output = session.next() => events.extend(session.advance(output)),
            () = closed(&mut closing) => {
                let code = CloseCode::Restart;
                let _ = socket.close(Some(CloseFrame { code, reason: "".into() })).await;
                return;
            }
        }
    }
}

/// Returns once the server closes.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that the server is gone already.
    let _ = closing.wait_for(|closing| *closing).await;
}

struct Session {
    shared: Arc<Shared>,
    model: Option<String>,
    /// Audio that waits; `None` is the end of a transcription.
    audio: VecDeque<Option<Vec<u8>>>,
    transcription: Option<Transcription>,
}

/// A transcription that has begun.
#[derive(Default)]
struct Transcription {
    text: String,
    prompt_tokens: u32,
    tokens: u32,
    running: Option<RunningPiece>,
}

/// The engine's work on one piece of audio.
struct RunningPiece {
    script: Script,
    cursor: Cursor,
    output: mpsc::Receiver<Output>,
    _ticket: Ticket,
}

impl Session {
    fn new(shared: Arc<Shared>) -> Self {
        Self { shared, model: None, audio: VecDeque::new(), transcription: None }
    }

    /// Follows a client's event. Returns the event for the client, if there is one.
    fn take(&mut self, text: &str) -> Option<String> {
        let order = match Order::read(text) {
            Ok(order) => order,
            Err(complaint) => return Some(complaint.event()),
        };
        match order {
            Order::Model(model) => match self.shared.resolve(Some(&model)) {
                Ok(_) => self.model = Some(model),
                Err(fault) => return Some(Complaint::of(&fault, "model_not_found").event()),
            },
            Order::Audio(audio) => self.audio.push_back(Some(audio)),
            Order::Begin | Order::End if self.model.is_none() => {
                return Some(Complaint::no_model().event());
            }
            Order::Begin => {
                self.transcription.get_or_insert_default();
            }
            Order::End => self.audio.push_back(None),
        }
        self.go_on()
    }

    /// The engine's next output; waits for ever if nothing runs.
    async fn next(&mut self) -> Option<Output> {
        match self.transcription.as_mut().and_then(|begun| begun.running.as_mut()) {
            Some(running) => running.output.recv().await,
            None => std::future::pending().await,
        }
    }

    /// Takes an output of the engine. Returns the events for the client.
    fn advance(&mut self, output: Option<Output>) -> Vec<String> {
        let Some(begun) = &mut self.transcription else { return Vec::new() };
        let Some(running) = &mut begun.running else { return Vec::new() };
        let Some(SeqEvent::Token { last }) = output.map(|output| output.event) else {
            self.transcription = None;
            let fault = Fault::engine_dead();
            return vec![Complaint::of(&fault, "processing_error").event()];
        };
        let piece = running.cursor.next(&running.script);
        begun.text.push_str(&piece);
        begun.tokens += 1;
        let delta = realtime::delta(&piece);
        if last {
            begun.running = None;
        }
        std::iter::once(delta).chain(self.go_on()).collect()
    }

    /// Begins with the next piece of audio, or ends the transcription.
    fn go_on(&mut self) -> Option<String> {
        let begun = self.transcription.as_mut().filter(|begun| begun.running.is_none())?;
        let Some(audio) = self.audio.pop_front()? else {
            let Transcription { text, prompt_tokens, tokens, .. } = self.transcription.take()?;
            self.audio.clear();
            return Some(realtime::done(&text, prompt_tokens, tokens));
        };
        let model = self.model.as_deref().unwrap_or_default();
        let planned = realtime::plan(&self.shared, model, &audio).and_then(|mut plan| {
            let jobs = plan.jobs(&self.shared);
            let submitted = self.shared.engine.submit(jobs, 1, plan.lora.as_deref());
            let (ticket, output) = submitted.map_err(Fault::refused)?;
            Ok((plan.prompt_tokens(), plan.scripts.remove(0), ticket, output))
        });
        match planned {
            Ok((prompt_tokens, script, ticket, output)) => {
                // As vLLM counts: the prompt before the first token.
                if begun.prompt_tokens == 0 {
                    begun.prompt_tokens = prompt_tokens;
                }
                let cursor = Cursor::of(&script);
                begun.running = Some(RunningPiece { script, cursor, output, _ticket: ticket });
                None
            }
            Err(fault) => {
                self.transcription = None;
                Some(Complaint::of(&fault, "processing_error").event())
            }
        }
    }
}
