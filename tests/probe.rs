//! `forebay probe`: what counts as an answer, and what it says where there is none.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

mod support;
use support::Forebay;

/// Runs `forebay probe` to its end. Returns its exit status, and all that it printed.
fn probe(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    let run = command.arg("probe").args(arguments).output().expect("runs");
    let text = [run.stdout, run.stderr].concat();
    (run.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A server that gives one of these answers to each connection, and then closes its port.
fn server(answers: &'static [&'static str]) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

const READY: &str = "HTTP/1.1 204 No Content\r\n\r\n";
const NOT_YET: &str =
    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 15\r\n\r\nstarting\nsecond";

#[test]
fn a_server_that_becomes_ready_in_time_has_answered() {
    let url = format!("http://{}/readyz?full", server(&[NOT_YET, "", READY]));
    let (code, text) = probe(&[&url]);
    assert_eq!((code, text), (Some(0), format!("{url}: 204 No Content\n")));
}

#[test]
fn one_try_tells_why_there_was_no_success() {
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    for (url, reason) in [
        (format!("http://{}/", server(&[NOT_YET])), "503 Service Unavailable: starting"),
        (
            format!("http://{}/", server(&["HTTP/1.1 307 Temporary Redirect\r\n\r\n"])),
            "307 Temporary Redirect",
        ),
        (format!("http://{}/", server(&["+OK ready\r\n"])), "invalid HTTP version parsed"),
        (format!("http://{closed}/"), "Connection refused (os error 111)"),
        (format!("tcp://{closed}"), "Connection refused (os error 111)"),
    ] {
        let (code, text) = probe(&["--within", "0s", &url]);
        assert_eq!((code, text), (Some(1), format!("forebay: {url}: {reason}\n")));
    }
}

#[test]
fn all_have_to_answer_and_the_first_that_does_not_is_named() {
    let ready = || format!("http://{}/", server(&[READY]));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = format!("tcp://{}", listener.local_addr().expect("bound"));
    let (code, text) = probe(&[&ready(), &port]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.ends_with(&format!("{port}: connected\n")), "{text}");

    let failing = format!("http://{}/", server(&[NOT_YET]));
    let (code, text) = probe(&["--within", "0s", &ready(), &failing, &ready()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.ends_with(&format!("forebay: {failing}: 503 Service Unavailable: starting\n")));
}

#[test]
fn what_is_not_a_url_is_answered_with_the_forms() {
    for url in ["127.0.0.1:9900", "readyz", "ftp://a/", "http:///x", "tcp://a:1/path"] {
        let (code, text) = probe(&[url]);
        assert!(code == Some(2) && text.contains("write http://HOST:PORT/PATH"), "{url}: {text}");
    }
    let (code, text) = probe(&["tcp://a"]);
    assert!(code == Some(2) && text.contains("write tcp://HOST:PORT"), "{text}");
    let (code, text) = probe(&[]);
    assert!(code == Some(2) && text.contains("<URL>"), "{text}");
}

#[test]
fn a_certificate_that_is_not_trusted_is_accepted_only_on_request() {
    let folder = std::env::temp_dir().join("forebay-tests");
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = |name: &str| folder.join(format!("probe-{}-{name}", std::process::id()));
    let made = rcgen::generate_simple_self_signed(["chat.example.com".to_owned()]).expect("made");
    std::fs::write(path("crt"), made.cert.pem()).expect("written");
    std::fs::write(path("key"), made.signing_key.serialize_pem()).expect("written");
    let config = format!(
        "gateway: {{listen: 127.0.0.1:0, tls: {{certFile: {}, keyFile: {}}}}}\n\
         admin: {{listen: 127.0.0.1:0}}\npools:\n- {{name: p, models: [m], endpoints: [127.0.0.1:9]}}\n",
        path("crt").display(),
        path("key").display()
    );
    std::fs::write(path("yaml"), config).expect("written");
    let file = path("yaml").to_str().expect("text").to_owned();
    let gateway = Forebay::start(&["gateway", "--config", &file], "info");

    let url = format!("https://{}/health", gateway.address);
    let (code, text) = probe(&["--within", "0s", &url]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("--insecure accepts any certificate"), "{text}");
    let (code, text) = probe(&["--insecure", &url]);
    assert_eq!((code, text), (Some(0), format!("{url}: 200 OK\n")));

    let plain = format!("http://{}/health", gateway.address);
    let (code, text) = probe(&["--within", "0s", &plain]);
    assert!(code == Some(1) && text.starts_with(&format!("forebay: {plain}: ")), "{text}");
}
