//! An API server for tests: objects with versions and owners, lists and watches by label, server-side apply, statuses,
//! preconditions, faults of all kinds. Records everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use axum::response::Response;
use futures_util::future::BoxFuture;
use jiff::fmt::rfc2822::DateTimePrinter;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::{BoxError, Service};

use crate::objects::{self, merge};
use crate::{pages, wait, watches};

/// Plurals of the kinds of ours.
pub const KINDS: [&str; 3] = ["daskclusters", "pipelines", "pipelineruns"];

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub content: String,
    pub body: Value,
    pub status: u16,
    /// When it came.
    pub at: Instant,
}

/// What goes wrong with some requests.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    /// Any if it is none.
    pub method: Option<Method>,
    /// Part of the path, or of the query if it has a `=`.
    pub part: String,
    pub status: u16,
    pub message: String,
    /// In seconds.
    pub retry_after: u64,
    /// How often; 0: for ever.
    pub times: usize,
    /// The request is carried out all the same: only its answer is lost.
    pub after: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) objects: BTreeMap<String, Value>,
    pub(crate) version: u64,
    /// What happened to objects, for watches: version, kind of event, path, object.
    pub(crate) events: Vec<(u64, &'static str, String, Value)>,
    /// By path and field manager: the fields that were applied.
    pub(crate) managers: BTreeMap<String, BTreeMap<String, BTreeSet<String>>>,
    requests: Vec<Recorded>,
    kinds: Vec<String>,
    faults: Vec<Fault>,
    uids: u64,
    /// How far its clock is ahead of this machine's.
    offset: SignedDuration,
    /// It does not say what time it is.
    dateless: bool,
    /// Paths of objects that lists lack, as those of a cache that lags.
    hidden: BTreeSet<String>,
}

/// The double; clones are the same.
#[derive(Debug, Clone)]
pub struct Api {
    inner: Arc<Mutex<Inner>>,
    silent: Arc<watch::Sender<bool>>,
    pub(crate) watches: Arc<watches::Switch>,
    pub address: SocketAddr,
}

impl Api {
    /// Serves until the test ends. Knows all kinds of ours unless told otherwise.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let kinds = KINDS.map(ToOwned::to_owned).to_vec();
        let inner = Arc::new(Mutex::new(Inner { kinds, ..Inner::default() }));
        let api = Self { inner, silent: Arc::new(watch::Sender::new(false)), watches: Arc::default(), address };
        let routes = Router::new().fallback(answer).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        api
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config()).expect("a client")
    }

    /// As a service without a network in between: what the double has handed out, the client has.
    pub fn direct(&self) -> Direct {
        Direct(self.clone())
    }

    pub fn config(&self) -> kube::Config {
        drop(rustls::crypto::ring::default_provider().install_default());
        kube::Config::new(format!("http://{}", self.address).parse().expect("a URL"))
    }

    /// A kubeconfig file that leads here.
    pub fn kubeconfig(&self, folder: &std::path::Path) -> std::path::PathBuf {
        let path = folder.join("kubeconfig");
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": format!("http://{}", self.address) } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test", "namespace": "daskade" } }],
            "users": [{ "name": "test", "user": {} }],
        });
        std::fs::write(&path, text.to_string()).expect("write the kubeconfig");
        path
    }

    pub fn requests(&self) -> Vec<Recorded> {
        self.lock().requests.clone()
    }

    pub fn object(&self, path: &str) -> Option<Value> {
        self.lock().objects.get(path).cloned()
    }

    /// What is read of an object, of which nothing is copied.
    pub fn read<T>(&self, path: &str, read: impl FnOnce(&Value) -> T) -> Option<T> {
        self.lock().objects.get(path).map(read)
    }

    /// Paths of all objects that have a part in their path.
    pub fn paths(&self, part: &str) -> Vec<String> {
        self.lock().objects.keys().filter(|path| path.contains(part)).cloned().collect()
    }

    /// Puts an object there as somebody else would.
    pub fn put(&self, path: &str, object: Value) {
        let mut inner = self.lock();
        inner.store(path, object);
        drop(inner);
        self.watches.tell();
    }

    /// Changes an object as somebody else would.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut inner = self.lock();
        let mut object = inner.objects.get(path).cloned().unwrap_or_else(|| panic!("{path} is there to be edited"));
        change(&mut object);
        inner.store(path, object);
        drop(inner);
        self.watches.tell();
    }

    pub fn delete(&self, path: &str) {
        self.lock().remove(path);
        self.watches.tell();
    }

    /// Deletes an object and, as Kubernetes does after a while, what it owns.
    pub fn delete_with_children(&self, path: &str) {
        let mut inner = self.lock();
        let uid = inner.remove(path).map(|object| object["metadata"]["uid"].clone()).unwrap_or_default();
        let owned = |object: &Value| {
            let owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            owners.into_iter().any(|owner| owner["uid"] == uid)
        };
        let children: Vec<String> =
            inner.objects.iter().filter(|(_, object)| owned(object)).map(|(path, _)| path.clone()).collect();
        for child in children {
            inner.remove(&child);
        }
        drop(inner);
        self.watches.tell();
    }

    /// Sets its clock: so far ahead of this machine's.
    pub fn set_clock(&self, ahead: SignedDuration) {
        self.lock().offset = ahead;
    }

    /// What its clock says.
    pub fn now(&self) -> Timestamp {
        self.lock().now()
    }

    /// Whether its answers lack the header `Date`. Over a network the double's server adds it by itself.
    pub fn set_dateless(&self, dateless: bool) {
        self.lock().dateless = dateless;
    }

    /// Lists lack an object, as those of a cache that lags do, or have it again. Whoever asks for it by name gets it.
    pub fn hide(&self, path: &str, hidden: bool) {
        let mut inner = self.lock();
        if hidden {
            inner.hidden.insert(path.to_owned());
        } else {
            inner.hidden.remove(path);
        }
    }

    pub fn set_kinds(&self, kinds: &[&str]) {
        self.lock().kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    }

    /// From now on requests whose path holds `part` get this status; 0 ends that.
    pub fn fail(&self, part: &str, status: u16) {
        let mut inner = self.lock();
        inner.faults.retain(|fault| fault.part != part);
        if status > 0 {
            let message = "told to fail".to_owned();
            inner.faults.push(Fault { part: part.to_owned(), status, message, ..Fault::default() });
        }
    }

    pub fn fault(&self, fault: Fault) {
        self.lock().faults.push(fault);
    }

    pub fn heal(&self) {
        self.lock().faults.clear();
    }

    /// Takes requests and does not answer them, until told otherwise; then those that still wait are answered.
    pub fn set_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while it was held")
    }
}

