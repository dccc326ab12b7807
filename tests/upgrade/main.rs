//! Another binary in the place of the running one: no client notices, and a binary that fails leaves
//! all as it was.

mod load;
#[path = "../support/mod.rs"]
mod support;

use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::Ordering;

use load::{KeptAlive, Load, assert_whole, greets_http2, short, stream};
use support::sims::Folder;
use support::{Forebay, PATIENCE, alive, chat, eventually, exchange, get, json, kill, status};

const BINARY: &str = env!("CARGO_BIN_EXE_forebay");
const LOG: &str = "info,forebay_gateway=debug";

/// `forebay upgrade`, to its end.
fn upgrade(admin: SocketAddr, flags: &[&str]) -> Output {
    let admin = admin.to_string();
    let mut command = Command::new(BINARY);
    command.args(["upgrade", "--admin", &admin]).args(flags).stdin(Stdio::null());
    command.output().expect("the binary starts")
}

/// The process that took over; ended with the test, and its replicas with it.
struct Successor(u32);

impl Successor {
    /// Of an upgrade that succeeds.
    fn of(admin: SocketAddr) -> Self {
        let output = upgrade(admin, &[]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}{error}");
        Self::named(&text)
    }

    /// By the answer: "process N serves, …".
    fn named(text: &str) -> Self {
        let rest = text.split("process ").nth(1).expect("a process");
        Self(rest.split(' ').next().expect("its number").parse().expect("a number"))
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if alive(self.0) {
            kill(self.0, "KILL");
        }
    }
}

/// The PIDs of a pool's replicas, as the scaler names them.
fn replicas(admin: SocketAddr) -> Vec<String> {
    let answer = json(&get(admin, "/replicas"));
    let mut pids = Vec::new();
    for pool in answer["pools"].as_object().expect("pools").values() {
        for replica in pool["replicas"].as_object().expect("replicas").values() {
            let reason = replica["reason"].as_str().unwrap_or_default();
            pids.extend(reason.strip_prefix("runs as process ").map(str::to_owned));
        }
    }
    pids
}

fn ready_replicas(forebay: &Forebay, count: usize) -> Vec<String> {
    let mut pids = Vec::new();
    eventually("the replicas are ready", || {
        pids = replicas(forebay.admin);
        pids.len() == count && exchange(forebay.address, &chat(false, 1)).contains(" 200 OK")
    });
    pids
}

/// The same replicas run, as soon as the new process has seen that they answer.
fn assert_same(admin: SocketAddr, before: &[String]) {
    eventually("the replicas go over as they are", || replicas(admin) == before);
}

/// A configuration with local replicas, and a pool for which KEDA asks.
fn config(threads: u32, replicas: u32) -> String {
    format!(
        "gateway: {{listen: 127.0.0.1:0, threads: {threads}}}\nadmin: {{listen: 127.0.0.1:0}}\n\
         scaler: {{keda: {{listen: 127.0.0.1:0}}}}\npools:\n- name: local\n  models: [sim]\n  \
         target:\n    processes:\n      command: [{BINARY}, vllm-sim, --host, 127.0.0.1, --port, \
         \"{{port}}\", --served-model-name, sim, --cold-start, 50ms, --decode-step-ms, \"2\"]\n  \
         scaling: {{minReplicaCount: {replicas}, maxReplicaCount: {replicas}}}\n- name: keda\n  \
         models: [other]\n  discovery: {{dns: {{host: localhost, port: 1}}}}\n  target: {{keda: \
         {{scaledObject: other}}}}\n"
    )
}

