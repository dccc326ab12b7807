//! KEDA's operator, its metrics adapter and its admission webhook, beside the control plane.

use std::process::Stdio;

use base64::Engine;
use tokio::process::Command;

use super::{Plane, Ports, eventually};

impl Plane {
    /// Starts KEDA's operator, its metrics adapter and its admission webhook.
    pub async fn start_keda(&self) {
        let (own, Ports { adapter, .. }) = (self.own(), self.own().ports);
        self.kubectl(&["create", "namespace", "keda"]).await;
        let crds = own.binaries.get("keda-crds").expect("found before").display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &crds]).await;
        let established = ["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"];
        self.kubectl(&established).await;
        // The adapter is a local process, which the API server reaches by an ExternalName.
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
        self.start_keda_webhooks().await;
    }

    /// Starts the webhook that validates each ScaledObject before it is stored.
    async fn start_keda_webhooks(&self) {
        let own = self.own();
        let Ports { webhooks, webhooks_metrics, webhooks_probe, .. } = own.ports;
        let flags = [
            format!("--port={webhooks}"),
            format!("--cert-dir={}", own.pki.path("keda")),
            format!("--metrics-bind-address=127.0.0.1:{webhooks_metrics}"),
            format!("--health-probe-bind-address=127.0.0.1:{webhooks_probe}"),
        ];
        self.spawn("keda-webhooks", "keda-webhooks", &flags, &self.keda_environment()).await;
        let ca = std::fs::read(own.pki.path("ca.crt")).expect("a certificate");
        let ca = base64::engine::general_purpose::STANDARD.encode(ca);
        // As KEDA ships it, except that an object is refused when the webhook does not answer.
        self.apply(&format!(
            "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\n\
             metadata: {{name: keda-admission}}\n\
             webhooks:\n- name: vscaledobject.kb.io\n  admissionReviewVersions: [v1]\n  \
             sideEffects: None\n  failurePolicy: Fail\n  matchPolicy: Equivalent\n  \
             clientConfig: {{url: \"https://localhost:{webhooks}/validate-keda-sh-v1alpha1-scaledobject\", caBundle: {ca}}}\n  \
             rules:\n  - apiGroups: [keda.sh]\n    apiVersions: [v1alpha1]\n    \
             operations: [CREATE, UPDATE]\n    resources: [scaledobjects]\n"
        ))
        .await;
        // Wait until the API server knows it and it answers.
        let object = "apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\n\
                      metadata: {name: probe, namespace: default}\n\
                      spec:\n  scaleTargetRef: {name: none}\n  idleReplicaCount: 5\n  \
                      triggers: [{type: cron, metadata: {}}]\n";
        eventually("KEDA's webhook validates objects", async || {
            let dry = ["create", "--dry-run=server", "-f", "-"];
            let refused = self.try_kubectl(&dry, object).await;
            refused.is_err_and(|error| error.contains("IdleReplicaCount=5 must be less"))
        })
        .await;
    }

    /// Starts the operator, for the first time or after [`Plane::kill`].
    pub async fn start_keda_operator(&self) {
        let own = self.own();
        let Ports { operator_grpc, operator_metrics, operator_probe, .. } = own.ports;
        let flags = [
            "--zap-log-level=info".into(),
            "--zap-encoder=console".into(),
            // Hundreds of objects at once are processed without waiting.
            "--kube-api-qps=200".into(),
            "--kube-api-burst=400".into(),
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
