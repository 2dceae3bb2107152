//! What is known of a DaskCluster: from what the watches have shown, its Secrets and its scheduler.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::apiserver::cache::Entry;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::LATE;
use crate::apiserver::whole::Whole;
use crate::certificates::Credentials;
use crate::cluster::link::{Link, Target};
use crate::cluster::work::{Observed, Work};
use crate::queue::Key;
use api::DaskClusterSpec;
use api::names::{OBJECT_NAME_MAX, check_label};
use api::problem::Problem;
use api::reason::Reason;
use api::status::DaskClusterStatus;
use dask::{Address, Scheme};
use decide::cluster::build::build_templates;
use decide::cluster::facts::{Cluster, PodFact};
use decide::cluster::facts::{Facts, Phase, Role, SchedulerFact, TlsFact};
use decide::cluster::{names, validate_named};

/// How long to wait for the first answer of a scheduler that should give one, so that an operator that has just started does
/// not call every cluster unreachable first.
const FIRST_ANSWER: Duration = Duration::from_secs(5);

/// A DaskCluster as far as it could be read.
#[derive(Debug)]
pub(crate) struct Object {
    /// With an empty spec if `problems` has one that kept it from being read.
    pub cluster: Cluster,
    /// Kueue's queue.
    pub queue: Option<String>,
    pub deleting: bool,
    /// What is wrong with the spec: nothing is done then but to say so, and to keep the certificates of what runs.
    pub problems: Vec<Problem>,
    /// Whether `tls` of the spec could be read, whatever is wrong with the rest.
    pub has_tls: bool,
}

/// Reads and checks a DaskCluster.
pub(crate) fn read_object(key: &Key, Whole { record, value, refused, .. }: &Whole) -> Object {
    let status = value.get("status").unwrap_or(&Value::Null);
    let owners = value.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    let mut cluster = Cluster {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        uid: record.uid.clone(),
        generation: value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
        of_run: owners.into_iter().flatten().any(|owner| owner["kind"] == "PipelineRun" && owner["controller"] == true),
        spec: DaskClusterSpec::default(),
        // A status that cannot be read is written anew.
        status: Option::<DaskClusterStatus>::deserialize(status).ok().flatten().unwrap_or_default(),
    };
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).map(ToOwned::to_owned);
    let queue = value.pointer("/metadata/labels").and_then(|labels| labels.get(names::QUEUE_LABEL));
    let queue = queue.and_then(Value::as_str).map(ToOwned::to_owned);
    let deleting = record.deleted || text("/metadata/deletionTimestamp").is_some();
    let mut problems = Vec::new();
    if let Err(error) = check_label(&key.name, OBJECT_NAME_MAX) {
        let problem = Problem::new(Reason::InvalidName, "metadata.name", format!("`{}` {error}", key.name));
        problems.push(problem.help("names of pods, Services and labels are made from it"));
    }
    let mut has_tls = refused.is_none();
    problems.extend(refused.as_ref().map(|why| {
        let (path, message) = why.split_once(": ").unwrap_or(("spec", why.as_str()));
        Problem::new(Reason::LimitExceeded, path, message)
    }));
    match read_spec(value) {
        Ok(spec) => cluster.spec = spec,
        Err(problem) => {
            let tls = value.pointer("/spec/tls").cloned().unwrap_or_default();
            match serde_json::from_value(tls) {
                Ok(tls) => cluster.spec.tls = tls,
                Err(_) => has_tls = false,
            }
            problems.push(problem);
        }
    }
    problems.extend(validate_named(&key.name, &cluster.spec, "spec"));
    Object { cluster, queue, deleting, problems, has_tls }
}

/// Objects may be older than the schema that is there now, or newer than this program.
fn read_spec(value: &Value) -> Result<DaskClusterSpec, Problem> {
    let Some(spec) = value.get("spec").filter(|spec| !spec.is_null()) else { return Ok(DaskClusterSpec::default()) };
    serde_path_to_error::deserialize(spec).map_err(|error| {
        let path = error.path().to_string();
        let path = if path == "." { "spec".to_owned() } else { format!("spec.{path}") };
        Problem::new(Reason::InvalidValue, path, error.inner().to_string())
    })
}

/// The pods of a cluster, and when the next of them is old enough to be in trouble.
pub(crate) fn gather_pods(entry: &Entry, uid: &str, now: Timestamp) -> (Vec<PodFact>, Option<SignedDuration>) {
    let mut wake: Option<SignedDuration> = None;
    let pods = entry.pods(uid).map(|(_, pod)| {
        let mut fact = pod.fact.clone();
        if fact.issue.is_none() && pod.late.is_some() {
            let left = SignedDuration::from_secs(LATE) - now.duration_since(fact.created);
            if left.is_positive() {
                wake = Some(wake.map_or(left, |wake| wake.min(left)));
            } else {
                fact.issue = pod.late.clone();
            }
        }
        fact
    });
    (pods.collect(), wake)
}