#[test]
fn no_client_notices_upgrades_under_load_whatever_the_threads() {
    let folder = Folder::new();
    let file = folder.write("config.yaml", &config(2, 2));
    let mut forebay = Forebay::start(&["run", "--config", &file], LOG);
    let line = forebay.log.iter().find_map(|line| line.split("answering KEDA on ").nth(1));
    let keda = line.and_then(|text| text.split('"').next()?.parse().ok());
    let keda: SocketAddr = keda.expect("an address");
    let (address, admin) = (forebay.address, forebay.admin);
    let before = ready_replicas(&forebay, 2);

    let load = Load::default();
    let mut threads = Vec::new();
    for _ in 0..3 {
        let mut kept = KeptAlive { address, stream: None };
        threads.push(load.run("kept alive", move || kept.ask()));
        let fresh = move || short(address, &chat(false, 2), "choices");
        threads.push(load.run("new connection", fresh));
        threads.push(load.run("stream", move || short(address, &chat(true, 60), "[DONE]")));
    }
    let scrape = b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    threads.push(load.run("scrape", move || short(admin, scrape, "forebay_")));
    threads.push(load.run("KEDA", move || greets_http2(keda)));
    load.pass(100);
    let long = stream(address, 1500);
    let mut successors = Vec::new();
    for count in [2, 1, 3] {
        folder.write("config.yaml", &config(count, 2));
        successors.push(Successor::of(admin));
        load.pass(200);
        assert_same(admin, &before);
    }
    load.done.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    assert_eq!(*load.failed.lock().expect("whole"), Vec::<String>::new());
    assert_whole(long);

    let last = successors.pop().expect("three upgrades");
    assert!(forebay.wait().success(), "it ends when its streams have");
    let ended = || successors.iter().all(|process| !alive(process.0));
    eventually("those between end", ended);
    assert_eq!(ready_replicas(&forebay, 2), before);
    assert_eq!(gateway_threads(last.0), 3);
}

fn gateway_threads(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("it runs");
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    tasks
        .flatten()
        .filter_map(|task| name(task).ok())
        .filter(|task| task.starts_with("gateway-"))
        .count()
}

#[test]
fn what_is_held_is_served_by_the_old_process_when_the_replica_is_there() {
    let mut forebay = Forebay::dev(&["--cold-start", "3s"]);
    let (address, admin) = (forebay.address, forebay.admin);
    let held = std::thread::spawn(move || exchange(address, &chat(false, 1)));
    eventually("a replica starts", || replicas(admin).len() == 1);
    let before = replicas(admin);
    let _successor = Successor::of(admin);
    let answer = held.join().expect("answered");
    assert_eq!(status(&answer), 200, "{answer}");
    assert_same(admin, &before);
    let mut cold_start = serde_json::Value::Null;
    eventually("the start is learned", || {
        cold_start = json(&get(admin, "/replicas"))["pools"]["sim"]["coldStart"].clone();
        cold_start["samples"] == 1
    });
    let seconds = cold_start["p50Seconds"].as_f64().expect("a number");
    assert!(seconds >= 3.0, "the start is counted from its beginning: {seconds}");
    assert!(forebay.wait().success());
}

#[test]
fn the_new_process_reports_the_requests_of_the_old_one_until_they_end() {
    let mut forebay = Forebay::dev(&["--cold-start", "50ms"]);
    let (address, admin) = (forebay.address, forebay.admin);
    let streams = [stream(address, 1000), stream(address, 1200)];
    let before = replicas(admin);
    let sender = || json(&get(admin, "/signals"))["sender"].clone();
    let old = sender();
    forebay.signal("QUIT");
    let _successor = Successor::named(&forebay.wait_for("upgraded: "));
    eventually("the new process answers", || sender() != old);
    let busy = || {
        let signals = forebay.signals();
        let endpoint = signals["endpoints"]
            .as_object()
            .and_then(|endpoints| endpoints.values().next().cloned());
        (signals["inFlight"].as_u64(), endpoint.and_then(|endpoint| endpoint["inFlight"].as_u64()))
    };
    let all = busy();
    streams.into_iter().for_each(assert_whole);
    assert_eq!(all, (Some(2), Some(2)), "no replica is stopped under them");
    eventually("nothing is reported any more", || busy() == (Some(0), Some(0)));
    assert_same(admin, &before);
    assert!(forebay.wait().success());
}

/// The binary at a path of its own, where it can be replaced: a link, as package managers make it.
fn installed(folder: &Folder) -> (PathBuf, String) {
    let path = folder.0.join("forebay");
    symlink(BINARY, &path).expect("linked");
    let text = path.to_str().expect("text").to_owned();
    (path, text)
}

/// Puts a script there. Written by another process: one that this one starts at the same moment
/// would have the file open for writing too, and what is open so can't be run.
fn install(path: &Path, text: &str) {
    let write = r#"printf '%s' "$2" > "$1.new" && chmod 755 "$1.new" && mv "$1.new" "$1""#;
    let status = Command::new("sh").args(["-c", write, "sh"]).arg(path).arg(text).status();
    assert!(status.expect("sh runs").success());
}

const READY: &str = r#"printf '{"message":"ready","descriptor":false}\n' >&0"#;

