//! Kubernetes Events on a workload: each decision in one sentence.

use std::time::Duration;

use forebay_base::trouble::Trouble;
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

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The API accepts a kibibyte.
const LONGEST_NOTE: usize = 1000;
const REPORTER: &str = "forebay-scaler";

/// Writes Events in a task of its own: a slow API server delays nothing, and too many are dropped.
pub(super) struct Events {
    sender: mpsc::Sender<Note>,
    _task: AbortOnDropHandle<()>,
}

/// The content of one Event.
pub(super) struct Note {
    pub(super) regarding: ObjectReference,
    /// In `PascalCase`.
    pub(super) reason: &'static str,
    pub(super) warning: bool,
    pub(super) note: String,
}

impl Events {
    pub(super) fn start(client: Client, namespace: String) -> Self {
        let (sender, mut notes) = mpsc::channel(16);
        let task = tokio::spawn(async move {
            let api = Api::<Event>::namespaced(client, &namespace);
            let mut trouble = Trouble::default();
            while let Some(next) = notes.recv().await {
                let (params, event) = (PostParams::default(), event(next));
                let rule = Rule {
                    group: "events.k8s.io",
                    resource: "events",
                    verbs: &["create"],
                    namespace: &namespace,
                };
                match timeout(CALL_TIMEOUT, api.create(&params, &event)).await {
                    Ok(Err(error)) => {
                        let why = explain(&error, &rule);
                        if trouble.begins(why.as_str()) {
                            tracing::warn!("Events can't be written: {why}");
                        }
                    }
                    Ok(Ok(_)) if trouble.ends() => tracing::info!("Events are written again"),
                    Ok(Ok(_)) | Err(_) => {}
                }
            }
        });
        Self { sender, _task: AbortOnDropHandle::new(task) }
    }

    pub(super) fn write(&self, note: Note) {
        if self.sender.try_send(note).is_err() {
            tracing::debug!("an Event is dropped: the API server is slow");
        }
    }
}

fn event(note: Note) -> Event {
    let now = Timestamp::now();
    let name = note.regarding.name.clone().unwrap_or_default();
    let text: String = note.note.chars().take(LONGEST_NOTE).collect();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: note.regarding.namespace.clone(),
            ..ObjectMeta::default()
        },
        action: Some("Scale".to_owned()),
        reason: Some(note.reason.to_owned()),
        type_: Some(if note.warning { "Warning" } else { "Normal" }.to_owned()),
        note: Some(text),
        event_time: Some(MicroTime(now)),
        regarding: Some(note.regarding),
        reporting_controller: Some(format!("forebay.io/{REPORTER}")),
        reporting_instance: Some(std::env::var("POD_NAME").unwrap_or_else(|_| REPORTER.to_owned())),
        ..Event::default()
    }
}
