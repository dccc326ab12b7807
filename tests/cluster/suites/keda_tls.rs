//! KEDA's operator and the scaler over TLS, each with its certificate.

use std::sync::Arc;

use forebay_scaler::keda::proto::ScaledObjectRef;
use forebay_scaler::keda::proto::external_scaler_client::ExternalScalerClient;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::Cluster;
use crate::suites::keda::{Options, POOL, Setup, all_answered};

/// The operator verifies the scaler by its authority, and the scaler requires a certificate of the
/// operator. With both, everything works as without TLS; a client without a certificate gets no
/// answer.
pub async fn wakes_by_mutual_tls(cluster: Arc<Cluster>) {
    let pki = &cluster.plane.pki().expect("a control plane of our own");
    pki.issue("keda/scaler", "forebay-scaler", None);
    pki.issue("keda/operator", "keda-operator", None);
    let options = Options {
        metadata: ", enableTLS: \"true\"",
        authentication: "    authenticationRef: {name: forebay}\n",
        tls: format!(
            ", tls: {{certFile: {}, keyFile: {}, clientCaFile: {}}}",
            pki.path("keda/scaler.crt"),
            pki.path("keda/scaler.key"),
            pki.path("ca.crt")
        ),
        ..Options::default()
    };
    let setup = Setup::without_object(&cluster, "keda-tls", &options).await;
    let namespace = setup.namespace.as_str();
    let files = [
        ("caCert", pki.path("ca.crt")),
        ("tlsClientCert", pki.path("keda/operator.crt")),
        ("tlsClientKey", pki.path("keda/operator.key")),
    ];
    let mut secret = vec!["-n", namespace, "create", "secret", "generic", "forebay"];
    let from = files.each_ref().map(|(key, path)| format!("--from-file={key}={path}"));
    secret.extend(from.iter().map(String::as_str));
    cluster.plane.kubectl(&secret).await;

    cluster.plane.apply(&authentication(namespace)).await;
    cluster.plane.apply(&setup.scaled_object(&options)).await;
    setup.until_ready(&cluster).await;
    all_answered(setup.serve(2, 8).await).await;
    setup.asleep(&cluster).await;

    let read = |file: &str| std::fs::read(pki.path(file)).expect("a file");
    let ours = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read("ca.crt")));
    let identity = Identity::from_pem(read("keda/operator.crt"), read("keda/operator.key"));
    let knows = async |url: String, tls: Option<ClientTlsConfig>| {
        let mut endpoint = Endpoint::from_shared(url).expect("a URL");
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).expect("good files");
        }
        let Ok(channel) = endpoint.connect().await else { return false };
        let object = ScaledObjectRef {
            name: POOL.into(),
            namespace: namespace.into(),
            scaler_metadata: Default::default(),
        };
        ExternalScalerClient::new(channel).is_active(object).await.is_ok()
    };
    let (https, http) = (format!("https://{}", setup.keda), format!("http://{}", setup.keda));
    assert!(
        knows(https.clone(), Some(ours.clone().identity(identity))).await,
        "with a certificate, as KEDA has one"
    );
    assert!(!knows(https, Some(ours)).await, "without a certificate");
    assert!(!knows(http, None).await, "without TLS");
    setup.end(&cluster).await;
}

/// The TriggerAuthentication, with the names that the trigger expects.
fn authentication(namespace: &str) -> String {
    let parameter = |name| format!("{{parameter: {name}, name: forebay, key: {name}}}");
    let all = ["caCert", "tlsClientCert", "tlsClientKey"].map(parameter).join(", ");
    format!(
        "apiVersion: keda.sh/v1alpha1\nkind: TriggerAuthentication\n\
         metadata: {{name: forebay, namespace: {namespace}}}\nspec: {{secretTargetRef: [{all}]}}\n"
    )
}