impl Inner {
    fn now(&self) -> Timestamp {
        Timestamp::now() + self.offset
    }

    fn handle(&mut self, method: &Method, path: &str, query: &str, headers: &HeaderMap, body: &Value) -> (u16, Value) {
        let hits = |fault: &Fault| {
            let at = if fault.part.contains('=') { query } else { path };
            at.contains(&fault.part) && fault.method.as_ref().is_none_or(|wanted| wanted == method)
        };
        if let Some(at) = self.faults.iter().position(hits) {
            let fault = self.faults[at].clone();
            if fault.times == 1 {
                self.faults.remove(at);
            } else if fault.times > 1 {
                self.faults[at].times -= 1;
            }
            if fault.after {
                self.carry_out(method, path, query, headers, body);
            }
            let mut answer = failure(fault.status, &fault.message);
            if fault.retry_after > 0 {
                answer["details"] = json!({"retryAfterSeconds": fault.retry_after});
            }
            return (fault.status, answer);
        }
        self.carry_out(method, path, query, headers, body)
    }

    fn carry_out(
        &mut self,
        method: &Method,
        path: &str,
        query: &str,
        headers: &HeaderMap,
        body: &Value,
    ) -> (u16, Value) {
        if path == "/apis/daskade.dev/v1alpha1" {
            return self.discovery();
        }
        match *method {
            Method::GET => match self.objects.get(path) {
                Some(object) => (200, object.clone()),
                None if objects::is_collection(path) => (200, self.list(path, query)),
                None => (404, failure(404, "not found")),
            },
            Method::POST => {
                let mut body = body.clone();
                let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let path = format!("{path}/{name}");
                if self.objects.contains_key(&path) {
                    let mut exists = failure(409, &format!("{name} already exists"));
                    exists["reason"] = json!("AlreadyExists");
                    return (409, exists);
                }
                if let Some(namespace) = objects::namespace(&path) {
                    body["metadata"]["namespace"] = json!(namespace);
                }
                (201, self.store(&path, body))
            }
            Method::PUT => {
                let known = self.objects.get(path).map(|object| object["metadata"]["resourceVersion"].clone());
                match known {
                    None => (404, failure(404, "not found")),
                    Some(known) if known != body["metadata"]["resourceVersion"] => {
                        (409, failure(409, "the object has been modified"))
                    }
                    Some(_) => (200, self.store(path, body.clone())),
                }
            }
            Method::PATCH => self.patch(path, query, headers, body),
            Method::DELETE => self.delete(path, body),
            _ => (405, failure(405, "not allowed")),
        }
    }

