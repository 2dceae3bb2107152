//! From what the watches have shown to facts.

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::Value;

use crate::apiserver::cache::Entry;
use crate::apiserver::record::LATE;
use crate::apiserver::whole::Whole;
use crate::queue::Key;
use api::DaskClusterSpec;
use api::names::{OBJECT_NAME_MAX, check_label};
use api::problem::Problem;
use api::status::DaskClusterStatus;
use decide::cluster::facts::{Cluster, PodFact};
use decide::cluster::{names, validate_named};

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
        let problem = Problem::new("InvalidName", "metadata.name", format!("`{}` {error}", key.name));
        problems.push(problem.help("names of pods, Services and labels are made from it"));
    }
    let mut has_tls = refused.is_none();
    problems.extend(refused.as_ref().map(|why| {
        let (path, message) = why.split_once(": ").unwrap_or(("spec", why.as_str()));
        Problem::new("LimitExceeded", path, message)
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
        Problem::new("InvalidValue", path, error.inner().to_string())
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
