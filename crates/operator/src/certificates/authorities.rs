//! Which clusters have an authority: a ConfigMap of the operator's with their uids, so that those of clusters that went
//! while nobody looked are found without listing Secrets.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use parking_lot::{Mutex, MutexGuard};
use serde_json::json;
use tokio::time::{Duration, Instant};

use decide::cluster::names;

/// Its name.
pub(crate) const NAME: &str = "daskade-authorities";

/// Least time between two writes. The first of many clusters goes ahead, the others share the writes that follow.
const PACE: Duration = Duration::from_millis(250);

/// The list.
pub(crate) struct Authorities {
    api: Api<ConfigMap>,
    /// What is to be written, by uid: whether the cluster has an authority.
    notes: Mutex<BTreeMap<String, bool>>,
    /// Held by whoever writes; when the last write had ended.
    turn: tokio::sync::Mutex<Option<Instant>>,
}

impl Authorities {
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { api: Api::namespaced(client, namespace), notes: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }

    /// Writes down that a cluster has an authority, or that it has none any more. All that is to be written at the moment
    /// goes into one write, and the next one waits for a moment: the list is one object, so that each write costs the more
    /// the longer it is, and several at once get into each other's way.
    pub async fn note(&self, uid: &str, there: bool) -> kube::Result<()> {
        self.notes().insert(uid.to_owned(), there);
        let mut turn = self.turn.lock().await;
        if !self.notes().contains_key(uid) {
            // Whoever had the turn before has written it.
            return Ok(());
        }
        if let Some(last) = *turn {
            tokio::time::sleep_until(last + PACE).await;
        }
        let batch = self.notes().clone();
        let written = self.write(&batch).await;
        *turn = Some(Instant::now());
        written?;
        // What could not be written stays, and so does a newer word on the same.
        self.notes().retain(|uid, there| batch.get(uid) != Some(there));
        Ok(())
    }

    /// Uids of all clusters that have one.
    pub async fn uids(&self) -> kube::Result<BTreeSet<String>> {
        let map = self.api.get_opt(NAME).await?;
        Ok(map.and_then(|map| map.data).unwrap_or_default().into_keys().collect())
    }

