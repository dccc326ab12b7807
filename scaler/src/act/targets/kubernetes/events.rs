//! Kubernetes Events on a workload: what was decided, in one sentence.

use std::time::Duration;

use forebay_discovery::error::{Rule, explain};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

const PATIENCE: Duration = Duration::from_secs(5);
/// The API takes a kibibyte.
const LONGEST_NOTE: usize = 1000;
const REPORTER: &str = "forebay-scaler";

/// Writes Events beside the work: a slow one delays nothing, and too many are dropped.
pub(super) struct Events {
    sender: mpsc::Sender<Told>,
    _task: AbortOnDropHandle<()>,
}

/// One Event.
pub(super) struct Told {
    pub(super) regarding: ObjectReference,
    /// In `PascalCase`.
    pub(super) reason: &'static str,
    pub(super) warning: bool,
    pub(super) note: String,
}

impl Events {
    pub(super) fn start(client: Client, namespace: String) -> Self {
        let (sender, mut told) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            let api = Api::<Event>::namespaced(client, &namespace);
            let mut complained = false;
            while let Some(next) = told.recv().await {
                let (params, event) = (PostParams::default(), event(next));
                if let Ok(Err(error)) = timeout(PATIENCE, api.create(&params, &event)).await
                    && !std::mem::replace(&mut complained, true)
                {
                    let rule = Rule {
                        group: "events.k8s.io",
                        resource: "events",
                        verbs: &["create"],
                        namespace: &namespace,
                    };
                    tracing::warn!("no Events are written: {}", explain(&error, &rule));
                }
            }
        });
        Self { sender, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn tell(&self, told: Told) {
        if self.sender.try_send(told).is_err() {
            tracing::debug!("an Event is dropped: the API server is slow");
        }
    }
}

fn event(told: Told) -> Event {
    let now = Timestamp::now();
    let name = told.regarding.name.clone().unwrap_or_default();
    let note: String = told.note.chars().take(LONGEST_NOTE).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: told.regarding.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some("Scale".to_owned()),
        reason: Some(told.reason.to_owned()),
        type_: Some(if told.warning { "Warning" } else { "Normal" }.to_owned()),
        note: Some(note),
        event_time: Some(MicroTime(now)),
        regarding: Some(told.regarding),
        reporting_controller: Some(format!("forebay.io/{REPORTER}")),
        reporting_instance: Some(std::env::var("POD_NAME").unwrap_or_else(|_| REPORTER.to_owned())),
        ..Event::default()
    }
}