    fn discovery(&self) -> (u16, Value) {
        if self.kinds.is_empty() {
            return (404, failure(404, "not found"));
        }
        let kinds = self.kinds.iter();
        let resources: Vec<Value> = kinds
            .map(|name| {
                json!({ "name": name, "singularName": "", "namespaced": true, "kind": "DaskCluster", "verbs": ["get"] })
            })
            .collect();
        let list = json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "daskade.dev/v1alpha1", "resources": resources,
        });
        (200, list)
    }

    fn list(&self, path: &str, query: &str) -> Value {
        let selector = objects::selector(query);
        let items = self.objects.iter().filter(|(at, object)| {
            objects::is_in(at, path)
                && !self.hidden.contains(*at)
                && objects::matches(&object["metadata"]["labels"], &selector)
        });
        pages::page(items, query, self.version)
    }

    fn patch(&mut self, path: &str, query: &str, headers: &HeaderMap, body: &Value) -> (u16, Value) {
        let at = path.strip_suffix("/status").unwrap_or(path);
        let known = self.objects.get(at).cloned();
        let content = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        if content.starts_with("application/apply-patch") {
            return self.apply(at, query, known, body);
        }
        let Some(mut object) = known else { return (404, failure(404, "not found")) };
        if content.starts_with("application/json-patch") {
            for operation in body.as_array().into_iter().flatten() {
                let to = operation["path"].as_str().unwrap_or_default();
                match operation["op"].as_str() {
                    Some("test") if object.pointer(to) != Some(&operation["value"]) => {
                        return (422, failure(422, &format!("testing value {to} failed")));
                    }
                    Some("test") => {}
                    Some("add") => object[&to[1..]] = operation["value"].clone(),
                    _ => return (422, failure(422, "an operation that this double does not know")),
                }
            }
        } else {
            if body["metadata"]["uid"].as_str().is_some_and(|uid| object["metadata"]["uid"] != uid) {
                return (409, failure(409, "another uid"));
            }
            merge(&mut object, body);
        }
        (200, self.store(at, object))
    }

    fn apply(&mut self, path: &str, query: &str, known: Option<Value>, body: &Value) -> (u16, Value) {
        let uid = &body["metadata"]["uid"];
        if !uid.is_null() && known.as_ref().is_none_or(|known| known["metadata"]["uid"] != *uid) {
            return (409, failure(409, "another uid"));
        }
        let manager = objects::parameter(query, "fieldManager").unwrap_or_default();
        let forced = objects::parameter(query, "force").as_deref() == Some("true");
        let applied = objects::leaves(body);
        let created = known.is_none();
        let mut object = known.unwrap_or_else(|| json!({}));
        for (field, value) in &applied {
            let differs = object.pointer(field).is_some_and(|known| known != value);
            if differs && !forced && !created {
                return (409, failure(409, &format!("conflict with another manager: {field}")));
            }
        }
        let managers = self.managers.entry(path.to_owned()).or_default();
        let fields: BTreeSet<String> = applied.keys().cloned().collect();
        let before = managers.insert(manager.clone(), fields.clone()).unwrap_or_default();
        let others: BTreeSet<String> =
            managers.iter().filter(|(name, _)| **name != manager).flat_map(|(_, fields)| fields.clone()).collect();
        for field in before.iter().filter(|field| !fields.contains(*field) && !others.contains(*field)) {
            objects::take_away(&mut object, field);
        }
        for (field, value) in applied {
            objects::set(&mut object, &field, value);
        }
        let name = path.rsplit('/').next().unwrap_or_default();
        object["metadata"]["name"] = json!(name);
        if let Some(namespace) = objects::namespace(path) {
            object["metadata"]["namespace"] = json!(namespace);
        }
        (if created { 201 } else { 200 }, self.store(path, object))
    }

    fn delete(&mut self, path: &str, body: &Value) -> (u16, Value) {
        let Some(mut object) = self.objects.get(path).cloned() else { return (404, failure(404, "not found")) };
        for field in ["uid", "resourceVersion"] {
            let wanted = &body["preconditions"][field];
            if !wanted.is_null() && object["metadata"][field] != *wanted {
                return (409, failure(409, &format!("the precondition {field} does not hold")));
            }
        }
        let grace = body["gracePeriodSeconds"].as_i64();
        let runs = path.contains("/pods/") && object["status"]["phase"] == "Running";
        if runs && grace != Some(0) {
            if object["metadata"]["deletionTimestamp"].is_null() {
                let grace = object["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap_or(30);
                let over = self.now() + SignedDuration::from_secs(grace);
                object["metadata"]["deletionTimestamp"] = json!(objects::second(over));
                object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
                object = self.store(path, object);
            }
            return (200, object);
        }
        self.remove(path);
        (200, json!({ "kind": "Status", "apiVersion": "v1", "status": "Success" }))
    }

    pub(crate) fn remove(&mut self, path: &str) -> Option<Value> {
        let object = self.objects.remove(path)?;
        self.managers.remove(path);
        self.version += 1;
        self.events.push((self.version, "DELETED", path.to_owned(), object.clone()));
        Some(object)
    }

    /// Writes an object as the API server would: with a uid, a version, a generation.
    fn store(&mut self, path: &str, mut object: Value) -> Value {
        let known = self.objects.get(path).cloned();
        match &known {
            None => {
                self.uids += 1;
                let now = objects::second(self.now());
                let meta = &mut object["metadata"];
                if meta["uid"].is_null() {
                    meta["uid"] = json!(format!("uid-{}", self.uids));
                }
                if meta["creationTimestamp"].is_null() {
                    meta["creationTimestamp"] = json!(now);
                }
                if meta["generation"].is_null() {
                    meta["generation"] = json!(1);
                }
                if path.contains("/pods/") && object["status"].is_null() {
                    object["status"] = json!({"phase": "Pending"});
                }
            }
            Some(known) => {
                let next = i64::from(known["spec"] != object["spec"]);
                object["metadata"]["generation"] = json!(known["metadata"]["generation"].as_i64().unwrap_or(1) + next);
                if objects::is_same(known, &object) {
                    return known.clone();
                }
            }
        }
        objects::describe(path, &mut object);
        self.version += 1;
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let event = if known.is_none() { "ADDED" } else { "MODIFIED" };
        self.events.push((self.version, event, path.to_owned(), object.clone()));
        self.objects.insert(path.to_owned(), object.clone());
        object
    }
}