    async fn write(&self, batch: &BTreeMap<String, bool>) -> kube::Result<()> {
        let data: BTreeMap<&str, Option<&str>> =
            batch.iter().map(|(uid, there)| (uid.as_str(), there.then_some(""))).collect();
        match self.api.patch(NAME, &PatchParams::default(), &Patch::Merge(json!({"data": data}))).await {
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            answer => return answer.map(drop),
        }
        let data: BTreeMap<&str, &str> = data.into_iter().filter_map(|(uid, there)| Some((uid, there?))).collect();
        let Some(first) = data.keys().next() else { return Ok(()) };
        // A field manager of its own: nobody who makes the list in the same moment takes the others' entries away.
        let params = PatchParams::apply(&format!("{}-{first}", names::MANAGER)).force();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": NAME, "labels": {names::MANAGED_BY.0: names::MANAGED_BY.1}},
            "data": data,
        });
        self.api.patch(NAME, &params, &Patch::Apply(map)).await.map(drop)
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        // Each change is whole before anything in it can panic.
        self.notes.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::sync::Arc;
    use std::task::{Context, Poll};

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::Value;

    use super::*;

    /// An API server that has nothing but the list, and takes its time.
    #[derive(Clone, Default)]
    struct Server {
        data: Arc<Mutex<Option<BTreeMap<String, String>>>>,
        /// Uids in each write that it was sent.
        writes: Arc<Mutex<Vec<usize>>>,
        /// It refuses so many.
        refuses: Arc<Mutex<usize>>,
    }

    impl Server {
        async fn answer(self, request: Request<Body>) -> Response<Body> {
            let applies = request.headers()["content-type"].to_str().unwrap().contains("apply-patch");
            let body: Value = serde_json::from_slice(&request.into_body().collect_bytes().await.unwrap()).unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
            let mut data = self.data.lock();
            let mut refuses = self.refuses.lock();
            if *refuses > 0 {
                *refuses -= 1;
                return error(500);
            }
            if data.is_none() && !applies {
                return error(404);
            }
            let entries = body["data"].as_object().unwrap();
            self.writes.lock().push(entries.len());
            let data = data.get_or_insert_default();
            for (uid, there) in entries {
                match there {
                    Value::Null => drop(data.remove(uid)),
                    _ => drop(data.insert(uid.clone(), String::new())),
                }
            }
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": data});
            Response::new(Body::from(map.to_string().into_bytes()))
        }
    }

    fn error(code: u16) -> Response<Body> {
        let status = json!({"kind": "Status", "status": "Failure", "message": "no", "reason": "no", "code": code});
        Response::builder().status(code).body(Body::from(status.to_string().into_bytes())).unwrap()
    }

    impl tower::Service<Request<Body>> for Server {
        type Response = Response<Body>;
        type Error = Infallible;
        type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, request: Request<Body>) -> Self::Future {
            let server = self.clone();
            Box::pin(async { Ok(server.answer(request).await) })
        }
    }

    fn start(refuses: usize) -> (Server, Arc<Authorities>) {
        let server = Server { refuses: Arc::new(Mutex::new(refuses)), ..Server::default() };
        let client = Client::new(server.clone(), "default");
        (server, Arc::new(Authorities::new(client, "n")))
    }

    /// Notes 40 uids at once; how many of these notes failed.
    async fn note_all(list: &Arc<Authorities>, there: bool) -> usize {
        let notes = (0..40).map(|n| {
            let list = list.clone();
            tokio::spawn(async move { list.note(&format!("u{n}"), there).await })
        });
        let notes: Vec<_> = notes.collect();
        let mut failed = 0;
        for note in notes {
            failed += usize::from(note.await.unwrap().is_err());
        }
        failed
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_at_once_is_written_at_once_and_nothing_is_lost() {
        let (server, list) = start(0);
        assert_eq!(note_all(&list, true).await, 0);
        assert_eq!(list.uids_in(&server), 40);
        assert!(server.writes.lock().len() <= 2, "one that was alone, and the others: {:?}", server.writes);
        assert_eq!(note_all(&list, false).await, 0);
        assert_eq!(list.uids_in(&server), 0);
        assert!(server.writes.lock().len() <= 4);
        assert!(list.notes().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn clusters_that_come_one_after_the_other_share_writes() {
        let (server, list) = start(0);
        let began = Instant::now();
        let notes = (0..100).map(|n| {
            let list = list.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(20 * n)).await;
                list.note(&format!("u{n}"), true).await
            })
        });
        for note in notes.collect::<Vec<_>>() {
            note.await.unwrap().unwrap();
        }
        let most = began.elapsed().div_duration_f64(PACE) as usize + 1;
        assert!(server.writes.lock().len() <= most, "{:?}", server.writes);
        assert!(began.elapsed() < Duration::from_secs(3), "nobody waits for long");
        assert_eq!(list.uids_in(&server), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_that_fails_is_an_error_of_one_and_is_made_up_for_by_the_next() {
        let (server, list) = start(1);
        assert_eq!(note_all(&list, true).await, 1);
        assert_eq!(list.uids_in(&server), 40, "what failed is written with the others");
    }

    #[tokio::test(start_paused = true)]
    async fn a_note_that_is_given_up_in_the_middle_is_written_by_the_next() {
        let (server, list) = start(0);
        let given_up = tokio::time::timeout(Duration::from_millis(10), list.note("a", true)).await;
        assert!(given_up.is_err());
        list.note("b", true).await.unwrap();
        assert_eq!(list.uids_in(&server), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_made_to_say_that_there_is_nothing() {
        let (server, list) = start(0);
        list.note("a", false).await.unwrap();
        assert!(server.data.lock().is_none());
    }

    impl Authorities {
        fn uids_in(&self, server: &Server) -> usize {
            server.data.lock().as_ref().map_or(0, BTreeMap::len)
        }
    }
}
