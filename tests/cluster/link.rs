//! A link to the first backend that answers: one address, as a Service has, and it can be cut.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Passes connections on until it is dropped.
pub struct Link {
    pub address: SocketAddr,
    whole: Arc<watch::Sender<bool>>,
    _task: JoinSet<()>,
}

impl Link {
    /// A link to the first of these backends that accepts a connection.
    pub async fn to(backends: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let whole = Arc::new(watch::Sender::new(true));
        let watched = Arc::clone(&whole);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                if *watched.borrow() {
                    connections.spawn(pass(client, backends.clone(), watched.subscribe()));
                }
            }
        });
        Self { address, whole, _task: task }
    }

    /// Ends every connection, and refuses new ones.
    pub fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn pass(mut client: TcpStream, backends: Vec<SocketAddr>, mut whole: watch::Receiver<bool>) {
    for backend in backends {
        if let Ok(mut server) = TcpStream::connect(backend).await {
            tokio::select! {
                _ = copy_bidirectional(&mut client, &mut server) => {}
                _ = whole.wait_for(|whole| !whole) => {}
            }
            return;
        }
    }
}
