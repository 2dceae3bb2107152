//! An API server for tests: leases with resource versions, discovery of our kinds, empty lists. Records everything.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{Method, Request, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::watch;

/// One request as it came.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub method: Method,
    pub body: Value,
    pub status: u16,
}

#[derive(Debug, Default)]
struct Inner {
    objects: BTreeMap<String, Value>,
    version: u64,
    requests: Vec<Recorded>,
    kinds: Vec<String>,
    /// Statuses to give instead of an answer, by part of the path.
    failures: Vec<(String, u16)>,
}

/// The double; clones are the same.
#[derive(Debug, Clone)]
pub struct Api {
    inner: Arc<Mutex<Inner>>,
    silent: Arc<watch::Sender<bool>>,
    pub address: SocketAddr,
}

impl Api {
    /// Serves until the test ends. Knows `daskclusters` unless told otherwise.
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("its address");
        let inner = Arc::new(Mutex::new(Inner { kinds: vec!["daskclusters".to_owned()], ..Inner::default() }));
        let api = Self { inner, silent: Arc::new(watch::Sender::new(false)), address };
        let routes = Router::new().fallback(answer).with_state(api.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        api
    }

    pub fn client(&self) -> kube::Client {
        kube::Client::try_from(self.config()).expect("a client")
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

    /// Puts an object there as somebody else would.
    pub fn put(&self, path: &str, mut object: Value) {
        let mut inner = self.lock();
        inner.version += 1;
        object["metadata"]["resourceVersion"] = json!(inner.version.to_string());
        inner.objects.insert(path.to_owned(), object);
    }

    /// Changes an object as somebody else would.
    pub fn edit(&self, path: &str, change: impl FnOnce(&mut Value)) {
        let mut object = self.object(path).expect("an object to edit");
        change(&mut object);
        self.put(path, object);
    }

    pub fn delete(&self, path: &str) {
        self.lock().objects.remove(path);
    }

    pub fn set_kinds(&self, kinds: &[&str]) {
        self.lock().kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
    }

    /// From now on requests whose path holds `part` get this status; 0 ends that.
    pub fn fail(&self, part: &str, status: u16) {
        let mut inner = self.lock();
        inner.failures.retain(|(known, _)| known != part);
        if status > 0 {
            inner.failures.push((part.to_owned(), status));
        }
    }

    /// Takes requests and does not answer them, until told otherwise; then those that still wait are answered.
    pub fn set_silent(&self, silent: bool) {
        self.silent.send_replace(silent);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no panic while it was held")
    }

    fn handle(&self, method: &Method, path: &str, query: &str, body: Value) -> (u16, Value) {
        let mut inner = self.lock();
        if let Some((_, status)) = inner.failures.iter().find(|(part, _)| path.contains(part.as_str())) {
            return (*status, failure(*status, "told to fail"));
        }
        if path == "/apis/daskade.dev/v1alpha1" {
            if inner.kinds.is_empty() {
                return (404, failure(404, "not found"));
            }
            let resources: Vec<Value> = inner
                .kinds
                .iter()
                .map(|name| {
                    json!({ "name": name, "singularName": "", "namespaced": true, "kind": "DaskCluster", "verbs": ["get"] })
                })
                .collect();
            let list = json!({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "daskade.dev/v1alpha1", "resources": resources,
            });
            return (200, list);
        }
        match *method {
            Method::GET => match inner.objects.get(path) {
                Some(object) => (200, object.clone()),
                None if query.contains("limit=") || query.contains("labelSelector=") => {
                    let version = inner.version.to_string();
                    (
                        200,
                        json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version }, "items": [] }),
                    )
                }
                None => (404, failure(404, "not found")),
            },
            Method::POST => {
                let path = format!("{path}/{}", body["metadata"]["name"].as_str().unwrap_or_default());
                if inner.objects.contains_key(&path) {
                    return (409, failure(409, "exists already"));
                }
                (201, store(&mut inner, &path, body))
            }
            Method::PUT | Method::PATCH => {
                let known = inner.objects.get(path).map(|object| object["metadata"]["resourceVersion"].clone());
                match known {
                    None if *method == Method::PUT => (404, failure(404, "not found")),
                    Some(known) if *method == Method::PUT && known != body["metadata"]["resourceVersion"] => {
                        (409, failure(409, "the object has been modified"))
                    }
                    _ => (200, store(&mut inner, path, body)),
                }
            }
            Method::DELETE => match inner.objects.remove(path) {
                Some(object) => (200, object),
                None => (404, failure(404, "not found")),
            },
            _ => (405, failure(405, "not allowed")),
        }
    }
}

async fn answer(State(api): State<Api>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = to_bytes(body, 1 << 20).await.unwrap_or_default();
    let mut silent = api.silent.subscribe();
    drop(silent.wait_for(|silent| !silent).await);
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    if query.contains("watch=true") {
        tokio::time::sleep(Duration::from_secs(290)).await;
    }
    let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let (status, document) = api.handle(&parts.method, &path, &query, body.clone());
    api.lock().requests.push(Recorded { method: parts.method, body, status });
    Response::builder()
        .status(StatusCode::from_u16(status).expect("a status"))
        .header("content-type", "application/json")
        .body(Body::from(document.to_string()))
        .expect("an answer")
}

fn store(inner: &mut Inner, path: &str, mut object: Value) -> Value {
    inner.version += 1;
    object["metadata"]["resourceVersion"] = json!(inner.version.to_string());
    inner.objects.insert(path.to_owned(), object.clone());
    object
}

fn failure(code: u16, message: &str) -> Value {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code })
}
