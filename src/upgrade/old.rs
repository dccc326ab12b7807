//! The old process: starts the one that takes over, and finishes its own requests.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use forebay_base::open_files;
use forebay_gateway::{Busy, Gateway};
use forebay_scaler::{Handover, Scaler};
use tokio::process::{Child, Command};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::channel::Channel;
use super::{Message, OPEN_FILES, Place, Program, Role, TAKE_OVER};

/// How long a new process that was ready may take to serve.
const TAKEN_WITHIN: Duration = Duration::from_secs(10);
/// How often the remaining requests are counted.
const LOOK: Duration = Duration::from_millis(100);

/// The parts and sockets that this process hands over.
pub(crate) struct Estate<'a> {
    pub(crate) gateway: Option<&'a Gateway>,
    pub(crate) scaler: Option<&'a Scaler>,
    /// As configured.
    pub(crate) clients: SocketAddr,
    pub(crate) admin: (SocketAddr, &'a TcpListener),
}

/// The new process, until it serves.
pub(crate) struct Candidate {
    child: Child,
    channel: Channel,
    process: u32,
    path: String,
}

/// The new process, which serves.
pub(crate) struct Successor {
    channel: Option<Channel>,
    pub(crate) process: u32,
    reported: Busy,
}

impl Candidate {
    /// Starts it.
    pub(crate) fn start(program: &Program) -> anyhow::Result<Self> {
        ensure!(
            std::process::id() != 1,
            "this process is the first of a container, which ends with it; start another container \
             with the new image instead"
        );
        let (ours, theirs) = UnixStream::pair().context("no socket pair")?;
        let path = program.path.display().to_string();
        let mut command = Command::new(&program.path);
        command.arg(TAKE_OVER);
        // The limit that this process raised is raised by the new one itself.
        if let Some(soft) = open_files::for_children() {
            command.arg(format!("{OPEN_FILES}{soft}"));
        }
        command.args(&program.arguments).stdin(Stdio::from(OwnedFd::from(theirs)));
        let child = command.spawn().with_context(|| format!("cannot start {path}"))?;
        let process = child.id().context("it has ended")?;
        tracing::info!("upgrading: {path} starts as process {process}");
        let channel = Channel::new(ours).context("no socket")?;
        Ok(Self { child, channel, process, path })
    }

    /// Sends it the sockets, and waits until it is ready.
    pub(crate) async fn prepare(
        &mut self,
        estate: &Estate<'_>,
        within: Duration,
    ) -> anyhow::Result<()> {
        let process = self.process;
        let prepared = async {
            // It may have ended; its last messages are still in the channel.
            let _ = self.send_sockets(estate).await;
            self.expect("ready", |message| matches!(message, Message::Ready)).await
        };
        match timeout(within, prepared).await {
            Ok(prepared) => prepared,
            Err(_) => bail!("process {process} was not ready within {within:?}"),
        }
    }

    async fn send_sockets(&mut self, estate: &Estate<'_>) -> io::Result<()> {
        let mut sockets = Vec::new();
        if let Some(gateway) = estate.gateway {
            let place = Place { role: Role::Clients, configured: estate.clients };
            sockets.extend(gateway.sockets()?.into_iter().map(|socket| (place, socket)));
        }
        let (configured, admin) = estate.admin;
        sockets.push((Place { role: Role::Admin, configured }, admin.try_clone()?));
        if let Some((configured, socket)) = estate.scaler.and_then(Scaler::keda_socket) {
            sockets.push((Place { role: Role::Keda, configured }, socket));
        }
        for (place, socket) in sockets {
            self.channel.send(&Message::Socket(place), Some(socket.as_fd())).await?;
        }
        self.channel.send(&Message::Start { process: std::process::id() }, None).await
    }

    /// Hands over: the new process serves from then on. If that fails, this process's scaler decides
    /// again.
    pub(crate) async fn install(mut self, estate: &Estate<'_>) -> anyhow::Result<Successor> {
        let handover = match estate.scaler {
            Some(scaler) => scaler.hand_over().await.context("the scaler's loop has ended")?,
            None => Handover::default(),
        };
        let busy = estate.gateway.map(Gateway::busy).unwrap_or_default();
        let taken = async {
            let _ = self.send(&handover, busy.clone()).await;
            self.expect("serving", |message| matches!(message, Message::Taken)).await
        };
        let taken = match timeout(TAKEN_WITHIN, taken).await {
            Ok(taken) => taken,
            Err(_) => Err(anyhow::anyhow!("it did not serve within {TAKEN_WITHIN:?}")),
        };
        if let Err(error) = taken {
            // First the new process ends, so that two never decide at once.
            self.end().await;
            if let Some(scaler) = estate.scaler {
                scaler.take_over(handover, CancellationToken::new()).await;
            }
            return Err(error);
        }
        Ok(Successor { channel: Some(self.channel), process: self.process, reported: busy })
    }

    async fn send(&mut self, handover: &Handover, busy: Busy) -> io::Result<()> {
        for replica in &handover.replicas {
            let tether = replica.tether.as_ref().map(|tether| tether.as_fd());
            let facts = Box::new(replica.facts.clone());
            self.channel.send(&Message::Replica(facts), tether).await?;
        }
        let known = Box::new(handover.state.clone());
        self.channel.send(&Message::TakeOver { known, busy }, None).await
    }

    /// Waits for its next message.
    async fn expect(
        &mut self,
        what: &str,
        expected: impl Fn(&Message) -> bool,
    ) -> anyhow::Result<()> {
        match self.channel.receive().await {
            Ok(Some((message, _))) if expected(&message) => Ok(()),
            Ok(Some((Message::Failed(why), _))) => bail!("{}: {why}", self.path),
            Ok(Some((message, _))) => bail!("{} sent {message:?} instead of {what}", self.path),
            Ok(None) => {
                let status = self.child.wait().await.context("its exit status")?;
                bail!("{} ended before it was {what}: {status}; see its output", self.path)
            }
            Err(error) => Err(error).context("cannot read its message"),
        }
    }

    /// Ends it.
    pub(crate) async fn end(&mut self) {
        if let Err(error) = self.child.kill().await {
            tracing::warn!("process {} can't be ended: {error}", self.process);
        }
    }
}

impl Successor {
    /// Reports what this process still has to finish, for as long as it is polled; returns when the
    /// new process wants it to stop.
    pub(crate) async fn report(&mut self, busy: impl Fn() -> Busy) {
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while let Some(channel) = &mut self.channel {
            tokio::select! {
                heard = channel.receive() => match heard {
                    Ok(Some((Message::Stop, _))) => return,
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => {
                        tracing::warn!("process {} has ended; this one does too", self.process);
                        self.channel = None;
                    }
                },
                _ = looks.tick() => {
                    let now = busy();
                    if now != self.reported {
                        // A new process that reads nothing must not keep this one from ending.
                        let message = Message::Busy(now.clone());
                        let sent = timeout_at(Instant::now() + LOOK, channel.send(&message, None));
                        if !matches!(sent.await, Ok(Ok(()))) {
                            self.channel = None;
                        }
                        self.reported = now;
                    }
                }
            }
        }
        std::future::pending().await
    }
}
