//! A client that sends as much as it can: it fills its share of the memory and no more.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::sims::Folder;
use crate::support::{Forebay, PATIENCE, eventually, status};

const MIB: usize = 1 << 20;
/// MiB for requests, and MiB for the rest of the process.
const BODIES: usize = 256;
const REST: usize = 128;

fn gateway(folder: &Folder, fields: &str) -> Forebay {
    folder.gateway(&format!(
        "gateway: {{listen: '127.0.0.1:0', limits: {{bodiesSize: {BODIES}Mi}}{fields}}}\n\
         admin: {{listen: '127.0.0.1:0'}}\n\
         pools:\n- {{name: p, models: [sim], endpoints: ['127.0.0.1:9']}}\n"
    ))
}

/// The largest memory of the process so far, in MiB.
fn peak_memory(forebay: &Forebay) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", forebay.pid())).expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a figure");
    line.trim().trim_end_matches("kB").trim().parse::<usize>().expect("kB") / 1024
}

async fn from(source: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((source, 0).into()).expect("an address of this machine");
    socket.connect(to).await.expect("it listens")
}

/// Begins a body of 31 MiB that never ends, by length or in chunks. Returns the open connection, or
/// the status of an answer that comes at once.
async fn unfinished(mut stream: TcpStream, head: String, chunked: bool) -> Result<TcpStream, u16> {
    let framing = if chunked {
        "transfer-encoding: chunked".to_owned()
    } else {
        format!("content-length: {}", 31 * MIB)
    };
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{head}{framing}\r\n\r\n"
    );
    let piece = [format!("{MIB:x}\r\n").into_bytes(), vec![b' '; MIB], b"\r\n".to_vec()].concat();
    let piece = if chunked { &piece[..] } else { &piece[8..8 + MIB] };
    let mut sent = stream.write_all(head.as_bytes()).await;
    for _ in 0..30 {
        if sent.is_ok() {
            sent = stream.write_all(piece).await;
        }
    }
    let mut answer = [0; 512];
    match timeout(std::time::Duration::from_secs(2), stream.read(&mut answer)).await {
        Err(_) => Ok(stream),
        Ok(Ok(read)) => Err(status(&String::from_utf8_lossy(&answer[..read]))),
        Ok(Err(_)) => Err(0),
    }
}

/// Sends a whole body of 20 MiB, which is not JSON, and returns the status: 400 if there was room
/// to read it.
async fn whole(mut stream: TcpStream, head: &str) -> u16 {
    let body = vec![b' '; 20 * MIB];
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n{head}\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.write_all(&body).await;
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    status(&String::from_utf8_lossy(&answer))
}

/// Sends 90 bodies of `attacker`, then one of each other client, and checks memory and answers.
async fn attack(
    forebay: &Forebay,
    attacker: ([u8; 4], &str),
    others: &[([u8; 4], &str)],
    chunked: bool,
) {
    let to = forebay.address;
    let mut clients = JoinSet::new();
    for _ in 0..90 {
        let (source, head) = (attacker.0, attacker.1.to_owned());
        clients.spawn(async move { unfinished(from(source, to).await, head, chunked).await });
    }
    let ended = clients.join_all().await;
    let held = ended.iter().filter(|client| client.is_ok()).count();
    // One client may have half of the memory: at most four bodies.
    assert!((2..=4).contains(&held), "{held} bodies are held");
    // A client that is still sending may see a reset instead of its answer.
    let refused: Vec<_> = ended.iter().filter_map(|client| client.as_ref().err()).collect();
    assert!(refused.iter().all(|status| matches!(status, 0 | 429)), "{refused:?}");
    for (source, head) in others {
        assert_eq!(whole(from(*source, to).await, head).await, 400, "{source:?} {head}");
    }
    let peak = peak_memory(forebay);
    assert!(peak < BODIES + REST, "{peak} MiB");
    drop(ended);
    eventually("the attacker's share is free again", || {
        let again = async { whole(from(attacker.0, to).await, attacker.1).await };
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(again)) == 400
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_the_memory_of_the_others() {
    let folder = Folder::new();
    let forebay = gateway(&folder, "");
    let others = [([127, 0, 0, 2], ""), ([127, 0, 0, 3], "")];
    attack(&forebay, ([127, 0, 0, 1], ""), &others, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_cannot_take_the_memory_of_the_others_in_chunks() {
    let folder = Folder::new();
    let forebay = gateway(&folder, "");
    attack(&forebay, ([127, 0, 0, 1], ""), &[([127, 0, 0, 2], "")], true).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_each_client_has_its_own_share() {
    let folder = Folder::new();
    let forebay = gateway(&folder, ", trustedProxies: [127.0.0.1]");
    let proxy = [127, 0, 0, 1];
    let one = "x-forwarded-for: 203.0.113.1\r\n";
    let others = [(proxy, "x-forwarded-for: 203.0.113.2\r\n")];
    attack(&forebay, (proxy, one), &others, false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_is_only_claimed_takes_no_memory() {
    let folder = Folder::new();
    let forebay = gateway(&folder, "");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{{",
        31 * MIB
    );
    let mut held = Vec::new();
    for _ in 0..500 {
        let mut stream = TcpStream::connect(forebay.address).await.expect("it listens");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(head.as_bytes()).await.expect("sent");
        held.push(stream);
    }
    // A second piece, for which the gateway makes room.
    for stream in &mut held {
        stream.write_all(b" ").await.expect("sent");
    }
    assert_eq!(whole(from([127, 0, 0, 1], forebay.address).await, "").await, 400);
    assert!(peak_memory(&forebay) < REST, "{} MiB", peak_memory(&forebay));
}
