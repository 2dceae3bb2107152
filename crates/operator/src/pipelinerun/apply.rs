//! Carries out what was planned for a run.

use serde_json::Value;
use tokio::time::Instant;

use crate::apiserver::cache::is_older;
use crate::apiserver::error::ReconcileError;
use crate::apiserver::record::Kind;
use crate::pipelinerun::drive::{Drive, DrivenRun};
use crate::pipelinerun::revision::StoredRevision;
use crate::pipelinerun::setbacks::Setbacks;
use crate::pipelinerun::work::Work;
use crate::pipelinerun::writes::own_cluster;
use crate::queue::Key;
use decide::cluster::names;
use decide::pipelinerun::facts::{Facts, Place, Run, SpecFact};
use decide::pipelinerun::plan::{ClusterStep, DriveStep, FinalizerStep, Plan, plan};
use decide::pipelinerun::retention::{Removal, SweepStep};
use driver::Fabric;
use run_model::Start;

impl Work<'_> {
    /// What has to be there before the run goes on.
    pub(crate) async fn apply(&mut self, run: &Run, planned: &mut Plan, facts: &mut Facts) {
        let stored = self.memory.stored.clone();
        if let (ClusterStep::Make, Some(stored)) = (planned.cluster, &stored) {
            let queue = self.value.pointer("/metadata/labels").and_then(|labels| labels.get(names::QUEUE_LABEL));
            let queue = queue.and_then(Value::as_str);
            let made =
                self.writer.make_cluster(&stored.revision.run.cluster, queue, &self.reconciler.clusters.cache).await;
            match made {
                Ok(()) => {
                    tracing::info!(cluster = self.key.name, "made the cluster of the run");
                    self.reconciler.clusters.queue.add(self.key.clone());
                }
                Err(error) => return self.fail(run, error, planned, facts),
            }
        }
        if planned.finalizer == FinalizerStep::Add
            && let Err(error) = self.set_finalizer(true).await
        {
            return self.fail(run, error, planned, facts);
        }
        match (planned.drive, &stored) {
            (DriveStep::Run { cancel }, Some(stored)) => self.drive(run, stored, cancel, planned, facts),
            (DriveStep::Stop { leave }, _) => {
                self.memory.opening = None;
                // A run that is suspended and goes on later counts from one again.
                self.memory.setbacks = Setbacks::default();
                // It ends before its scheduler is told to forget it.
                if let Some(drive) = self.memory.drive.take() {
                    drive.end().await;
                    if leave {
                        self.leave(run, facts).await;
                    }
                }
            }
            _ => {}
        }
        if planned.release.as_ref().is_some_and(|release| release.start) {
            self.release(run, &facts.spec);
        }
        match (&planned.removal, &stored) {
            (Some(Removal { step: SweepStep::Start, due, .. }), Some(stored)) => self.sweep(stored, *due),
            (Some(Removal { step: SweepStep::Pause(issue), .. }), _) => {
                self.soon = Some(self.memory.removal.pause(self.key, issue.clone(), self.now));
            }
            _ => {}
        }
    }

    fn fail(&mut self, run: &Run, error: ReconcileError, planned: &mut Plan, facts: &mut Facts) {
        facts.issue = error.issue();
        self.error.get_or_insert(error);
        let told = plan(run, facts);
        (planned.condition, planned.removal, planned.release) = (told.condition, told.removal, told.release);
    }

    fn drive(&mut self, run: &Run, stored: &StoredRevision, cancel: bool, planned: &mut Plan, facts: &mut Facts) {
        if self.memory.drive.is_none() {
            let begun = run.status.steps.as_ref().is_some_and(|steps| steps.running + steps.done + steps.failed > 0);
            // The finalizer is added before a run is opened: without it there is no journal.
            let start = if run.held || self.memory.broken.is_some() { Start::Either } else { Start::New };
            let spec = match stored.run_spec(self.now, begun, start, self.reconciler.limits.run.steps) {
                Ok(spec) => spec,
                Err(why) => {
                    facts.spec = SpecFact::Invalid(format!("it {why}"));
                    *planned = plan(run, facts);
                    return;
                }
            };
            let fabric = Fabric::Followed(match (&self.memory.outside, &stored.revision.place) {
                (Some(endpoint), _) => endpoint.subscribe(),
                (None, Place::Shared(name)) => {
                    self.reconciler.registry.endpoints(&Key::new(self.key.namespace.clone(), name.clone()))
                }
                (None, _) => self.reconciler.registry.endpoints(self.key),
            });
            let before = self.memory.broken.take().map(|(issue, _)| issue);
            self.memory.opening = before.is_none().then(Instant::now);
            let driven = DrivenRun {
                key: self.key.clone(),
                queue: self.reconciler.controller.sink.queue.clone(),
                driven: self.reconciler.driven.clone(),
                memory: stored.in_progress(),
            };
            let drive = Drive::start(spec, fabric, driven, before, self.reconciler.bounds);
            self.memory.drive = Some(drive);
        }
        if let Some(drive) = self.memory.drive.as_ref().filter(|_| cancel) {
            drive.cancel();
        }
    }

    async fn set_finalizer(&mut self, wanted: bool) -> Result<(), ReconcileError> {
        let names = self.value.pointer("/metadata/finalizers").and_then(Value::as_array);
        let names: Vec<String> = names.into_iter().flatten().filter_map(Value::as_str).map(ToOwned::to_owned).collect();
        // A write of this reconciliation has made another version.
        let entry = self.reconciler.controller.sink.cache.entry(self.key).and_then(|entry| entry.root);
        let version = entry.map(|record| record.version).filter(|version| !is_older(version, &self.record.version));
        let version = version.unwrap_or_else(|| self.record.version.clone());
        self.writer.set_finalizer(wanted, &names, &version).await
    }

    /// What is not needed any more, and in the end the run itself.
    pub(crate) async fn take_away(&mut self, run: &Run, planned: &Plan) -> Result<(), ReconcileError> {
        if planned.cluster == ClusterStep::Delete
            && let Some((uid, true, false)) = own_cluster(&self.reconciler.clusters.cache, self.key, &run.uid)
        {
            tracing::info!(cluster = self.key.name, "deleting the cluster of the run");
            self.reconciler.waiters.wait(Kind::Cluster, self.key, self.key);
            self.writer.delete_cluster(&uid, &self.reconciler.clusters.cache).await?;
        }
        if planned.finalizer == FinalizerStep::Remove {
            self.set_finalizer(false).await?;
        }
        if planned.delete && !self.record.deleted {
            tracing::info!("deleting the run: its ttlAfterFinished has passed");
            self.writer.delete_run().await?;
        }
        Ok(())
    }
}
