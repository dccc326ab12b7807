//! The new process: it takes over from the one that started it.

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

/// The way to the old process, before there is a runtime.
pub(crate) struct Inherited(UnixStream);

impl Inherited {
    /// Takes it from standard input, where nothing is left of it for this process's children.
    pub(crate) fn take() -> io::Result<Self> {
        let channel = io::stdin().as_fd().try_clone_to_owned()?;
        rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
        Ok(Self(channel.into()))
    }

    /// Says why this process can't take over.
    pub(crate) fn fail(&self, error: &anyhow::Error) {
        // Whoever is not there any more does not need to know.
        let _ = channel::send_last(&self.0, &Message::Failed(format!("{error:#}")));
    }

    /// Takes the sockets in. Must be called within a runtime.
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
        let same = |(its, _): &mut (Place, TcpListener)| *its == place;
        self.sockets.extract_if(.., same).map(|(_, socket)| socket).collect()
    }

    /// The one socket of such a role.
    pub(crate) fn socket(&mut self, role: Role, configured: SocketAddr) -> Option<TcpListener> {
        self.sockets(role, configured).pop()
    }

    /// Says that this process is ready, and takes in what the old one lets go of.
    pub(crate) async fn succeed(&mut self) -> anyhow::Result<(Handover, Busy)> {
        self.channel.send(&Message::Ready, None).await.context(LOST)?;
        let mut replicas = Vec::new();
        loop {
            match self.channel.receive().await.context(LOST)? {
                Some((Message::Replica(facts), tether)) => {
                    replicas.push(PassedReplica { facts: *facts, tether });
                }
                Some((Message::TakeOver { known, busy }, _)) => {
                    return Ok((Handover { known: *known, replicas }, busy));
                }
                Some((message, _)) => bail!("the old process sent {message:?} out of turn"),
                None => bail!(LOST),
            }
        }
    }

    /// Says that this process serves, and follows the old one to its end: `report` gets what it
    /// still has to finish. `stop` asks it to end; `gone` is cancelled when it has.
    pub(crate) async fn follow(
        mut self,
        report: impl Fn(Busy),
        stop: CancellationToken,
        gone: CancellationToken,
    ) {
        let _gone = gone.drop_guard();
        let process = self.process;
        // Sockets that have no place here any more.
        self.sockets.clear();
        // Should this fail, it has ended, which is noticed below.
        let _ = self.channel.send(&Message::Taken, None).await;
        tracing::info!("took over from process {process}, which finishes what it has");
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