/// See [`Api::direct`].
#[derive(Debug, Clone)]
pub struct Direct(Api);

impl Service<Request<kube::client::Body>> for Direct {
    type Response = Response;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let answer = answer(State(self.0.clone()), request.map(Body::new));
        Box::pin(async move { Ok(answer.await) })
    }
}

async fn answer(State(api): State<Api>, request: Request<Body>) -> Response {
    let at = Instant::now();
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 4 << 20).await.unwrap_or_default();
    let mut silent = api.silent.subscribe();
    drop(silent.wait_for(|silent| !silent).await);
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let content =
        parts.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let metadata = parts.headers.get("accept").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let metadata = metadata.contains("PartialObjectMetadata");
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let is_watch = objects::parameter(&query, "watch").as_deref() == Some("true");
    let is_write = !is_watch && parts.method != Method::GET;
    // Under the same lock as the change: a test that sees the change also finds the request recorded.
    let mut inner = api.lock();
    let (status, document) = if is_watch {
        api.watchable(&inner, &parts.method, &path, &query)
    } else {
        inner.handle(&parts.method, &path, &query, &parts.headers, &body)
    };
    let recorded =
        Recorded { method: parts.method, path: path.clone(), query: query.clone(), content, body, status, at };
    inner.requests.push(recorded);
    let date =
        (!inner.dateless).then(|| DateTimePrinter::new().timestamp_to_rfc9110_string(&inner.now()).expect("a date"));
    drop(inner);
    if is_write {
        api.watches.tell();
    }
    wait::ring();
    let builder = Response::builder()
        .status(StatusCode::from_u16(status).expect("a status"))
        .header("content-type", "application/json");
    let builder = match date {
        Some(date) => builder.header("date", date),
        None => builder,
    };
    if is_watch && status == 200 {
        return builder.body(watches::stream(api, path, query, metadata)).expect("an answer");
    }
    let document = if metadata && status < 300 { objects::metadata_of(document) } else { document };
    let builder = match document["details"]["retryAfterSeconds"].as_u64() {
        Some(seconds) => builder.header("retry-after", seconds.to_string()),
        None => builder,
    };
    builder.body(Body::from(pages::fill(document.to_string()))).expect("an answer")
}

impl Api {
    /// Whether a watch may begin.
    fn watchable(&self, inner: &Inner, method: &Method, path: &str, query: &str) -> (u16, Value) {
        let hits =
            |fault: &&Fault| path.contains(&fault.part) && fault.method.as_ref().is_none_or(|wanted| wanted == method);
        if let Some(fault) = inner.faults.iter().find(hits) {
            return (fault.status, failure(fault.status, &fault.message));
        }
        let since = objects::parameter(query, "resourceVersion").and_then(|text| text.parse::<u64>().ok());
        if since.is_some_and(|since| since < self.watches.oldest()) {
            return (410, failure(410, "too old resource version"));
        }
        (200, Value::Null)
    }
}

pub(crate) fn failure(code: u16, message: &str) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        422 => "Invalid",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code })
}
