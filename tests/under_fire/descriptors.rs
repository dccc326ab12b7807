//! Few open files: the gateway copes, and no replica gets the blame.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::sims::{Folder, Sim};
use crate::support::{Forebay, PATIENCE, chat, connect, eventually, get, status};

const LOG: &str = "info,forebay_gateway=debug";
const CLIENTS: usize = 1_500;

/// Raises the limit of this process, whose clients need open files as well.
fn raise_own_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    assert!(hard >= 4096, "the test needs 4096 open files, the hard limit is {hard}");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("raised");
}

/// The statuses of `count` chats at once, each on a connection of its own.
async fn chats(address: SocketAddr, count: usize) -> Vec<u16> {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.write_all(&chat(false, 1)).await.expect("sent");
            let mut answer = Vec::new();
            let read = timeout(PATIENCE * 3, stream.read_to_end(&mut answer)).await;
            read.expect("an end in time").expect("no reset");
            status(&String::from_utf8_lossy(&answer))
        });
    }
    clients.join_all().await
}

/// Starts Forebay after this command of a shell, and checks that all clients get an answer from
/// zero replicas.
fn all_are_answered(setup: &str) -> Forebay {
    raise_own_limit();
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let flags = ["--cold-start", "4s", "--max-replicas", "2", "--idle", "10m"];
    let forebay = Forebay::in_shell(setup, &[&arguments[..], &flags].concat(), LOG);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let address = forebay.address;
    let statuses = runtime.expect("a runtime").block_on(chats(address, CLIENTS));
    let answered = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(answered, CLIENTS, "{statuses:?}");
    forebay
}

/// Sets a running process's soft limit.
fn limit(pid: u32, files: usize) {
    let (pid, limit) = (pid.to_string(), format!("--nofile={files}:"));
    let status = Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(status.expect("prlimit runs").success());
}

/// Checks that no failure of a replica is counted or logged.
fn no_replica_is_blamed(forebay: &mut Forebay) {
    let failures = get(forebay.admin, "/metrics");
    let failed = failures
        .lines()
        .filter(|line| line.starts_with("forebay_failures_total") && !line.ends_with(" 0"));
    assert_eq!(failed.collect::<Vec<_>>(), Vec::<&str>::new());
    let blamed = |line: &&String| line.contains("is out:") || line.contains("failed a request");
    let log = forebay.logged();
    assert_eq!(log.iter().find(blamed), None);
}

#[test]
fn clients_beyond_the_soft_limit_are_all_answered_if_the_hard_limit_allows_them() {
    let mut forebay = all_are_answered("ulimit -Sn 1024");
    no_replica_is_blamed(&mut forebay);
    let raised = |line: &String| line.contains("limit on open files: raised from 1024 to");
    assert!(forebay.logged().iter().any(raised));
    assert_eq!(forebay.metric("forebay_shortages_total"), None);
}

#[test]
fn clients_beyond_the_hard_limit_wait_to_be_accepted_and_are_all_answered() {
    let mut forebay = all_are_answered("ulimit -n 1024");
    no_replica_is_blamed(&mut forebay);
    let logged = |text: &str| forebay.log.iter().any(|line| line.contains(text));
    assert!(logged("gateway.limits.connections: 65536 is more than is possible here; it is 448"));
    assert!(logged("short of open files") && logged("raise the hard limit on open files"));
    let counted = forebay.metric("forebay_shortages_total{resource=\"files\"}");
    assert!(counted.is_some_and(|times| times > 0.0), "{counted:?}");
}

#[test]
fn idle_connections_keep_neither_clients_nor_operators_out() {
    raise_own_limit();
    let sim = Sim::start(&[]);
    let folder = Folder::new();
    let config = format!(
        "gateway: {{listen: '127.0.0.1:0'}}\nadmin: {{listen: '127.0.0.1:0'}}\n\
         pools:\n- {{name: p, models: [sim], endpoints: ['{}']}}\n",
        sim.address
    );
    let file = folder.write("config.yaml", &config);
    let arguments = ["gateway", "--config", &file];
    let mut forebay = Forebay::in_shell("ulimit -n 256", &arguments, LOG);
    let kept_alive = {
        let mut client = connect(forebay.address);
        let request = String::from_utf8(chat(false, 1)).expect("text");
        client.write_all(request.replace("connection: close\r\n", "").as_bytes()).expect("sent");
        let mut start = [0; 12];
        client.read_exact(&mut start).expect("an answer");
        assert_eq!(&start, b"HTTP/1.1 200");
        client
    };
    let idle: Vec<_> = (0..200).map(|_| connect(forebay.address)).collect();
    eventually("some make room", || {
        forebay.metric("forebay_closed_for_room_total").is_some_and(|count| count > 0.0)
    });
    let answer = crate::support::exchange(forebay.address, &chat(false, 1));
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(status(&get(forebay.admin, "/healthz")), 200);
    no_replica_is_blamed(&mut forebay);
    drop((idle, kept_alive));
}

