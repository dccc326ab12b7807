//! The client's side: a thread a core, each with its own runtime and socket.
//!
//! Every thread owns an `SO_REUSEPORT` socket of the same address, so that no connection is handed
//! between cores. The first is bound without it, once: a taken port is an error and not a silent
//! share. pingora accepts, hyper speaks HTTP.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::Stream;
use pingora_core::server::{Fds, ShutdownWatch};
use pingora_core::services::Service as _;
use pingora_core::services::listening::Service;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;

use crate::context::Client;
use crate::proxy::Proxy;
use crate::socket::ClientSocket;

/// The threads that serve clients.
pub(crate) struct Listeners {
    pub(crate) address: SocketAddr,
    stop_accepting: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Binds and begins to serve.
    pub(crate) fn start(
        address: SocketAddr,
        threads: usize,
        proxy: Arc<Proxy>,
    ) -> io::Result<Self> {
        let patience = proxy.limits.write_timeout;
        let probe = bind(address, None)?;
        let address = probe.local_addr()?;
        drop(probe);
        let sockets: Vec<_> =
            (0..threads).map(|_| bind(address, Some(patience))).collect::<io::Result<_>>()?;
        let (stop_accepting, accepting) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let threads = sockets
            .into_iter()
            .enumerate()
            .map(|(i, socket)| {
                let (proxy, accepting, stopped) =
                    (Arc::clone(&proxy), accepting.clone(), stopped.clone());
                std::thread::Builder::new()
                    .name(format!("gateway-{i}"))
                    .spawn(move || serve(socket, address, proxy, accepting, stopped))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { address, stop_accepting, stop, threads })
    }

    /// Closes the sockets; connections go on.
    pub(crate) fn stop_accepting(&self) {
        let _ = self.stop_accepting.send(true);
    }

    /// Ends the threads, and with them whatever connections are left.
    pub(crate) fn stop(self) {
        let _ = self.stop.send(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a gateway thread panicked");
            }
        }
    }
}

/// Without `patience`: alone, and not yet listening.
///
/// With it: shared, and a client that takes nothing for so long is cut off by the kernel, whose
/// accepted sockets inherit the option. The server does not poll an answer while its client's socket
/// is full, so no timer of the answer's own would ring.
fn bind(address: SocketAddr, patience: Option<Duration>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(patience.is_some())?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if patience.is_some() {
        socket.set_tcp_user_timeout(patience)?;
        socket.listen(4096)?;
    }
    Ok(socket.into())
}

fn serve(
    socket: TcpListener,
    address: SocketAddr,
    proxy: Arc<Proxy>,
    accepting: watch::Receiver<bool>,
    mut stopped: watch::Receiver<bool>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("no runtime for a gateway thread: {error}");
            return;
        }
    };
    runtime.block_on(async move {
        let mut fds = Fds::new();
        fds.add(address.to_string(), socket.into_raw_fd());
        let mut service = Service::new("gateway".to_owned(), App { proxy });
        // hyper buffers by itself; twice costs memory for each held request.
        let listener =
            ListenerConfig::tcp(address.to_string()).l4_buffer(L4BufferSettings::unbuffered());
        service.endpoints().add_listener(listener);
        // Returns when accepting stops; connections are tasks of this runtime.
        service.start_service(Some(Arc::new(Mutex::new(fds))), accepting, 1).await;
        let _ = stopped.wait_for(|stopped| *stopped).await;
    });
}

struct App {
    proxy: Arc<Proxy>,
}

#[async_trait]
impl ServerApp for App {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        let digest = stream.get_socket_digest();
        let address = digest.and_then(|digest| digest.peer_addr()?.as_inet().copied());
        let client = Client { socket: ClientSocket::new(stream.id()), address };
        // A drain waits for connections, not only requests: the last bytes are still to be written.
        let _counted = self.proxy.drain.count();
        let proxy = Arc::clone(&self.proxy);
        let limits = &proxy.limits;
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size((limits.header_size.bytes() as usize).max(8192));
        let service = service_fn(|request| {
            let proxy = &proxy;
            async move { Ok::<_, std::convert::Infallible>(proxy.serve(request, client).await) }
        });
        let connection = builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            () = proxy.drain.begun() => {
                // The request under way is answered, the connection then closed.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!("connection: {error}");
        }
        None
    }
}
