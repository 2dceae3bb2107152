//! What is known of a run: from what the watches have shown, its ControllerRevision, and the task that drives it.

use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::apiserver::record::Record;
use crate::apiserver::shown::FINALIZER;
use crate::pipelinerun::drive::End;
use crate::pipelinerun::release::Releasing;
use crate::pipelinerun::revision::{RevisionError, revision_name};
use crate::pipelinerun::setbacks::Try;
use crate::pipelinerun::work::Work;
use crate::pipelinerun::writes::own_cluster;
use crate::queue::Key;
use api::reason::Reason;
use decide::cluster::facts::Issue;
use decide::pipeline::{PIPELINE_LABEL, QUEUED_ANNOTATION};
use decide::pipelinerun::facts::{ClusterFact, DriveFact, Facts, Frozen, Place, Run, SpecFact, SweepFact};
use decide::pipelinerun::release::{self, ReleaseFact, shared_place};
use decide::pipelinerun::retention::{Retention, retention};

/// Reads a PipelineRun. A spec that cannot be read is an empty one here: what is wrong with it is found when it is checked.
pub(crate) fn read_run(key: &Key, record: &Record, value: &Value) -> Run {
    let at = |path: &str| value.pointer(path).and_then(Value::as_str).and_then(|text| text.parse().ok());
    let finalizers = value.pointer("/metadata/finalizers").and_then(Value::as_array);
    let mark = |kind: &str, name: &str| Some(value["metadata"][kind].get(name)?.as_str()?.to_owned());
    Run {
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        uid: record.uid.clone(),
        generation: value.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
        created: at("/metadata/creationTimestamp").unwrap_or_default(),
        deleting: at("/metadata/deletionTimestamp"),
        held: finalizers.is_some_and(|list| list.iter().any(|name| name == FINALIZER)),
        queue: mark("annotations", QUEUED_ANNOTATION).and_then(|_| mark("labels", PIPELINE_LABEL)),
        spec: value.get("spec").and_then(|spec| Deserialize::deserialize(spec).ok()).unwrap_or_default(),
        // A status that cannot be read is written anew.
        status: value.get("status").and_then(|status| Deserialize::deserialize(status).ok()).unwrap_or_default(),
    }
}

impl Work<'_> {
    /// What the task that drives the run has to say.
    pub(crate) fn hear(&mut self) {
        let Some(drive) = &self.memory.drive else { return };
        match drive.take_end() {
            Some(End::Done(report)) => {
                self.memory.done = Some(report);
                self.memory.drive = None;
            }
            Some(End::Broken { issue, recurs }) => {
                let live = drive.live();
                let open = live.open.then(|| drive.age());
                let failed = Try { issue, recurs, done: live.done, open };
                let (issue, pause) = self.memory.setbacks.note(self.key, failed, self.now);
                tracing::info!(reason = %issue.reason, again = ?pause, "the run cannot be driven now: {}", issue.message);
                self.memory.broken = Some((issue, pause.map(|pause| Instant::now() + pause)));
                self.memory.drive = None;
                // Its certificates may have been renewed.
                self.memory.outside = None;
            }
            None => {}
        }
    }

    /// What is written down of the run, if anything is.
    pub(crate) async fn spec(&mut self, run: &Run) -> SpecFact {
        if run.has_ended() && !self.is_due(run) && !release::is_due(run) {
            return SpecFact::Valid;
        }
        if let Some(stored) = &self.memory.stored {
            return SpecFact::Frozen(stored.frozen());
        }
        // What is held was written down before, whether or not that was told.
        let held = run.held.then(|| revision_name(&run.name, &run.uid));
        let Some(name) = run.status.revision.clone().or(held) else { return SpecFact::Valid };
        match self.writer.read_revision(&name).await {
            Ok(stored) => {
                let frozen = stored.frozen();
                self.memory.stored = Some(stored);
                SpecFact::Frozen(frozen)
            }
            Err(RevisionError::Unusable(why)) => SpecFact::Invalid(format!("it {why}")),
            Err(RevisionError::Api(error)) => {
                let message = format!("cannot read ControllerRevision {name}; retrying");
                let issue = error.issue().unwrap_or(Issue::new(Reason::ApiError, message));
                self.error = Some(error);
                SpecFact::Waits(issue, None)
            }
        }
    }

    pub(crate) async fn facts(&mut self, run: &Run, spec: SpecFact) -> Facts {
        let owned = own_cluster(&self.reconciler.clusters.cache, self.key, &run.uid);
        let left = release::is_due(run).then(|| shared_place(run, &spec)).flatten();
        let cluster = match (&spec, &left) {
            (SpecFact::Frozen(Frozen { place, .. }), _) | (_, Some(place)) => self.cluster(place, owned.as_ref()).await,
            (_, None) => ClusterFact::Missing,
        };
        let release = match left {
            Some(place) => self.release_fact(&place, &cluster).await,
            None => {
                self.memory.release = Releasing::default();
                ReleaseFact::None
            }
        };
        let drive = match (&self.memory.done, &self.memory.drive, &self.memory.broken) {
            (Some(report), _, _) => DriveFact::Done(report.clone()),
            (None, Some(drive), _) => DriveFact::Live(drive.live()),
            (None, None, Some((issue, again))) => {
                let again = again.map(|at| at.saturating_duration_since(Instant::now()));
                DriveFact::Broken { issue: issue.clone(), again }
            }
            (None, None, None) => DriveFact::None,
        };
        let owned = owned.is_some_and(|(_, ours, goes)| ours && !goes);
        let places = matches!(&spec, SpecFact::Frozen(frozen) if frozen.place == Place::Own && !owned);
        let places = places.then_some(&self.reconciler.removals);
        let sweep =
            if self.is_due(run) { self.memory.removal.fact(self.key, places, self.now) } else { SweepFact::None };
        let cancelled = run.spec.cancel.then(|| *self.memory.cancelled.get_or_insert_with(Instant::now));
        let cancelling = cancelled.map(|at| at.elapsed()).unwrap_or_default();
        let over = matches!(&spec, SpecFact::Frozen(frozen) if frozen.is_over(self.now));
        let stuck = matches!(&drive, DriveFact::Live(live) if live.is_blocked() && (over || live.is_ending()));
        self.memory.stuck = stuck.then(|| self.memory.stuck.unwrap_or_else(Instant::now));
        Facts {
            now: self.now,
            fresh: self.fresh,
            spec,
            cluster,
            owned,
            drive,
            cancelling,
            stuck: self.memory.stuck.map(|at| at.elapsed()).unwrap_or_default(),
            waited: self.memory.waited.clone(),
            issue: None,
            full: None,
            sweep,
            release,
        }
    }

    /// What the run has stored is to be removed.
    fn is_due(&self, run: &Run) -> bool {
        matches!(retention(run, self.now), Retention::Now(_))
    }
}