#[test]
fn a_binary_that_fails_leaves_the_old_one_serving() {
    let folder = Folder::new();
    let (path, binary) = installed(&folder);
    let file = folder.write("config.yaml", &config(1, 1));
    let forebay = Forebay::start_binary(&binary, &["run", "--config", &file], LOG);
    let before = ready_replicas(&forebay, 1);
    for (text, within, why) in [
        ("no program".to_owned(), "60s", "cannot start"),
        ("#!/bin/sh\nexit 3".to_owned(), "60s", "ended before it was ready: exit status: 3"),
        ("#!/bin/sh\nkill -9 $$".to_owned(), "60s", "signal: 9"),
        ("#!/bin/sh\nexec sleep 600".to_owned(), "500ms", "was not ready within 500ms"),
        (format!("#!/bin/sh\n{READY}"), "60s", "ended before it was serving"),
        (format!("#!/bin/sh\n{READY}\necho no >&0"), "60s", "cannot read its message"),
    ] {
        install(&path, &text);
        let output = upgrade(forebay.admin, &["--within", within]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}: {error}");
        assert!(error.contains("not upgraded") && error.contains(why), "{text}: {error}");
        assert_eq!(ready_replicas(&forebay, 1), before, "{text}");
        assert_eq!(status(&exchange(forebay.address, &chat(true, 2))), 200, "{text}");
    }
    // The scaler decides still: a replica that dies is started again.
    kill(before[0].parse().expect("a PID"), "KILL");
    eventually("another one runs", || replicas(forebay.admin).iter().any(|pid| *pid != before[0]));
    let before = ready_replicas(&forebay, 1);
    std::fs::remove_file(&path).expect("there");
    symlink(BINARY, &path).expect("linked");
    let _successor = Successor::of(forebay.admin);
    assert_eq!(ready_replicas(&forebay, 1), before);
}

#[test]
fn a_configuration_that_is_not_valid_leaves_the_old_process_serving() {
    let folder = Folder::new();
    let file = folder.write("config.yaml", &config(1, 1));
    let mut forebay = Forebay::start(&["run", "--config", &file], LOG);
    let before = ready_replicas(&forebay, 1);
    folder.write("config.yaml", "pools: [{name: a, modles: [b]}]");
    let output = upgrade(forebay.admin, &[]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("modles"), "{error}");
    forebay.wait_for("this process keeps serving");
    assert_eq!(ready_replicas(&forebay, 1), before);
    folder.write("config.yaml", &config(1, 1));
    let _successor = Successor::of(forebay.admin);
    assert_eq!(ready_replicas(&forebay, 1), before);
    assert!(forebay.wait().success());
}

#[test]
fn there_is_one_upgrade_at_a_time() {
    let folder = Folder::new();
    let (path, binary) = installed(&folder);
    let arguments = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let mut forebay = Forebay::start_binary(&binary, &arguments, LOG);
    install(&path, "#!/bin/sh\nexec sleep 600");
    let admin = forebay.admin;
    let first = std::thread::spawn(move || upgrade(admin, &[]));
    let line = forebay.wait_for("upgrading: ");
    let second = upgrade(admin, &[]);
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success() && error.contains("under way"), "{error}");
    kill(line.rsplit(' ').next().and_then(|pid| pid.parse().ok()).expect("a PID"), "TERM");
    let first = first.join().expect("ended");
    assert_eq!(first.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&first.stderr).contains("signal: 15"));
}