impl Work<'_> {
    /// Everything that the decisions need; nothing is written but certificates. None if nothing has changed since the last
    /// reconciliation, for `unchanged` from now on.
    pub(crate) async fn gather(
        &mut self,
        object: Object,
        entry: Entry,
        unchanged: Option<Duration>,
    ) -> Option<Observed> {
        let mut cluster = object.cluster;
        let incarnation = cluster.status.incarnation.unwrap_or(0).max(self.memory.incarnation);
        let credentials = self.credentials(&cluster, false).await;
        if let Some(left) = unchanged
            && self.error.is_none()
            && credentials.fact == self.memory.tls
        {
            self.waits.push(left);
            self.waits.extend(credentials.renew_after);
            self.left = self.memory.left();
            return None;
        }
        let written = cluster.status.clone();
        cluster.status.incarnation = (incarnation > 0).then_some(incarnation);
        let templates = build_templates(&cluster, &self.reconciler.settings, object.queue.as_deref());
        let hashes = templates.hashes();
        let (facts, heard) = self.facts(&entry, &cluster, &credentials).await;
        Some(Observed { cluster, written, entry, credentials, templates, hashes, facts, heard })
    }

    pub(crate) async fn credentials(&mut self, cluster: &Cluster, check: bool) -> Credentials {
        let check = check || self.memory.secrets.is_none_or(|at| at.elapsed() >= self.reconciler.period().mul_f64(0.7));
        match self.reconciler.certificates.ensure(cluster, self.now, check).await {
            Ok(credentials) => {
                if check {
                    self.memory.secrets = Some(Instant::now());
                }
                if credentials.fact.issue.is_some() {
                    self.memory.secrets = None;
                    self.waits.push(self.reconciler.missing);
                }
                credentials
            }
            Err(error) => {
                let error = ReconcileError::Certificates(error);
                let fact = TlsFact { issue: error.issue(), ..self.memory.tls.clone() };
                self.error.get_or_insert(error);
                Credentials { client: None, fact, renew_after: None }
            }
        }
    }

    /// What is known, and which answer of the scheduler it has: what comes in later is for the next reconciliation.
    pub(crate) async fn facts(&mut self, entry: &Entry, cluster: &Cluster, credentials: &Credentials) -> (Facts, u64) {
        let (pods, late) = gather_pods(entry, &cluster.uid, self.now);
        self.waits.extend(late.map(|late| late.unsigned_abs()));
        self.aim(cluster, &pods, credentials).await;
        let (scheduler, heard) = self.memory.link.as_ref().map_or((SchedulerFact::Unknown, 0), Link::state);
        let (gave, tls) = (self.memory.gave.clone(), credentials.fact.clone());
        (Facts { now: self.now, pods, scheduler, refused: Vec::new(), tls, gave }, heard)
    }

    /// Has the link ask the scheduler's pod that is there now.
    async fn aim(&mut self, cluster: &Cluster, pods: &[PodFact], credentials: &Credentials) {
        let is_there =
            |pod: &&PodFact| pod.slot.role == Role::Scheduler && pod.deleting.is_none() && pod.phase == Phase::Running;
        let pod = pods.iter().filter(is_there).max_by_key(|pod| pod.slot.incarnation);
        let mode = cluster.spec.tls.as_ref().and_then(|tls| tls.mode).unwrap_or_default();
        let tls = mode != api::cluster::TlsMode::Disabled;
        let scheme = if tls { Scheme::Tls } else { Scheme::Tcp };
        // One that is starting has nothing to say, and a refused connection is no news about it.
        let asked = |pod: &PodFact| self.memory.link.as_ref().is_some_and(|link| link.asks(&pod.uid));
        let may_ask = |pod: &&PodFact| (pod.ready || asked(pod)) && (!tls || credentials.client.is_some());
        let target = pod.filter(may_ask).and_then(|pod| {
            let address = Address::new(scheme, pod.ip.as_deref()?, names::SCHEDULER_PORT).ok()?;
            let lead = self.reconciler.controller.lead.leader().ok()?;
            let tls = credentials.client.clone();
            let (pod, uid) = (pod.name.clone(), pod.uid.clone());
            Some(Target { cluster: cluster.uid.clone(), pod, uid, address, tls, lead })
        });
        let registry = &self.reconciler.registry;
        match (target, &self.memory.link) {
            (Some(target), Some(link)) if link.asks(&target.uid) => {
                registry.endpoint(self.key, Some(&target));
                link.aim(target);
            }
            (Some(target), _) => {
                // Runs need not wait for its first word.
                registry.endpoint(self.key, Some(&target));
                let (queue, clock) = (self.reconciler.controller.sink.queue.clone(), self.reconciler.clock.clone());
                let link = Link::start(target, self.key.clone(), queue, clock);
                link.heard(FIRST_ANSWER).await;
                self.memory.link = Some(link);
            }
            // Certificates that cannot be read now are no reason to give up a connection that works.
            (None, Some(_)) if pod.is_some_and(asked) => {}
            (None, _) => {
                self.memory.link = None;
                registry.endpoint(self.key, None);
            }
        }
    }
}
