//! Clients that send requests while a suite changes the cluster.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::task::JoinSet;

use crate::forebay::{chat, is_whole};

/// Four clients that send one request after the other; every second one is a stream.
pub struct Load {
    clients: JoinSet<()>,
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
}

impl Load {
    /// Starts the clients, with the model `llama`.
    pub fn start(gateway: SocketAddr) -> Self {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = JoinSet::new();
        for n in 0..4 {
            let (stop, served) = (Arc::clone(&stop), Arc::clone(&served));
            clients.spawn(async move {
                for turn in n.. {
                    let stream = turn % 2 == 0;
                    let answer = chat(gateway, "llama", stream, 20).await;
                    assert!(is_whole(&answer, stream), "not whole: {answer}");
                    served.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        Self { clients, stop, served }
    }

    /// The number of whole answers so far.
    pub fn served(&self) -> usize {
        self.served.load(Ordering::Relaxed)
    }

    /// Stops the clients. Returns the number of answers, all of which were whole.
    pub async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(client) = self.clients.join_next().await {
            client.unwrap_or_else(|error| panic!("{error}"));
        }
        self.served()
    }
}
