//! `forebay probe`: asks servers until all answer. For the image, which has no shell and no `curl`.

use std::io;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use forebay_base::{dial, print};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::time::{Instant, sleep, timeout};

/// Longest time for one try.
const TRY: Duration = Duration::from_secs(5);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(500);
/// Most bytes of an answer that an error may quote.
const MOST_BYTES: usize = 4096;

/// Flags of `forebay probe`.
#[derive(clap::Args)]
#[command(after_help = "\
A URL is asked again until it answers with a status of success (2xx). The command ends with 0 once
all have answered, and with 1 at the first that has not when the time is over.

Whether Forebay on this machine is ready, asked once:
  forebay probe --within 0s http://127.0.0.1:9900/readyz

A health check of compose.yaml:
  healthcheck:
    test: [CMD, forebay, probe, --within, 0s, \"http://127.0.0.1:9900/readyz\"]

Whether something accepts connections there:
  forebay probe tcp://db:5432")]
pub(crate) struct ProbeArgs {
    /// http://… or https://… to be asked, or tcp://HOST:PORT to be connected to
    #[arg(value_name = "URL", required = true)]
    urls: Vec<Target>,
    /// How long to try again, all URLs together; 0s: one try each
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    within: Duration,
    /// Accept any certificate, also one for another name
    #[arg(long)]
    insecure: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    forebay_config::parse_duration(text).map_err(|error| error.to_string())
}

/// A thing to be probed.
#[derive(Clone)]
enum Target {
    /// Answers a GET.
    Http(Uri),
    /// Accepts connections at `HOST:PORT`.
    Tcp(String),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORMS: &str =
            "write http://HOST:PORT/PATH, https://HOST:PORT/PATH or tcp://HOST:PORT";
        let uri: Uri = text.parse().map_err(|_| FORMS.to_owned())?;
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(FORMS)?;
        match uri.scheme_str() {
            Some("http" | "https") => Ok(Self::Http(uri)),
            Some("tcp") if uri.path().len() <= 1 => {
                let port = uri.port_u16().ok_or("a port is missing; write tcp://HOST:PORT")?;
                Ok(Self::Tcp(format!("{host}:{port}")))
            }
            _ => Err(FORMS.to_owned()),
        }
    }
}

/// Probes all targets, one after the other. Fails with the last error of the first that fails.
pub(crate) async fn run(args: ProbeArgs) -> anyhow::Result<ExitCode> {
    let needs_certificates = args.urls.iter().any(|target| {
        matches!(target, Target::Http(uri) if uri.scheme_str() == Some("https")) && !args.insecure
    });
    let prober = Prober::new(args.insecure, needs_certificates)?;
    let deadline = Instant::now() + args.within;
    for target in &args.urls {
        loop {
            match prober.probe(target).await {
                Ok(found) => {
                    print::out(format_args!("{target}: {found}\n"))?;
                    break;
                }
                Err(error) if Instant::now() + PAUSE > deadline => {
                    anyhow::bail!("{target}: {error}");
                }
                Err(_) => sleep(PAUSE).await,
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Http(uri) => uri.fmt(f),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

struct Prober {
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

impl Prober {
    fn new(insecure: bool, needs_certificates: bool) -> anyhow::Result<Self> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let config = if insecure {
            let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
            config.dangerous().with_custom_certificate_verifier(verifier)
        } else if needs_certificates {
            let roots = config.with_native_roots();
            roots.context("cannot read the system's certificates, which https needs")?
        } else {
            config.with_root_certificates(RootCertStore::empty())
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        // A connection for each try: a kept one says nothing about new ones.
        let mut client = Client::builder(TokioExecutor::new());
        client.pool_max_idle_per_host(0);
        Ok(Self { client: client.build(connector) })
    }

    /// One try. Returns what was found, in a few words.
    async fn probe(&self, target: &Target) -> Result<String, String> {
        match target {
            Target::Http(uri) => timeout(TRY, self.ask(uri))
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {TRY:?}"))),
            Target::Tcp(address) => {
                let stream = dial::dial(address, TRY).await;
                stream.map(|_| "connected".to_owned()).map_err(|error| error.to_string())
            }
        }
    }

    async fn ask(&self, uri: &Uri) -> Result<String, String> {
        let request = Request::get(uri.clone()).body(Empty::new());
        let request = request.map_err(|error| error.to_string())?;
        let response = self.client.request(request).await.map_err(|error| reason(&error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(status.to_string());
        }
        let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Err(refusal(status, &String::from_utf8_lossy(&body)))
    }
}

/// A status that is not a success, with the first line of its body.
fn refusal(status: StatusCode, body: &str) -> String {
    match body.trim().lines().next() {
        Some(line) => format!("{status}: {line}"),
        None => status.to_string(),
    }
}

/// The most specific cause, and its remedy where the certificate is not trusted.
fn reason(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(inner) = inner(cause) {
        cause = inner;
    }
    match cause.downcast_ref::<rustls::Error>() {
        Some(rustls::Error::InvalidCertificate(_)) => {
            format!("{cause}; --insecure accepts any certificate")
        }
        _ => cause.to_string(),
    }
}

/// An error's cause, also of an [`io::Error`] that hands on the cause of what it wraps.
fn inner<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a (dyn std::error::Error + 'static)> {
    let wrapped = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    wrapped.map(|wrapped| wrapped as _).or_else(|| error.source())
}

/// Accepts every certificate, and checks that the server has its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