#[test]
fn requests_wait_while_no_file_can_be_opened_and_the_replica_stays_ready() {
    let sim = Sim::start(&[]);
    let folder = Folder::new();
    let mut forebay = folder.gateway(&format!(
        "gateway: {{listen: '127.0.0.1:0'}}\nadmin: {{listen: '127.0.0.1:0'}}\n\
         pools:\n- {{name: p, models: [sim], endpoints: ['{}']}}\n",
        sim.address
    ));
    let ready = "forebay_endpoints{pool=\"p\",health=\"ready\"}";
    eventually("the replica is ready", || forebay.metric(ready) == Some(1.0));
    let mut client = connect(forebay.address);
    eventually("the connection is accepted", || forebay.metric("forebay_connections") == Some(1.0));
    // A connection of an operator that is accepted too.
    let operator = connect(forebay.admin);
    assert_eq!(shortages(&operator), 0.0);
    // Fewer files than are open, so that no further one can be opened.
    limit(forebay.pid(), 8);
    client.write_all(&chat(false, 1)).expect("sent");
    forebay.wait_for("short of open files");
    eventually("probes and tries meet the shortage", || shortages(&operator) >= 5.0);
    limit(forebay.pid(), 1024);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(forebay.metric(ready), Some(1.0));
    no_replica_is_blamed(&mut forebay);
}

/// The shortages of open files so far, read over a connection that is open already.
fn shortages(mut operator: &std::net::TcpStream) -> f64 {
    operator.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n").expect("sent");
    let mut answer = BufReader::new(operator);
    let (mut line, mut length) = (String::new(), None);
    while answer.read_line(&mut line).expect("a head") > 2 {
        let header = line.to_ascii_lowercase();
        length = length.or(header.strip_prefix("content-length: ").map(str::to_owned));
        line.clear();
    }
    let length = length.and_then(|length| length.trim().parse().ok()).expect("a length");
    let mut body = vec![0; length];
    answer.read_exact(&mut body).expect("a whole answer");
    let body = String::from_utf8(body).expect("text");
    let series = "forebay_shortages_total{resource=\"files\"} ";
    let value = body.lines().find_map(|line| line.strip_prefix(series));
    value.map_or(0.0, |value| value.parse().expect("a number"))
}

#[test]
fn a_request_that_waited_too_long_for_a_file_gets_the_gateways_own_error() {
    let sim = Sim::start(&[]);
    let folder = Folder::new();
    let mut forebay = folder.gateway(&format!(
        "gateway: {{listen: '127.0.0.1:0'}}\nadmin: {{listen: '127.0.0.1:0'}}\n\
         pools:\n- {{name: p, models: [sim], endpoints: ['{}'], upstream: {{requestTimeout: 2s}}}}\n",
        sim.address
    ));
    let ready = "forebay_endpoints{pool=\"p\",health=\"ready\"}";
    eventually("the replica is ready", || forebay.metric(ready) == Some(1.0));
    let mut client = connect(forebay.address);
    eventually("the connection is accepted", || forebay.metric("forebay_connections") == Some(1.0));
    limit(forebay.pid(), 8);
    client.write_all(&chat(false, 1)).expect("sent");
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("an answer");
    assert_eq!(status(&answer), 503, "{answer}");
    assert!(answer.contains("The gateway itself is short of open files"), "{answer}");
    assert!(answer.contains("\r\nretry-after: "), "{answer}");
    forebay.wait_for("\"reason\":\"shortage\"");
    let blamed = |line: &&String| line.contains("is out:") || line.contains("failed a request");
    assert_eq!(forebay.logged().iter().find(blamed), None);
}

#[test]
fn replicas_get_the_limit_with_which_forebay_was_started() {
    let folder = Folder::new();
    let file = folder.0.join("limit");
    let script = format!(
        "ulimit -Sn > '{}'; exec '{}' vllm-sim --port $0 --cold-start 0",
        file.display(),
        env!("CARGO_BIN_EXE_forebay")
    );
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--model", "sim"];
    let command = ["--", "sh", "-c", &script, "{port}"];
    let arguments = [&arguments[..], &command].concat();
    let forebay = Forebay::in_shell("ulimit -Sn 512", &arguments, LOG);
    let answer = crate::support::exchange(forebay.address, &chat(false, 1));
    assert_eq!(status(&answer), 200, "{answer}");
    let limit = std::fs::read_to_string(&file).expect("written");
    assert_eq!(limit.trim(), "512");
    let own = std::fs::read_to_string(format!("/proc/{}/limits", forebay.pid())).expect("Linux");
    let own = own.lines().find(|line| line.starts_with("Max open files")).expect("a limit");
    assert!(!own.contains(" 512 "), "{own}");
}

#[test]
fn a_held_request_has_one_open_file() {
    let nowhere = TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port");
    let forebay = crate::support::gateway(&[nowhere], &["sim"], "");
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", forebay.pid())).map_or(0, |files| files.count())
    };
    let depth = || forebay.metric("forebay_queue_depth");
    let before = open();
    // With a pipelined request behind it, only the watch of a held request notices a close.
    let kept_alive = String::from_utf8(chat(false, 1)).expect("text");
    let kept_alive = kept_alive.replace("connection: close\r\n", "").repeat(2);
    let mut clients: Vec<_> = (0..101)
        .map(|_| {
            let mut client = connect(forebay.address);
            client.write_all(kept_alive.as_bytes()).expect("sent");
            client
        })
        .collect();
    eventually("all are held", || depth() == Some(101.0));
    drop(clients.pop());
    eventually("held requests watch for a close", || depth() == Some(100.0));
    let each = (open() - before) as f64 / 100.0;
    assert!(each < 1.2, "{each}");
    drop(clients);
    eventually("all have left", || depth() == Some(0.0));
}
