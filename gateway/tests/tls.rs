//! TLS for clients: versions, negotiation, client certificates, and files that change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_config::{ByteSize, Config, Tls, TlsVersion};
use forebay_gateway::Gateway;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use support::{
    ANSWER, Answer, CHAT, PATIENCE, Tasks, Upstream, chat, config, eventually, http2_over, start,
    status,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

mod support;

/// A folder with a certificate authority. It is removed at the end.
struct Folder {
    path: PathBuf,
    authority: CertifiedIssuer<'static, KeyPair>,
}

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("forebay-gateway-tls-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let authority = CertifiedIssuer::self_signed(params, key).expect("an authority");
        let folder = Self { path, authority };
        folder.write("ca.crt", &folder.authority.pem());
        folder
    }

    fn write(&self, name: &str, content: &str) {
        std::fs::write(self.path.join(name), content).expect("written");
    }

    /// A certificate for `name` with its key, both as PEM.
    fn issue(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let cert = params.signed_by(&key, &self.authority).expect("signed");
        (cert.pem(), key.serialize_pem())
    }

    fn renew(&self) {
        let (cert, key) = self.issue("localhost");
        self.write("tls.crt", &cert);
        self.write("tls.key", &key);
    }

    fn settings(&self, config: &mut Config) -> &Self {
        config.gateway.tls = Some(Tls {
            cert_file: self.path.join("tls.crt"),
            key_file: self.path.join("tls.key"),
            client_ca_file: None,
            min_version: TlsVersion::V1_2,
        });
        self
    }

    fn client(&self, protocols: &[&str], versions: &[&'static SupportedProtocolVersion]) -> Client {
        Client::new(&self.path, protocols, versions, None)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

struct Client(TlsConnector);

impl Client {
    fn new(
        folder: &Path,
        protocols: &[&str],
        versions: &[&'static SupportedProtocolVersion],
        own: Option<(String, String)>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_file(folder.join("ca.crt")).expect("PEM");
        roots.add(authority).expect("an authority");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .expect("versions")
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let cert = CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM");
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(vec![cert], key).expect("a pair")
            }
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self(TlsConnector::from(Arc::new(config)))
    }

    async fn connect(&self, gateway: &Gateway) -> io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(gateway.address()).await?;
        self.0.connect(ServerName::try_from("localhost").expect("a name"), stream).await
    }

    async fn health(&self, gateway: &Gateway) -> io::Result<String> {
        let mut stream = self.connect(gateway).await?;
        stream
            .write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            .await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }
}

const BOTH: &[&SupportedProtocolVersion] = &[&rustls::version::TLS12, &rustls::version::TLS13];

#[tokio::test]
async fn http2_is_negotiated_where_the_client_offers_it() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    let folder = Folder::new("alpn");
    folder.settings(&mut config).renew();
    let gateway = start(&config);
    for (offered, agreed) in
        [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
    {
        let client = folder.client(offered, BOTH);
        let stream = client.connect(&gateway).await.expect("a handshake");
        let spoken = stream.get_ref().1.alpn_protocol();
        assert_eq!(spoken, agreed.map(str::as_bytes), "{offered:?}");
        if agreed == Some("h2") {
            let tasks = Tasks::default();
            let mut client = http2_over(stream, &tasks).await;
            let response = client.send_request(chat(CHAT)).await.expect("answered");
            assert_eq!(response.status(), 200);
        } else {
            let answer = client.health(&gateway).await.expect("answered");
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        }
    }
    let requests = upstream.requests();
    let texts: Vec<_> = requests.iter().map(|bytes| String::from_utf8_lossy(bytes)).collect();
    // On a machine that stands still for seconds, the engine may be asked for a token as well.
    let chats = texts.iter().filter(|text| text.starts_with("POST /v1/chat/completions ")).count();
    assert_eq!(chats, 1, "{texts:?}");
}

#[tokio::test]
async fn an_older_version_than_the_lowest_is_refused() {
    let mut config = config(None);
    let folder = Folder::new("version");
    folder.settings(&mut config).renew();
    let old = folder.client(&[], &[&rustls::version::TLS12]);
    let gateway = start(&config);
    assert!(old.health(&gateway).await.is_ok(), "TLS 1.2 is on by default");
    config.gateway.tls.as_mut().expect("set").min_version = TlsVersion::V1_3;
    let gateway = start(&config);
    assert!(old.health(&gateway).await.is_err());
    assert!(folder.client(&[], BOTH).health(&gateway).await.is_ok());
}

#[tokio::test]
async fn a_configured_client_authority_admits_only_its_own_clients() {
    let mut config = config(None);
    let (folder, strangers) = (Folder::new("mtls"), Folder::new("strangers"));
    folder.settings(&mut config).renew();
    config.gateway.tls.as_mut().expect("set").client_ca_file = Some(folder.path.join("ca.crt"));
    let gateway = start(&config);
    let client = |own| Client::new(&folder.path, &[], BOTH, own);
    let answer = client(Some(folder.issue("client"))).health(&gateway).await.expect("let in");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(client(None).health(&gateway).await.is_err(), "without a certificate");
    let theirs = client(Some(strangers.issue("client")));
    assert!(theirs.health(&gateway).await.is_err(), "with one of another authority");
}

#[tokio::test]
async fn new_connections_get_a_new_certificate_and_old_connections_go_on() {
    let mut config = config(None);
    let folder = Folder::new("renewed");
    folder.settings(&mut config).renew();
    let gateway = start(&config);
    let client = folder.client(&[], BOTH);
    let shown = async || {
        let stream = client.connect(&gateway).await.expect("a handshake");
        stream.get_ref().1.peer_certificates().expect("shown")[0].clone().into_owned()
    };
    let first = shown().await;
    let mut old = client.connect(&gateway).await.expect("a handshake");
    // An invalid certificate changes nothing.
    folder.write("tls.crt", "nonsense");
    assert_eq!(shown().await, first);
    folder.renew();
    eventually("the new certificate is used", || async { shown().await != first }).await;
    old.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        .await
        .expect("open");
    let mut answer = String::new();
    old.read_to_string(&mut answer).await.expect("open");
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
}

#[test]
fn a_gateway_with_wrong_files_does_not_start_and_says_which() {
    let mut config = config(None);
    let folder = Folder::new("wrong");
    folder.settings(&mut config).renew();
    folder.write("tls.key", "nonsense");
    let error = Gateway::start(&config, None, None, None).err().expect("wrong").to_string();
    assert!(error.starts_with("gateway.tls.keyFile: holds no private key in PEM"), "{error}");
}

#[tokio::test]
async fn plain_text_on_a_tls_port_is_closed_without_an_answer() {
    let mut config = config(None);
    let folder = Folder::new("plain");
    folder.settings(&mut config).renew();
    let gateway = start(&config);
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    let _ = stream.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn a_client_that_reads_only_when_it_has_sent_all_gets_its_refusal() {
    const HUGE: usize = 24 << 20;
    let mut config = config(None);
    let folder = Folder::new("refused");
    folder.settings(&mut config).renew();
    config.gateway.limits.body_size = ByteSize::kib(1);
    let gateway = start(&config);
    for version in BOTH {
        let mut stream = folder.client(&[], &[*version]).connect(&gateway).await.expect("TLS");
        let head = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n\
             content-length: {HUGE}\r\n"
        );
        stream.write_all(format!("{head}\r\n").as_bytes()).await.expect("open");
        let sent = timeout(PATIENCE, stream.write_all(&vec![b' '; HUGE])).await.expect("taken");
        let mut answer = Vec::new();
        let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
        let answer = String::from_utf8_lossy(&answer);
        assert!(sent.is_ok() && read.is_ok(), "{version:?}: {sent:?}, {read:?} after {answer:?}");
        assert_eq!(status(&answer), 413, "{version:?}: {answer}");
    }
}
