//! Messages with descriptors between two processes: a line of JSON each, over a socket pair.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::UnixStream;

use super::Message;

/// Bytes that are read at once.
const CHUNK: usize = 16 << 10;

/// One process's end.
pub(super) struct Channel {
    stream: UnixStream,
    read: Vec<u8>,
    /// Descriptors that have come, in the order of their messages.
    descriptors: VecDeque<OwnedFd>,
}

#[derive(Serialize)]
struct Sent<'a> {
    message: &'a Message,
    descriptor: bool,
}

#[derive(Deserialize)]
struct Received {
    message: Message,
    descriptor: bool,
}

impl Channel {
    /// Must be called within a runtime.
    pub(super) fn new(stream: StdStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = UnixStream::from_std(stream)?;
        Ok(Self { stream, read: Vec::new(), descriptors: VecDeque::new() })
    }

    /// Sends a message, with a copy of a descriptor where it needs one.
    pub(super) async fn send(
        &mut self,
        message: &Message,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let line = line(message, descriptor.is_some())?;
        let sent = match descriptor {
            Some(descriptor) => {
                let send = || Ok(send(&self.stream, &line, descriptor)?);
                self.stream.async_io(Interest::WRITABLE, send).await?
            }
            None => 0,
        };
        self.stream.write_all(&line[sent..]).await
    }

    /// The next message; `None` when the other process has ended. Cancel-safe.
    pub(super) async fn receive(&mut self) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                let Received { message, descriptor } = serde_json::from_slice(&line)?;
                let descriptor = descriptor.then(|| {
                    let missing = || io::Error::other("a message came without its descriptor");
                    self.descriptors.pop_front().ok_or_else(missing)
                });
                return Ok(Some((message, descriptor.transpose()?)));
            }
            let Self { stream, read, descriptors } = self;
            let receive = || receive(stream, read, descriptors);
            match stream.async_io(Interest::READABLE, receive).await {
                Ok(0) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
    }
}

/// Sends a message without a runtime, just before this process ends.
pub(super) fn send_last(mut stream: &StdStream, message: &Message) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    io::Write::write_all(&mut stream, &line(message, false)?)
}

fn line(message: &Message, descriptor: bool) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(&Sent { message, descriptor })?;
    line.push(b'\n');
    Ok(line)
}

fn send(stream: &UnixStream, line: &[u8], descriptor: BorrowedFd<'_>) -> rustix::io::Result<usize> {
    let descriptors = [descriptor];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fits = control.push(SendAncillaryMessage::ScmRights(&descriptors));
    debug_assert!(fits, "there is room for one");
    sendmsg(stream, &[IoSlice::new(line)], &mut control, SendFlags::NOSIGNAL)
}

/// Reads once. The kernel ends a read after a descriptor, so room for one is enough.
fn receive(
    stream: &UnixStream,
    read: &mut Vec<u8>,
    descriptors: &mut VecDeque<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; CHUNK];
    let received =
        recvmsg(stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(came) = message {
            descriptors.extend(came);
        }
    }
    read.extend_from_slice(&bytes[..received.bytes]);
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::upgrade::{Place, Role};

    fn pair() -> (Channel, Channel) {
        let (one, other) = StdStream::pair().expect("a pair");
        (Channel::new(one).expect("an end"), Channel::new(other).expect("an end"))
    }

    #[tokio::test]
    async fn each_message_keeps_its_own_descriptor_however_many_there_are() {
        let (mut sender, mut receiver) = pair();
        let listeners: Vec<_> =
            (0..100).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
        let wanted: Vec<_> =
            listeners.iter().map(|listener| listener.local_addr().expect("bound")).collect();
        let send = async {
            for (listener, configured) in listeners.iter().zip(&wanted) {
                let place = Place { role: Role::Clients, configured: *configured };
                let socket = Some(listener.as_fd());
                sender.send(&Message::Socket(place), socket).await.expect("sent");
                sender.send(&Message::Busy(Default::default()), None).await.expect("sent");
            }
            drop(sender);
        };
        let receive = async {
            let mut came = Vec::new();
            while let Some((message, descriptor)) = receiver.receive().await.expect("whole") {
                match (message, descriptor) {
                    (Message::Socket(place), Some(socket)) => came.push((place.configured, socket)),
                    (Message::Busy(_), None) => {}
                    other => panic!("{other:?}"),
                }
            }
            came
        };
        let ((), came) = tokio::join!(send, receive);
        drop(listeners);
        assert_eq!(came.len(), 100);
        for ((configured, socket), wanted) in came.into_iter().zip(wanted) {
            let socket = TcpListener::from(socket);
            assert_eq!((configured, socket.local_addr().expect("bound")), (wanted, wanted));
            TcpStream::connect(wanted).expect("it listens on");
        }
    }

    #[tokio::test]
    async fn a_message_larger_than_the_socket_holds_comes_whole() {
        let (mut sender, mut receiver) = pair();
        let long = "x".repeat(3 << 20);
        let message = Message::Failed(long.clone());
        let send = async move { sender.send(&message, None).await };
        let (sent, came) = tokio::join!(send, receiver.receive());
        sent.expect("sent");
        assert!(matches!(came, Ok(Some((Message::Failed(why), None))) if why == long));
        assert!(matches!(receiver.receive().await, Ok(None)), "the other end is gone");
    }
}
