//! KEDA's operator and its metrics adapter, beside the control plane.

use std::process::Stdio;

use tokio::process::Command;

use super::{Plane, Ports, eventually};

impl Plane {
    /// Starts KEDA's operator and its metrics adapter.
    pub async fn start_keda(&self) {
        let (own, Ports { adapter, .. }) = (self.own(), self.own().ports);
        self.kubectl(&["create", "namespace", "keda"]).await;
        let crds = own.binaries.get("keda-crds").expect("found before").display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &crds]).await;
        let established = ["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"];
        self.kubectl(&established).await;
        // The adapter is a local process: by an ExternalName the API server reaches it.
        self.apply(&format!(
            "apiVersion: v1\nkind: Service\n\
             metadata: {{name: keda-metrics-apiserver, namespace: keda}}\n\
             spec: {{type: ExternalName, externalName: localhost, ports: [{{port: {adapter}}}]}}\n\
             ---\n\
             apiVersion: apiregistration.k8s.io/v1\nkind: APIService\n\
             metadata: {{name: v1beta1.external.metrics.k8s.io}}\n\
             spec:\n  group: external.metrics.k8s.io\n  version: v1beta1\n  groupPriorityMinimum: 100\n  \
             versionPriority: 100\n  insecureSkipTLSVerify: true\n  \
             service: {{name: keda-metrics-apiserver, namespace: keda, port: {adapter}}}\n"
        ))
        .await;
        self.start_keda_operator().await;
        let admin = self.kubeconfig.display();
        let Ports { adapter_metrics, operator_grpc, .. } = own.ports;
        let flags = [
            format!("--secure-port={adapter}"),
            "--bind-address=127.0.0.1".into(),
            format!("--port={adapter_metrics}"),
            "--tls-cert-file=keda/tls.crt".into(),
            "--tls-private-key-file=keda/tls.key".into(),
            "--client-ca-file=ca.crt".into(),
            format!("--cert-dir={}", own.pki.path("keda")),
            format!("--metrics-service-address=localhost:{operator_grpc}"),
            "--metrics-service-grpc-authority=localhost".into(),
            format!("--lister-kubeconfig={admin}"),
            format!("--authentication-kubeconfig={admin}"),
            format!("--authorization-kubeconfig={admin}"),
        ];
        self.spawn("keda-adapter", "keda-adapter", &flags, &self.keda_environment()).await;
        self.until(
            "KEDA's metrics are served",
            &["get", "--raw", "/apis/external.metrics.k8s.io/v1beta1"],
        )
        .await;
    }

    /// Starts the operator, also after [`Plane::kill`] has ended it.
    pub async fn start_keda_operator(&self) {
        let own = self.own();
        let Ports { operator_grpc, operator_metrics, operator_probe, .. } = own.ports;
        let flags = [
            "--zap-log-level=info".into(),
            "--zap-encoder=console".into(),
            format!("--cert-dir={}", own.pki.path("keda")),
            "--enable-webhook-patching=false".into(),
            "--enable-apiservice-patching=false".into(),
            format!("--metrics-bind-address=127.0.0.1:{operator_metrics}"),
            format!("--health-probe-bind-address=127.0.0.1:{operator_probe}"),
            format!("--metrics-service-bind-address=127.0.0.1:{operator_grpc}"),
        ];
        self.spawn("keda-operator", "keda-operator", &flags, &self.keda_environment()).await;
        let url = format!("http://127.0.0.1:{operator_probe}/readyz");
        eventually("KEDA's operator is ready", async || {
            let mut command = Command::new("curl");
            command.args(["-fsS", &url]).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().await.is_ok_and(|status| status.success())
        })
        .await;
    }

    fn keda_environment(&self) -> [(&'static str, &str); 4] {
        [
            ("WATCH_NAMESPACE", ""),
            ("POD_NAMESPACE", "keda"),
            ("KEDA_CLUSTER_OBJECT_NAMESPACE", "keda"),
            ("KUBECONFIG", self.kubeconfig.to_str().expect("a plain path")),
        ]
    }
}