#[test]
fn the_service_manager_hears_which_process_serves() {
    let folder = Folder::new();
    let path = folder.0.join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let hears = || {
        let mut bytes = [0; 256];
        let count = manager.recv(&mut bytes).expect("a word");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let dev = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let arguments: Vec<_> = [&*variable, BINARY].into_iter().chain(dev).collect();
    let forebay = Forebay::start_binary("/usr/bin/env", &arguments, LOG);
    assert_eq!(hears(), format!("MAINPID={}\nREADY=1\n", forebay.pid()));
    let successor = Successor::of(forebay.admin);
    assert_eq!(hears(), format!("MAINPID={}\nREADY=1\n", successor.0));
}

#[test]
fn the_limit_on_open_files_stays_this_process_s_own_after_an_upgrade() {
    let dev = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--cold-start", "50ms"];
    let forebay = Forebay::in_shell("ulimit -Sn 900", &dev, LOG);
    let soft = |pid: &str| {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("it runs");
        let line = limits.lines().find(|line| line.starts_with("Max open files"));
        line.and_then(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok()).expect("a limit")
    };
    let _first = Successor::of(forebay.admin);
    let second = Successor::of(forebay.admin);
    assert!(soft(&second.0.to_string()) > 900);
    assert_eq!(status(&exchange(forebay.address, &chat(false, 1))), 200);
    assert_eq!(soft(&replicas(forebay.admin)[0]), 900, "replicas have what was given");
}

#[test]
fn to_stop_the_new_process_stops_the_old_one_too_and_in_good_order() {
    let mut forebay = Forebay::dev(&["--cold-start", "50ms"]);
    let stream = stream(forebay.address, 300);
    let before = replicas(forebay.admin);
    let successor = Successor::of(forebay.admin);
    kill(successor.0, "TERM");
    assert_whole(stream);
    assert!(forebay.wait().success());
    eventually("the new process ends", || !alive(successor.0));
    let gone = |pid: &String| !alive(pid.parse().expect("a PID"));
    assert!(before.iter().all(gone), "its replicas have ended before it");
}

#[test]
fn gateway_and_scaler_are_upgraded_one_by_one() {
    let folder = Folder::new();
    let free =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    let scaler_admin = free.expect("a free port");
    let pools = config(1, 1);
    let pools =
        &pools[pools.find("pools:").expect("there")..pools.find("- name: keda").expect("there")];
    let file = folder.write(
        "gateway.yaml",
        &format!(
            "gateway: {{listen: 127.0.0.1:0, scaler: \"{scaler_admin}\"}}\n\
             admin: {{listen: 127.0.0.1:0}}\n{pools}"
        ),
    );
    let mut forebay = Forebay::start(&["gateway", "--config", &file], LOG);
    let file = folder.write(
        "scaler.yaml",
        &format!(
            "admin: {{listen: \"{scaler_admin}\"}}\n\
             scaler: {{gateways: [\"{}\"]}}\n{pools}",
            forebay.admin
        ),
    );
    let mut scaler = Command::new(BINARY)
        .args(["scaler", "--config", &file])
        .stdin(Stdio::null())
        .spawn()
        .expect("the binary starts");
    let scaler_pid = Successor(scaler.id());
    eventually("the scaler is there", || TcpStream::connect(scaler_admin).is_ok());
    let served = || exchange(forebay.address, &chat(false, 1)).starts_with("HTTP/1.1 200");
    eventually("served", served);
    let before = replicas(scaler_admin);
    assert_eq!(before.len(), 1);

    let new_scaler = Successor::of(scaler_admin);
    assert!(scaler.wait().expect("our child").success(), "it has nothing to finish");
    drop(scaler_pid);
    assert_same(scaler_admin, &before);
    let stream = stream(forebay.address, 300);
    let new_gateway = Successor::of(forebay.admin);
    assert_eq!(status(&exchange(forebay.address, &chat(false, 1))), 200);
    assert_whole(stream);
    assert!(forebay.wait().success());
    assert_same(scaler_admin, &before);
    assert!(alive(new_scaler.0) && alive(new_gateway.0));
}

#[test]
fn an_upgrade_is_ordered_by_post_and_by_those_who_may() {
    let folder = Folder::new();
    let token = folder.write("token", "secret");
    let file = folder.write(
        "config.yaml",
        &config(1, 1).replace("admin: {", &format!("admin: {{tokenFile: {token}, ")),
    );
    let forebay = Forebay::start(&["run", "--config", &file], LOG);
    let foreign = b"POST /upgrade HTTP/1.1\r\nhost: evil.example\r\ncontent-length: 0\r\n\
        connection: close\r\n\r\n";
    // With a token, a proxy of any name may stand before the port.
    assert_eq!(status(&exchange(forebay.admin, foreign)), 401);
    let open = folder.write("open.yaml", &config(1, 1));
    let open = Forebay::start(&["run", "--config", &open], LOG);
    assert_eq!(status(&exchange(open.admin, foreign)), 403);
    let answer = get(forebay.admin, "/upgrade");
    assert_eq!(status(&answer), 401, "{answer}");
    let output = upgrade(forebay.admin, &[]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("admin.tokenFile"));
    let output = upgrade(forebay.admin, &["--token-file", &token]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    drop(Successor::named(&String::from_utf8_lossy(&output.stdout)));
}
