//! The new process: takes over from the one that started it.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use forebay_gateway::Busy;
use forebay_scaler::Handover;
use forebay_scaler::act::targets::processes::PassedReplica;
use tokio_util::sync::CancellationToken;

use super::channel::{self, Channel};
use super::{Message, Place, Role};

/// The channel to the old process, before there is a runtime.
pub(crate) struct Inherited(UnixStream);

impl Inherited {
    /// Takes the channel from standard input, and puts /dev/null there, so that this process's children
    /// don't inherit it.
    pub(crate) fn take() -> io::Result<Self> {
        let channel = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Self(channel.into()))
    }

    /// Reports why this process can't take over.
    pub(crate) fn fail(&self, error: &anyhow::Error) {
        // A process that has ended needs no answer.
        let _ = channel::send_last(&self.0, &Message::Failed(format!("{error:#}")));
    }

    /// Receives the sockets. Must be called within a runtime.
    pub(crate) async fn meet(&self) -> anyhow::Result<Predecessor> {
        let stream = self.0.try_clone();
        let mut channel = stream.and_then(Channel::new).context(
            "--take-over is for `forebay upgrade`, which starts a process with a socket as its \
             standard input",
        )?;
        let mut sockets = Vec::new();
        loop {
            match channel.receive().await.context(LOST)? {
                Some((Message::Socket(place), Some(socket))) => {
                    sockets.push((place, TcpListener::from(socket)));
                }
                Some((Message::Start { process }, _)) => {
                    return Ok(Predecessor { channel, sockets, process });
                }
                Some((message, _)) => bail!("the old process sent {message:?} before its sockets"),
                None => bail!(LOST),
            }
        }
    }
}

const LOST: &str = "the process to take over from is gone";

/// The old process, while it still serves.
pub(crate) struct Predecessor {
    channel: Channel,
    sockets: Vec<(Place, TcpListener)>,
    process: u32,
}

impl Predecessor {
    /// The old one's sockets for this role, where it was configured to the same address.
    pub(crate) fn sockets(&mut self, role: Role, configured: SocketAddr) -> Vec<TcpListener> {
        let place = Place { role, configured };
        let same = |(known, _): &mut (Place, TcpListener)| *known == place;
        self.sockets.extract_if(.., same).map(|(_, socket)| socket).collect()
    }

    /// The one socket of such a role.
    pub(crate) fn socket(&mut self, role: Role, configured: SocketAddr) -> Option<TcpListener> {
        self.sockets(role, configured).pop()
    }

    /// Reports that this process is ready, and receives what the old one hands over.
    pub(crate) async fn succeed(&mut self) -> anyhow::Result<(Handover, Busy)> {
        self.channel.send(&Message::Ready, None).await.context(LOST)?;
        let mut replicas = Vec::new();
        loop {
            match self.channel.receive().await.context(LOST)? {
                Some((Message::Replica(facts), tether)) => {
                    replicas.push(PassedReplica { facts: *facts, tether });
                }
                Some((Message::TakeOver { known, busy }, _)) => {
                    return Ok((Handover { state: *known, replicas }, busy));
                }
                Some((message, _)) => bail!("the old process sent {message:?} out of turn"),
                None => bail!(LOST),
            }
        }
    }

    /// Reports that this process serves, and follows the old one to its end: `report` gets its
    /// remaining requests. `stop` asks it to end; `gone` is cancelled when it has.
    pub(crate) async fn follow(
        mut self,
        report: impl Fn(Busy),
        stop: CancellationToken,
        gone: CancellationToken,
    ) {
        let _gone = gone.drop_guard();
        let process = self.process;
        // Sockets that this configuration does not use.
        self.sockets.clear();
        // If this fails, the old process has ended, which is noticed below.
        let _ = self.channel.send(&Message::Taken, None).await;
        tracing::info!("took over from process {process}, which finishes its requests");
        let mut stopping = false;
        loop {
            tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    let _ = self.channel.send(&Message::Stop, None).await;
                }
                heard = self.channel.receive() => match heard {
                    Ok(Some((Message::Busy(busy), _))) => report(busy),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                },
            }
        }
        report(Busy::default());
        tracing::info!("process {process}, from before the upgrade, has ended");
    }
}
