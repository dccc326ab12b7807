//! An API server in memory, for tests: objects by path with versions, merge patches, watches, and
//! faults on demand. It has no sockets, so a paused clock is exact.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use forebay_discovery::Cluster;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// The API server's limit for the data of a ConfigMap.
const MOST_DATA: usize = 1 << 20;

/// The namespace of every object here.
pub(crate) const NAMESPACE: &str = "models";

/// One call, as received.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) body: Value,
}

/// A fault in place of an answer.
pub(crate) enum Fault {
    /// An answer with this status.
    Status(u16),
    /// No answer, ever.
    Hang,
}

type Judge = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;
type ApiAnswer = Response<UnsyncBoxBody<Bytes, Infallible>>;

#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<FakeState>>);

#[derive(Default)]
struct FakeState {
    objects: BTreeMap<String, Value>,
    version: u64,
    watchers: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    judge: Option<Judge>,
    calls: Vec<Call>,
}

impl FakeApi {
    pub(crate) fn cluster(&self) -> Cluster {
        let api = self.clone();
        let service = tower::service_fn(move |request| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        Cluster { client: Client::new(service, NAMESPACE), namespace: NAMESPACE.to_owned() }
    }

    /// Sets the faults from now on.
    pub(crate) fn judge(&self, judge: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        self.0.lock().judge = Some(Box::new(judge));
    }

    /// Creates or replaces an object; returns its version.
    pub(crate) fn put(&self, path: &str, object: Value) -> u64 {
        self.0.lock().put(path, object)
    }

    pub(crate) fn delete(&self, path: &str) {
        let mut state = self.0.lock();
        if let Some(gone) = state.objects.remove(path) {
            state.tell(path, "DELETED", &gone);
        }
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        self.0.lock().objects.get(path).cloned()
    }

    /// Every object under a path.
    pub(crate) fn under(&self, path: &str) -> BTreeMap<String, Value> {
        let state = self.0.lock();
        let found = state.objects.iter().filter(|(at, _)| at.starts_with(path));
        found.map(|(path, object)| (path.clone(), object.clone())).collect()
    }

    /// Returns the calls so far and forgets them.
    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.0.lock().calls)
    }

    async fn serve(&self, request: Request<Body>) -> ApiAnswer {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.expect("in memory").to_bytes();
        let call = Call {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            body: serde_json::from_slice(&body).unwrap_or_default(),
        };
        let fault = {
            let mut state = self.0.lock();
            state.calls.push(call.clone());
            state.judge.as_mut().and_then(|judge| judge(&call))
        };
        match fault {
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Status(code)) => refuse(code),
            None => self.0.lock().answer(&call),
        }
    }
}

impl FakeState {
    fn answer(&mut self, call: &Call) -> ApiAnswer {
        let path = &call.path;
        let found = self.objects.get(path).cloned();
        match (&call.method, found) {
            (&Method::GET, _) if call.query.contains("watch=true") => self.watch(path),
            (&Method::GET, Some(object)) => tell(&object),
            (&Method::GET, None) if !is_collection(path) => refuse(404),
            (&Method::GET, None) => {
                let prefix = format!("{path}/");
                let inside =
                    |at: &String| at.strip_prefix(&prefix).is_some_and(|name| !name.contains('/'));
                let items: Vec<_> = self
                    .objects
                    .iter()
                    .filter(|(at, _)| inside(at))
                    .map(|(_, object)| object)
                    .collect();
                tell(&json!({
                    "kind": "List", "apiVersion": "v1",
                    "metadata": {"resourceVersion": self.version.to_string()}, "items": items,
                }))
            }
            (&Method::POST, _) => {
                let name = call.body["metadata"]["name"].as_str().unwrap_or_default();
                let at = format!("{path}/{name}");
                if self.objects.contains_key(&at) {
                    return refuse(409);
                }
                if is_too_large(&call.body) {
                    return refuse(422);
                }
                self.put(&at, call.body.clone());
                tell(&self.objects[&at])
            }
            (_, None) => refuse(404),
            (&Method::DELETE, Some(mut object)) => {
                let uid = &call.body["preconditions"]["uid"];
                if !uid.is_null() && *uid != object["metadata"]["uid"] {
                    return refuse(409);
                }
                object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
                self.put(path, object);
                tell(&self.objects[path])
            }
            (method, Some(mut object)) => {
                let version =
                    |of: &Value| of["metadata"]["resourceVersion"].as_str().map(str::to_owned);
                if version(&call.body).is_some_and(|expected| version(&object) != Some(expected)) {
                    return refuse(409);
                }
                if method == Method::PUT {
                    object = call.body.clone();
                } else {
                    merge(&mut object, &call.body);
                }
                if is_too_large(&object) {
                    return refuse(422);
                }
                self.put(path, object);
                tell(&self.objects[path])
            }
        }
    }

    fn put(&mut self, path: &str, mut object: Value) -> u64 {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let kind = if self.objects.contains_key(path) { "MODIFIED" } else { "ADDED" };
        self.tell(path, kind, &object);
        self.objects.insert(path.to_owned(), object);
        self.version
    }

    fn tell(&mut self, path: &str, kind: &str, object: &Value) {
        let line = format!("{}\n", json!({"type": kind, "object": object}));
        let collection = path.rsplit_once('/').map_or("", |(collection, _)| collection);
        self.watchers.retain(|(of, sender)| {
            of != collection || sender.send(Bytes::from(line.clone())).is_ok()
        });
    }

    fn watch(&mut self, path: &str) -> ApiAnswer {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.watchers.push((path.to_owned(), sender));
        let frames = stream::unfold(receiver, async |mut receiver: mpsc::UnboundedReceiver<_>| {
            let line: Bytes = receiver.recv().await?;
            Some((Ok(Frame::data(line)), receiver))
        });
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn is_collection(path: &str) -> bool {
    let plural = path.rsplit('/').next().unwrap_or_default();
    ["pods", "deployments", "configmaps", "leases", "events"].contains(&plural)
}

fn is_too_large(object: &Value) -> bool {
    let data = object["data"].as_object().into_iter().flatten();
    data.map(|(_, text)| text.as_str().map_or(0, str::len)).sum::<usize>() > MOST_DATA
}

fn tell(object: &Value) -> ApiAnswer {
    Response::new(Full::from(object.to_string()).boxed_unsync())
}

fn refuse(code: u16) -> ApiAnswer {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        422 => "Invalid",
        _ => "InternalError",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "message": format!("refused with {code}"), "reason": reason,
    });
    let mut answer = tell(&status);
    *answer.status_mut() = StatusCode::from_u16(code).expect("a status");
    answer
}

/// RFC 7386.
fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(fields) = patch else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            into.as_object_mut().expect("made one above").remove(key);
        } else {
            merge(&mut into[key], value);
        }
    }
}
